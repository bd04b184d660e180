#include "qvl/apps/compare_report.h"

#include <algorithm>

#include "qvl/apps/report_text.h"
#include "qvl/base/format.h"

namespace qvl::apps {
namespace {

using Value = std::optional<double>;

// "0.52 (2.1 %)"
std::string error_text(const ComparedWay& w) {
  if (!w.logits_error) return "-";
  if (*w.logits_error == 0) return "0";
  return fmt::format("{:.2g} ({:.2g} %)", *w.logits_error, 100 * w.logits_relative_error.value_or(0));
}

std::string works(const ComparedWay& w) {
  return w.error.empty() ? "yes" : "no";
}

}  // namespace

std::string Comparison::to_text() const {
  std::string out = fmt::format("{}\n{}\n{}\nlargest error of the logits against {}\n\n", checkpoint, machine,
                                prompt, reference);
  out += fmt::format("{:<34} {:>5} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8} {:>18} {:>7}\n", "", "", "vision",
                     "prefill", "decode", "vision", "text", "total", "logits", "first");
  out += fmt::format("{:<34} {:>5} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8} {:>18} {:>7}\n", "way to run it",
                     "works", "patches/s", "tok/s", "tok/s", "MB", "MB", "MB", "largest error", "choice");
  for (const ComparedWay& w : ways) {
    out += fmt::format("{:<34} {:>5} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8} {:>18} {:>7}\n", w.name, works(w),
                       number(w.vision_patches_per_s, 0), number(w.prefill_tokens_per_s, 0),
                       number(w.decode_tokens_per_s, 1), number(w.vision_mb, 0), number(w.text_mb, 0),
                       number(w.total_mb, 0), error_text(w),
                       w.top1 ? fmt::format("{:.1f} %", 100 * *w.top1) : std::string("-"));
  }
  for (const ComparedWay& w : ways) {
    if (!w.error.empty()) out += fmt::format("\n{}: {}", w.name, w.error);
  }
  out += "\n";
  for (const ComparedWay& w : ways) out += fmt::format("{:<34} {}\n", w.name, w.detail);
  out +=
      "Memory: peak of a process that does only that (MB of 10^6 bytes). First choice: share of positions "
      "where it is the reference's.\n";
  return out;
}

std::string Comparison::to_markdown() const {
  std::string out = fmt::format("# Ways to run {}\n\n{}. {}. Errors are against {}.\n\n", checkpoint, machine,
                                prompt, reference);
  out +=
      "| way | works | vision, patches/s | prefill, tok/s | decode, tok/s | memory of vision, MB | of text, "
      "MB | in total, MB | "
      "largest error of the logits | first choice equal |\n";
  out += "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  for (const ComparedWay& w : ways) {
    out += fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", cell(w.name),
                       w.error.empty() ? "yes" : cell("no: " + w.error), number(w.vision_patches_per_s, 0),
                       number(w.prefill_tokens_per_s, 0), number(w.decode_tokens_per_s, 1),
                       number(w.vision_mb, 0), number(w.text_mb, 0), number(w.total_mb, 0), error_text(w),
                       w.top1 ? fmt::format("{:.1f} %", 100 * *w.top1) : std::string("-"));
  }
  out += "\n";
  for (const ComparedWay& w : ways) out += fmt::format("- **{}**: {}\n", cell(w.name), cell(w.detail));
  out +=
      "\nMemory is the peak of a process that does only that (vision, text, both), in MB of 10^6 bytes. `qvl "
      "compare` measured "
      "all of it in one go.\n";
  return out;
}

