#include "qvl/apps/bench_report.h"

#include <algorithm>
#include <fstream>

#include "qvl/apps/report_text.h"
#include "qvl/base/format.h"
#include "qvl/generate/benchmark.h"

namespace qvl::apps {
namespace {

generate::Series series(const Json& seconds) {
  return {seconds.get<std::vector<double>>()};
}

// The largest rates of a stage's products with weights and of its attention.
struct StageLimit {
  const kernels::Peak* linear;
  const kernels::Peak* attention;
  std::string name;
};

// Whether attention of bf16 activations multiplies codes of 16 bits.
bool attention_by_codes(const kernels::MachineLimits& l) {
  return l.attention.instruction != l.bf16.instruction;
}

// Integers of a vision stage have 8 bits, of a text stage 4 but for what is sensitive.
StageLimit stage_limit(const std::string& stage, bool vision, const kernels::MachineLimits& limits) {
  const bool native = stage.starts_with("native");
  const bool integers = stage.find("int8") != stage.npos || stage.find("int4") != stage.npos;
  // ONNX Runtime widens bf16 weights; activations of native integer stages are bf16.
  const bool bf16 = native && (integers || stage.find("bf16") != stage.npos);
  const kernels::Peak* attention = bf16 ? &limits.attention : &limits.fp32;
  const std::string name = !bf16 ? "fp32" : attention_by_codes(limits) ? "int16" : "bf16";
  if (integers) {
    if (stage.find("int8 attention") != stage.npos) return {&limits.int8_wide, &limits.int8_wide, "int8 peak"};
    const bool seven = stage.find("7-bit") != stage.npos;
    const kernels::Peak* linear = !vision ? &limits.int8 : seven ? &limits.int8_seven : &limits.int8_wide;
    return {linear, attention, "int8 and " + name + " peaks"};
  }
  if (!bf16) return {attention, attention, "fp32 peak"};
  return {&limits.bf16, attention, name == "bf16" ? "bf16 peak" : "bf16 and " + name + " peaks"};
}

BenchRow rate_row(std::string kind, std::string what, Json facts, std::string unit, double units, const Json& seconds) {
  const generate::Series s = series(seconds);
  BenchRow row{.kind = std::move(kind), .what = std::move(what), .facts = std::move(facts), .unit = std::move(unit)};
  row.median = units / s.median();
  row.lowest = units / s.slowest();
  row.highest = units / s.fastest();
  return row;
}

BenchRow time_row(std::string kind, std::string what, Json facts, const Json& seconds) {
  const generate::Series s = series(seconds);
  BenchRow row{.kind = std::move(kind), .what = std::move(what), .facts = std::move(facts), .unit = "ms"};
  row.median = s.median() * 1e3;
  row.lowest = s.fastest() * 1e3;
  row.highest = s.slowest() * 1e3;
  return row;
}

// The time that the machine would need at its limits, over the time that it took.
void add_arithmetic(BenchRow& row, const Json& operations, const Json& seconds, const StageLimit& limit) {
  const double linear = operations["linear"].get<double>(), attention = operations["attention"].get<double>();
  const double median = series(seconds).median();
  row.work = (linear + attention) / median * 1e-9;
  row.work_unit = "GOPS";
  row.limit = limit.name;
  if (limit.linear->per_second > 0 && limit.attention->per_second > 0)
    row.share = (linear / limit.linear->per_second + attention / limit.attention->per_second) / median;
}

std::string decimals(double v) {
  return v >= 1000 ? fmt::format("{:.0f}", v) : short_number(v);
}

std::string spread(const BenchRow& r) {
  return fmt::format("{} to {}", decimals(r.lowest), decimals(r.highest));
}

std::string work(const BenchRow& r) {
  return r.work ? fmt::format("{} {}", decimals(*r.work), r.work_unit) : std::string("-");
}

std::string share(const BenchRow& r) {
  return r.share ? fmt::format("{:.0f} % of {}", 100 * *r.share, r.limit) : std::string("-");
}

std::string peaks(const kernels::MachineLimits& l) {
  const std::string wide = l.int8_wide.instruction == l.int8.instruction
                               ? std::string()
                               : fmt::format(", with 8-bit weights {:.0f} GOPS ({}), and 7-bit activations {:.0f} GOPS ({})",
                                             l.int8_wide.per_second * 1e-9, l.int8_wide.instruction,
                                             l.int8_seven.per_second * 1e-9, l.int8_seven.instruction);
  const std::string codes = attention_by_codes(l) ? fmt::format(", int16 {:.0f} GOPS ({})", l.attention.per_second * 1e-9,
                                                                l.attention.instruction)
                                                  : std::string();
  return fmt::format("int8 {:.0f} GOPS ({}){}{}, bf16 {:.0f} GFLOPS ({}), fp32 {:.0f} GFLOPS ({})", l.int8.per_second * 1e-9,
                     l.int8.instruction, wide, codes, l.bf16.per_second * 1e-9, l.bf16.instruction, l.fp32.per_second * 1e-9,
                     l.fp32.instruction);
}

std::string reading(const kernels::MachineLimits& l) {
  return fmt::format("memory read {:.1f} GB/s ({})", l.read.bytes_per_second * 1e-9, l.read.pattern);
}

std::string engines(const BenchReport& r) {
  return fmt::format("vision {}, text {}, {} keys and values; {}, {} threads, {}", r.vision, r.text, r.kv, r.isa, r.threads,
                     r.processor);
}

std::string memory(const BenchReport& r) {
  return fmt::format("vision alone {:.0f} MB, text alone {:.0f} MB, both and picture questions one after the other {:.0f} MB", r.vision_mb,
                     r.text_mb, r.answer_mb);
}

// On a shared machine the limits may have met a busier moment than what is divided by them.
std::string busy_note(const BenchReport& r) {
  const bool above = std::ranges::any_of(r.rows, [](const BenchRow& row) { return row.share.value_or(0) > 1; });
  return above ? "A share above 100 %: the machine was busier while its limits were measured.\n" : "";
}

Json rounded(double v) {
  return Json(std::stod(fmt::format("{:.6g}", v)));
}

}  // namespace

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t at = line.find(": ");
    if (at != line.npos) return line.substr(at + 2);
  }
  return "unknown processor";
}

