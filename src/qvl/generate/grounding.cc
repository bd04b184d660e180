#include "qvl/generate/grounding.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "qvl/generate/json_span.h"

namespace qvl::generate {
namespace {

using Kind = GroundedItem::Kind;
using Problem = GroundedItem::Problem;

constexpr double kFullScale = 1000.0;  // a coordinate of 1000 is the far edge of the picture

constexpr std::string_view kBoxKey = "bbox_2d";
constexpr std::string_view kPointKey = "point_2d";
constexpr std::array<std::string_view, 4> kLabelKeys = {"label", "text_content", "text", "name"};

const Json* find(const Json& object, std::string_view key) {
  const auto it = object.find(key);
  return it == object.end() ? nullptr : &*it;
}

// n finite numbers, else nothing.
std::vector<double> numbers(const Json& value, size_t n) {
  if (!value.is_array() || value.size() != n) return {};
  std::vector<double> out;
  for (const Json& v : value) {
    if (!v.is_number() || !std::isfinite(v.get<double>())) return {};
    out.push_back(v.get<double>());
  }
  return out;
}

std::string label_of(const Json& object) {
  for (const std::string_view key : kLabelKeys) {
    const Json* value = find(object, key);
    if (value != nullptr && value->is_string()) return value->get<std::string>();
  }
  return {};
}

// The number that a picture's name ends with ("Picture 2", "2"); nothing when there is none.
std::optional<int64_t> trailing_number(const std::string& text) {
  size_t end = text.find_last_not_of(" \t");
  if (end == std::string::npos) return std::nullopt;
  ++end;
  size_t begin = end;
  while (begin > 0 && text[begin - 1] >= '0' && text[begin - 1] <= '9') --begin;
  int64_t number = 0;
  const auto [ptr, ec] = std::from_chars(text.data() + begin, text.data() + end, number);
  if (begin == end || ec != std::errc()) return std::nullopt;
  return number;
}

class Reader {
 public:
  Reader(std::string_view text, std::span<const GroundedVisual> visuals) : text_(text), visuals_(visuals) {
    for (size_t i = 0; i < visuals.size(); ++i) {
      if (!visuals[i].is_video) pictures_.push_back(static_cast<int64_t>(i));
    }
    if (!pictures_.empty()) {
      default_visual_ = pictures_.back();
    } else if (!visuals.empty()) {
      default_visual_ = static_cast<int64_t>(visuals.size()) - 1;
    }
  }

  Grounding read() {
    read_json();
    read_markers();
    std::stable_sort(out_.items.begin(), out_.items.end(),
                     [](const GroundedItem& a, const GroundedItem& b) { return a.begin < b.begin; });
    return std::move(out_);
  }

 private:
  // Whole JSON values, outermost first; what is no whole value is entered, since a list that was cut off may hold
  // whole objects.
  void read_json() {
    for (size_t at = text_.find_first_of("{[\""); at < text_.size();) {
      const char c = text_[at];
      size_t next = at + 1;
      if (c == '"') {
        count_unread(at);
      } else if (const auto end = json_value_end(text_, at)) {
        const Json value = Json::parse(text_.substr(at, *end - at), nullptr, false);
        if (!value.is_discarded()) {  // a string in it may not be UTF-8
          walk(value, at, *end);
          next = *end;
        }
      }
      at = text_.find_first_of("{[\"", next);
    }
  }

  // A quoted key outside of any whole value.
  void count_unread(size_t at) {
    for (const std::string_view key : {kBoxKey, kPointKey}) {
      if (text_.substr(at + 1, key.size()) == key && text_.substr(at + 1 + key.size(), 1) == "\"") ++out_.unread;
    }
  }

  // Items of one JSON text all stand at that text's place; sorting is stable, so they keep their order.
  void walk(const Json& value, size_t begin, size_t end) {
    if (value.is_object()) {
      if (const Json* box = find(value, kBoxKey)) add_all(value, *box, Kind::kBox, begin, end);
      if (const Json* point = find(value, kPointKey)) add_all(value, *point, Kind::kPoint, begin, end);
      for (const auto& [key, inner] : value.items()) {
        if (key != kBoxKey && key != kPointKey) walk(inner, begin, end);
      }
    } else if (value.is_array()) {
      for (const Json& inner : value) walk(inner, begin, end);
    }
  }

  void add_all(const Json& object, const Json& coordinates, Kind kind, size_t begin, size_t end) {
    const size_t n = kind == Kind::kBox ? 4 : 2;
    const bool list = coordinates.is_array() && !coordinates.empty() && coordinates[0].is_array();
    const size_t count = list ? coordinates.size() : 1;
    for (size_t i = 0; i < count; ++i) {
      GroundedItem item{.kind = kind, .label = label_of(object), .begin = begin, .end = end};
      item.relative = numbers(list ? coordinates[i] : coordinates, n);
      choose_visual(object, item);
      finish(std::move(item));
    }
  }

  void choose_visual(const Json& object, GroundedItem& item) const {
    const Json* image = find(object, "image");
    if (image == nullptr || image->is_null()) {
      item.visual = default_visual_;
      return;
    }
    std::optional<int64_t> number;
    if (image->is_number_integer()) {
      number = image->get<int64_t>();
    } else if (image->is_string()) {
      number = trailing_number(image->get_ref<const std::string&>());
    }
    if (number && *number >= 1 && *number <= static_cast<int64_t>(pictures_.size())) {
      item.visual = pictures_[static_cast<size_t>(*number - 1)];
    }
  }

