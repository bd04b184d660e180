#include "qvl/draw/draw.h"

#include <optional>
#include <set>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/draw/marks.h"
#include "qvl/draw/placement.h"

namespace qvl::draw {
namespace {

// Shares of the picture that chips, or lines, may hide. Above the first letters shrink and lines get thinner, above the
// second labels go.
constexpr double kComfortable = 0.25;
constexpr double kMost = 0.5;

void check(const image::RgbImage& picture, std::span<const Annotation> annotations) {
  if (picture.width < 1 || picture.height < 1 ||
      picture.rgb.size() != static_cast<size_t>(picture.width * picture.height * 3)) {
    fail(ErrorCode::kInvalidArgument, "draw", "pixels", "height x width x 3 bytes",
         fmt::format("{} bytes for {}x{}", picture.rgb.size(), picture.width, picture.height));
  }
  for (size_t i = 0; i < annotations.size(); ++i) {
    const Annotation& a = annotations[i];
    for (const double v : {a.x0, a.y0, a.x1, a.y1}) {
      if (!std::isfinite(v)) {
        fail(ErrorCode::kInvalidArgument, "draw", fmt::format("coordinate of annotation {}", i + 1), "a number",
             fmt::format("{}", v));
      }
    }
  }
}

// Labels as they are shown, each in its paint.
struct Labels {
  std::vector<std::string> text;
  std::vector<Paint> paints;