BenchReport bench_report(const Json& vision, const Json& text, const Json& answer, const std::string& picture,
                         const kernels::MachineLimits& limits) {
  BenchReport out;
  out.limits = limits;
  out.vision = vision["vision"].get<std::string>();
  out.text = text["text"].get<std::string>();
  out.kv = text["kv"].get<std::string>();
  out.isa = answer["isa"].get<std::string>();
  out.threads = answer["threads"].get<int>();
  out.vision_mb = vision["peak_bytes"].get<double>() * 1e-6;
  out.text_mb = text["peak_bytes"].get<double>() * 1e-6;
  out.answer_mb = answer["peak_bytes"].get<double>() * 1e-6;

  const auto patches = vision["patches"].get<int64_t>();
  const std::string resized =
      fmt::format("{}x{}", vision["resized"][0].get<int64_t>(), vision["resized"][1].get<int64_t>());
  BenchRow row = rate_row("vision", fmt::format("vision, {}: {} patches", resized, patches),
                          {{"picture", picture}, {"resized", resized}, {"patches", patches}}, "patches/s", static_cast<double>(patches),
                          vision["seconds"]);
  add_arithmetic(row, vision["operations"], vision["seconds"], stage_limit(out.vision, true, limits));
  out.rows.push_back(std::move(row));
  for (const Json& p : text["prefill"]) {
    const auto tokens = p["tokens"].get<int64_t>();
    row = rate_row("prefill", fmt::format("prefill, {} tokens", tokens), {{"tokens", tokens}}, "tok/s",
                   static_cast<double>(tokens), p["seconds"]);
    add_arithmetic(row, p["operations"], p["seconds"], stage_limit(out.text, false, limits));
    out.rows.push_back(std::move(row));
  }
  for (const Json& d : text["decode"]) {
    const auto context = d["context"].get<int64_t>();
    row = rate_row("decode", fmt::format("decode after {} tokens", context),
                   {{"context", context}, {"bytes_per_token", d["bytes_per_token"]}}, "tok/s",
                   d["tokens"].get<double>(), d["seconds"]);
    row.work = d["bytes_per_token"].get<double>() * row.median * 1e-9;
    row.work_unit = "GB/s";
    const std::vector<double> read = d["read_bytes_per_second"].get<std::vector<double>>(), seconds = d["seconds"].get<std::vector<double>>();
    if (!read.empty()) {
      // Each run with what memory gave around it.
      generate::Series shares;
      const double bytes = d["bytes_per_token"].get<double>() * d["tokens"].get<double>();
      for (size_t i = 0; i < seconds.size(); ++i) shares.seconds.push_back(bytes / seconds[i] / read[i]);
      row.share = shares.median();
      const double limit = generate::Series{read}.median() * 1e-9;
      row.limit = fmt::format("{:.1f} GB/s (weights read beside)", limit);
      row.facts["weights_read_gb_per_s"] = rounded(limit);
    } else {
      row.limit = "memory read";
      if (limits.read.bytes_per_second > 0) row.share = *row.work / (limits.read.bytes_per_second * 1e-9);
    }
    out.rows.push_back(std::move(row));
  }
  const auto prompt_tokens = answer["prompt_tokens"].get<int64_t>();
  out.rows.push_back(time_row("ttft", fmt::format("picture to first token, {} tokens", prompt_tokens),
                              {{"picture", picture}, {"prompt_tokens", prompt_tokens}}, answer["seconds"]));
  out.rows.push_back(time_row("load", "opening the model", Json::object(), answer["load_seconds"]));
  return out;
}