  // Checks and scales.
  void finish(GroundedItem item) {
    auto problem = [&item](Problem p) { item.problems.push_back(p); };
    const std::vector<double>& r = item.relative;
    if (r.empty()) {
      problem(Problem::kMalformed);
    } else if (std::any_of(r.begin(), r.end(), [](double v) { return v < 0 || v > kFullScale; })) {
      problem(Problem::kOutOfRange);
    }
    std::vector<double> x = r;
    for (double& v : x) v = std::clamp(v, 0.0, kFullScale);
    if (item.kind == Kind::kBox && !r.empty()) {
      if (r[0] > r[2] || r[1] > r[3]) problem(Problem::kSwapped);
      if (x[0] > x[2]) std::swap(x[0], x[2]);
      if (x[1] > x[3]) std::swap(x[1], x[3]);
      if (x[0] == x[2] || x[1] == x[3]) problem(Problem::kDegenerate);
    }
    if (item.visual < 0) {
      problem(Problem::kNoSuchImage);
    } else {
      const GroundedVisual& v = visuals_[static_cast<size_t>(item.visual)];
      for (size_t i = 0; i < x.size(); ++i) {
        item.pixels.push_back(x[i] * static_cast<double>(i % 2 == 0 ? v.width : v.height) / kFullScale);
      }
    }
    out_.items.push_back(std::move(item));
  }

  // <|object_ref_start|>cat<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>
  void read_markers() {
    static constexpr std::string_view kOpen = "<|box_start|>", kClose = "<|box_end|>";
    static constexpr std::string_view kRefOpen = "<|object_ref_start|>", kRefClose = "<|object_ref_end|>";
    size_t label_from = 0;
    for (size_t at = text_.find(kOpen); at != std::string_view::npos;) {
      const size_t inside = at + kOpen.size();
      const size_t close = text_.find(kClose, inside);
      if (close == std::string_view::npos) break;  // cut off
      GroundedItem item{.kind = Kind::kBox, .begin = at, .end = close + kClose.size()};
      item.relative = corners(text_.substr(inside, close - inside));
      const std::string_view before = text_.substr(label_from, at - label_from);
      const size_t ref = before.rfind(kRefOpen);
      if (ref != std::string_view::npos) {
        const std::string_view name = before.substr(ref + kRefOpen.size());
        if (const size_t ref_end = name.find(kRefClose); ref_end != std::string_view::npos) {
          item.label = std::string(name.substr(0, ref_end));
          item.begin = label_from + ref;
        }
      }
      item.visual = default_visual_;
      label_from = item.end;
      at = text_.find(kOpen, item.end);
      finish(std::move(item));
    }
  }

  // "(x1,y1),(x2,y2)", white space allowed anywhere; empty for anything else.
  static std::vector<double> corners(std::string_view text) {
    static constexpr std::string_view kForm = "(n,n),(n,n)";
    std::vector<double> out;
    size_t at = 0;
    auto skip = [&] {
      while (at < text.size() && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t')) ++at;
    };
    for (const char c : kForm) {
      skip();
      if (c != 'n') {
        if (at >= text.size() || text[at] != c) return {};
        ++at;
        continue;
      }
      double value = 0;
      const auto [ptr, ec] = std::from_chars(text.data() + at, text.data() + text.size(), value);
      if (ec != std::errc() || !std::isfinite(value)) return {};
      at = static_cast<size_t>(ptr - text.data());
      out.push_back(value);
    }
    skip();
    return at == text.size() ? out : std::vector<double>{};
  }

  std::string_view text_;
  std::span<const GroundedVisual> visuals_;
  std::vector<int64_t> pictures_;  // indexes of visuals that are no videos
  int64_t default_visual_ = -1;
  Grounding out_;
};

}  // namespace

bool GroundedItem::has(Problem problem) const {
  return std::find(problems.begin(), problems.end(), problem) != problems.end();
}

std::string_view grounding_problem_name(GroundedItem::Problem problem) {
  switch (problem) {
    case Problem::kMalformed:
      return "malformed";
    case Problem::kOutOfRange:
      return "out_of_range";
    case Problem::kSwapped:
      return "swapped";
    case Problem::kDegenerate:
      return "degenerate";
    case Problem::kNoSuchImage:
      return "no_such_image";
  }
  return "unknown";
}

Json Grounding::to_json() const {
  Json list = Json::array();
  for (const GroundedItem& item : items) {
    Json problems = Json::array();
    for (const Problem p : item.problems) problems.push_back(grounding_problem_name(p));
    list.push_back({{"kind", item.kind == Kind::kBox ? "box" : "point"},
                    {"label", item.label},
                    {"relative", item.relative.empty() ? Json() : Json(item.relative)},
                    {"pixels", item.pixels.empty() ? Json() : Json(item.pixels)},
                    {"image", item.visual < 0 ? Json() : Json(item.visual)},
                    {"problems", std::move(problems)}});
  }
  return {{"items", std::move(list)}, {"unread", unread}};
}

Grounding parse_grounding(std::string_view answer, std::span<const GroundedVisual> visuals) {
  return Reader(answer, visuals).read();
}

}  // namespace qvl::generate