  explicit Labels(std::span<const Annotation> annotations) {
    std::vector<std::string> keys;
    for (const Annotation& a : annotations) {
      text.push_back(clean_label(a.label));
      keys.push_back(label_key(text.back()));
    }
    paints = paints_of(keys);
  }
};

enum class Words { kAll, kNumbers };

// What the chips say.
struct Chips {
  std::vector<ChipText> texts;
  std::vector<std::pair<int, std::string>> unknown;  // labels that no font can show, and the numbers instead
  double area = 0;
};

Chips make_chips(std::span<const Annotation> annotations, const Labels& labels, const Style& style, double width,
                 double height, Words words) {
  const Typesetter type(style.text);
  // A chip over most of the picture's height would hide what it names.
  const auto fits = [&](const ChipText& text) {
    return chip_width(text, style) <= width && chip_height(text, style) <= height / 2;
  };
  Chips chips;
  for (size_t i = 0; i < annotations.size(); ++i) {
    const std::string& label = labels.text[i];
    int number = annotations[i].number;
    ChipText text;
    if (number > 0) text.number = type.number(number);
    // Wide enough for a few words, without running across a large picture.
    const double room = width - chip_width(text, style) - 2 * style.text;
    const double longest = std::min(room, std::max(0.45 * width, 12 * style.text));
    if (!label.empty() && words == Words::kAll && longest >= 2 * style.text) {
      text.label = type.line(label, longest);
      if (!text.label) {
        if (number <= 0) number = static_cast<int>(i) + 1;
        text.number = type.number(number);
        chips.unknown.emplace_back(number, label);
      }
    }
    if (!fits(text)) text.label.reset();
    if (!fits(text)) text.number.reset();
    chips.area += chip_width(text, style) * chip_height(text, style);
    chips.texts.push_back(std::move(text));
  }
  return chips;
}

void warn_about(const std::vector<std::pair<int, std::string>>& unknown) {
  if (unknown.empty()) return;
  if (!machine_has_fonts()) {
    log_message(LogLevel::kWarning,
                "no font on this machine: labels are drawn as numbers (install fonts-dejavu-core or another font)");
    return;
  }
  std::set<std::string> told;
  for (const auto& [number, label] : unknown) {
    if (!told.insert(label).second) continue;
    log_message(LogLevel::kWarning,
                fmt::format("no font on this machine has all characters of the label \"{}\": it is drawn as its number {} "
                            "(fonts-noto-core and fonts-noto-cjk have most)",
                            label, number));
  }
}

// Thinner lines where those of all boxes would hide too much of the picture.
void thin_lines(std::span<const Annotation> annotations, Style& style, double width, double height) {
  double length = 0;
  for (const Annotation& a : annotations) {
    if (a.kind != Annotation::Kind::kBox) continue;
    length += 2 * (std::min(std::abs(a.x1 - a.x0), width) + std::min(std::abs(a.y1 - a.y0), height));
  }
  const double fitting = kComfortable * width * height / std::max(1.0, length) - 2;  // a halo of 1 on both sides
  if (fitting >= style.line) return;
  style.line = std::max(1.0, std::min(style.line, std::floor(fitting)));
  style.halo = 1;
}

// Shrinks letters and then drops labels where chips would hide too much of the picture.
Chips fitting_chips(std::span<const Annotation> annotations, const Labels& labels, Style& style, double width,
                    double height) {
  const double picture = width * height;
  Chips chips = make_chips(annotations, labels, style, width, height, Words::kAll);
  if (chips.area > kComfortable * picture && style.text > kSmallestText) {
    style.text = std::max(kSmallestText, style.text * std::sqrt(kComfortable * picture / chips.area));
    chips = make_chips(annotations, labels, style, width, height, Words::kAll);
  }
  const bool numbered =
      std::all_of(annotations.begin(), annotations.end(), [](const Annotation& a) { return a.number > 0; });
  if (chips.area > kMost * picture && annotations.size() > 1 && numbered) {
    chips = make_chips(annotations, labels, style, width, height, Words::kNumbers);
  }
  return chips;
}

}  // namespace

image::RgbImage draw_annotations(const image::RgbImage& picture, std::span<const Annotation> annotations) {
  check(picture, annotations);
  image::RgbImage out = picture;
  if (annotations.empty()) return out;
  const auto width = static_cast<double>(picture.width), height = static_cast<double>(picture.height);
  Style style = Style::for_picture(picture.width, picture.height);
  thin_lines(annotations, style, width, height);
  const Labels labels(annotations);
  Chips chips = fitting_chips(annotations, labels, style, width, height);
  warn_about(chips.unknown);

  std::vector<Mark> marks;
  std::vector<Target> targets;
  for (size_t i = 0; i < annotations.size(); ++i) {
    const Annotation& a = annotations[i];
    const auto inside_x = [&](double x) { return std::clamp(x, 0.0, width); };
    const auto inside_y = [&](double y) { return std::clamp(y, 0.0, height); };
    Target target;
    if (a.kind == Annotation::Kind::kPoint) {
      const double x = inside_x(a.x0), y = inside_y(a.y0);
      target.shape = cross_of(x, y, style);
      marks.push_back(cross_mark(x, y, labels.paints[i], style));
    } else {
      const Rect box{inside_x(std::min(a.x0, a.x1)), inside_y(std::min(a.y0, a.y1)), inside_x(std::max(a.x0, a.x1)),
                     inside_y(std::max(a.y0, a.y1))};
      const Frame frame = frame_of(box, style, width, height);
      target.shape = frame.outer.grown(style.halo);
      marks.push_back(frame_mark(frame, labels.paints[i], style));
    }
    target.chip_width = chip_width(chips.texts[i], style);
    target.chip_height = chip_height(chips.texts[i], style);
    targets.push_back(target);
  }
  // Chips lie over all frames: a label that can be read is worth more than a whole line.
  const std::vector<Rect> places = place_chips(targets, width, height);
  for (size_t i = 0; i < places.size(); ++i) {
    if (chips.texts[i].empty()) continue;
    if (auto leader = leader_mark(places[i], targets[i].shape, labels.paints[i], style)) marks.push_back(*std::move(leader));
  }
  for (size_t i = 0; i < places.size(); ++i) {
    if (chips.texts[i].empty()) continue;
    marks.push_back(chip_mark(places[i], std::move(chips.texts[i]), labels.paints[i], style));
  }
  paint_marks(out, marks);
  return out;
}

}  // namespace qvl::draw