std::string BenchReport::to_text() const {
  std::string out = fmt::format("{}\n{}\n\nlimits of this run: {}\n{:20}{}\n\n", model, engines(*this), reading(limits),
                                "", peaks(limits));
  const auto line = [&out](const std::string& what, const std::string& median, const std::string& range,
                           const std::string& doing, const std::string& of) {
    out += fmt::format("{:<38} {:>18} {:>20} {:>12}  {}\n", what, median, range, doing, of);
  };
  line("", "median", "from to", "work", "share of limit");
  for (const BenchRow& r : rows)
    line(r.what, fmt::format("{} {}", decimals(r.median), r.unit), spread(r), work(r), share(r));
  out += fmt::format("\npeak memory (10^6 bytes): {}\n", memory(*this));
  out += fmt::format("validated, then timed {} times each; qvl {}\n", repeats, version);
  return out + busy_note(*this);
}

std::string BenchReport::to_markdown() const {
  std::string out = fmt::format("# qvl bench: {}\n\n{}.\n\nLimits of this run: {}; {}.\n\n", model, engines(*this),
                                reading(limits), peaks(limits));
  out += "| what | median | from to | work | share of limit |\n|---|---|---|---|---|\n";
  for (const BenchRow& r : rows) {
    out += fmt::format("| {} | {} {} | {} | {} | {} |\n", cell(r.what), decimals(r.median), r.unit, spread(r), work(r),
                       share(r));
  }
  return out + fmt::format("\nPeak memory (10^6 bytes): {}. Validated, then timed {} times each, qvl {}.\n",
                           memory(*this), repeats, version) +
         busy_note(*this);
}