std::string Comparison::to_svg() const {
  constexpr int kLabel = 250, kPanel = 170, kGap = 66, kTop = 96, kRow = 34, kBar = 18, kErrors = 130;
  struct Panel {
    const char* title;
    const char* unit;
    Value ComparedWay::*value;
    std::string_view colour;
  };
  const Panel panels[] = {
      {"Vision", "patches/s, more is better", &ComparedWay::vision_patches_per_s, kChartBlue},
      {"Text", "decoded tokens/s, more is better", &ComparedWay::decode_tokens_per_s, kChartGreen},
      {"Memory", "MB in total, less is better", &ComparedWay::total_mb, kChartOrange}};
  constexpr int kPanels = 3;
  const int width = kLabel + kPanels * (kPanel + kGap) + kErrors;
  const int height = kTop + static_cast<int>(ways.size()) * kRow + 44;
  SvgChart chart(width, height);
  using Style = SvgChart::TextStyle;
  const Style title{.size = 17, .weight = "600"}, grey{.size = 11, .colour = kChartGrey};
  chart.text(16, 28, "Ways to run " + cut(checkpoint, 80), title);
  chart.text(16, 47, cut(machine + ". " + prompt, 150), {.size = 12, .colour = kChartGrey});
  for (int p = 0; p < kPanels; ++p) {
    const int x = kLabel + p * (kPanel + kGap);
    chart.text(x, kTop - 22, panels[p].title, {.size = 13, .weight = "600"});
    chart.text(x, kTop - 8, panels[p].unit, {.size = 10, .colour = kChartGrey});
  }
  const int error_x = kLabel + kPanels * (kPanel + kGap);
  chart.text(error_x, kTop - 22, "Error of logits", {.size = 13, .weight = "600"});
  chart.text(error_x, kTop - 8, "largest (of largest logit)", {.size = 10, .colour = kChartGrey});
  for (size_t i = 0; i < ways.size(); ++i) {
    const ComparedWay& w = ways[i];
    const int y = kTop + static_cast<int>(i) * kRow;
    chart.row_ground(static_cast<int>(i), y, kRow);
    chart.text(16, y + 21, w.name, {.size = 12});
    if (!w.error.empty()) {
      chart.text(kLabel, y + 21, cut("does not work: " + w.error, 120), {.colour = kChartRed});
      continue;
    }
    for (int p = 0; p < kPanels; ++p) {
      double largest = 0;
      for (const ComparedWay& other : ways) largest = std::max(largest, (other.*panels[p].value).value_or(0));
      const Value& v = w.*panels[p].value;
      const int x = kLabel + p * (kPanel + kGap);
      if (!v) {
        chart.text(x, y + 21, "-", grey);
        continue;
      }
      const int length = largest > 0 ? std::max(1, static_cast<int>(*v / largest * kPanel + 0.5)) : 1;
      chart.rectangle(x, y + (kRow - kBar) / 2, length, kBar, panels[p].colour, 2);
      chart.text(x + length + 5, y + 21, short_number(*v));
    }
    chart.text(error_x, y + 21, error_text(w));
  }
  chart.text(16, height - 16,
             "Errors against " + reference + ". Measured by qvl compare, each way in processes of its own.", grey);
  return chart.finish();
}

Json Comparison::to_json() const {
  Json out = {{"checkpoint", checkpoint},
              {"machine", machine},
              {"prompt", prompt},
              {"reference", reference},
              {"ways", Json::array()}};
  const auto value = [](const Value& v) { return v ? Json(*v) : Json(nullptr); };
  for (const ComparedWay& w : ways) {
    out["ways"].push_back({{"name", w.name},
                           {"detail", w.detail},
                           {"works", w.error.empty()},
                           {"error", w.error.empty() ? Json(nullptr) : Json(w.error)},
                           {"vision_patches_per_s", value(w.vision_patches_per_s)},
                           {"prefill_tokens_per_s", value(w.prefill_tokens_per_s)},
                           {"decode_tokens_per_s", value(w.decode_tokens_per_s)},
                           {"vision_mb", value(w.vision_mb)},
                           {"text_mb", value(w.text_mb)},
                           {"total_mb", value(w.total_mb)},
                           {"package_mb", value(w.package_mb)},
                           {"logits_error", value(w.logits_error)},
                           {"logits_relative_error", value(w.logits_relative_error)},
                           {"mean_kl_nats", value(w.mean_kl_nats)},
                           {"top1", value(w.top1)}});
  }
  return out;
}

}  // namespace qvl::apps