std::string BenchReport::to_svg() const {
  constexpr int kLabel = 260, kBarWidth = 260, kValue = 150, kWork = 130, kTop = 100, kRow = 34, kBar = 18;
  const int width = kLabel + kBarWidth + kValue + kWork + 70;
  const int height = kTop + static_cast<int>(rows.size()) * kRow + 44;
  SvgChart chart(width, height);
  const SvgChart::TextStyle grey{.size = 11, .colour = kChartGrey}, head{.size = 13, .weight = "600"};
  chart.text(16, 28, "qvl bench: " + cut(model, 80), {.size = 17, .weight = "600"});
  chart.text(16, 46, cut(engines(*this), 130), grey);
  chart.text(16, 61, cut(reading(limits) + "; " + peaks(limits), 150), grey);
  chart.text(16, kTop - 10, "Measured", head);
  chart.text(kLabel, kTop - 10, "Share of the machine's limit", head);
  chart.text(kLabel + kBarWidth + 60, kTop - 10, "Median", head);
  chart.text(kLabel + kBarWidth + kValue + 60, kTop - 10, "Work", head);
  for (size_t i = 0; i < rows.size(); ++i) {
    const BenchRow& r = rows[i];
    const int y = kTop + static_cast<int>(i) * kRow;
    chart.row_ground(static_cast<int>(i), y, kRow);
    chart.text(16, y + 21, cut(r.what, 44), {.size = 12});
    if (r.share) {
      const int full = std::clamp(static_cast<int>(*r.share * kBarWidth + 0.5), 1, kBarWidth);
      chart.rectangle(kLabel, y + (kRow - kBar) / 2, kBarWidth, kBar, "#e4e7eb", 2);
      chart.rectangle(kLabel, y + (kRow - kBar) / 2, full, kBar,
                      r.kind == "vision"    ? kChartBlue
                      : r.kind == "prefill" ? kChartOrange
                                            : kChartGreen,
                      2);
      chart.text(kLabel + kBarWidth + 8, y + 21, fmt::format("{:.0f} %", 100 * *r.share));
    } else {
      chart.text(kLabel, y + 21, "-", grey);
    }
    chart.text(kLabel + kBarWidth + 60, y + 21, fmt::format("{} {}", decimals(r.median), r.unit));
    chart.text(kLabel + kBarWidth + kValue + 60, y + 21, work(r));
  }
  chart.text(16, height - 16, "Peak memory: " + memory(*this) + ".", grey);
  return chart.finish();
}

Json BenchReport::to_json() const {
  const auto peak = [](const kernels::Peak& p) {
    return Json{{"gops", rounded(p.per_second * 1e-9)}, {"instruction", p.instruction}};
  };
  Json out = {{"model", model},
              {"version", version},
              {"engine", {{"vision", vision}, {"text", text}, {"kv", kv}, {"isa", isa}, {"threads", threads}}},
              {"processor", processor},
              {"repeats", repeats},
              {"limits",
               {{"read_gb_per_s", rounded(limits.read.bytes_per_second * 1e-9)},
                {"read_pattern", limits.read.pattern},
                {"int8", peak(limits.int8)},
                {"int8_wide", peak(limits.int8_wide)},
                {"int8_seven", peak(limits.int8_seven)},
                {"bf16", peak(limits.bf16)},
                {"fp32", peak(limits.fp32)},
                {"attention", peak(limits.attention)}}}};
  for (const char* kind : {"vision", "prefill", "decode", "ttft", "load"}) out[kind] = Json::array();
  for (const BenchRow& r : rows) {
    Json row = r.facts;
    row["unit"] = r.unit;
    row["median"] = rounded(r.median);
    row["min"] = rounded(r.lowest);
    row["max"] = rounded(r.highest);
    if (r.work) row[r.work_unit == "GB/s" ? "gb_per_s" : "gops"] = rounded(*r.work);
    if (r.share) row["limit_share"] = rounded(*r.share);
    out[r.kind].push_back(std::move(row));
  }
  out["peak_mb"] = {{"vision", rounded(vision_mb)}, {"text", rounded(text_mb)}, {"answer", rounded(answer_mb)}};
  return out;
}

}  // namespace qvl::apps
