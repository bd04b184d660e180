// Boxes and points in an answer: found, checked, scaled to the original picture. Qwen3-VL writes coordinates 0..1000
// relative to the picture, as JSON: {"bbox_2d": [x1, y1, x2, y2], "label": "cat"}, {"point_2d": [x, y], ...}, alone, in
// lists, in ```json fences, several in a text; the small model too (models/small). Read by the server, `qvl run --draw`
// and the page.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"

namespace qvl::generate {

// Width and height of an upright original, as VisualInfo has them.
struct GroundedVisual {
  int64_t width = 0;
  int64_t height = 0;
  bool is_video = false;
};

struct GroundedItem {
  enum class Kind { kBox, kPoint };
  enum class Problem {
    kMalformed,    // not four (two) finite numbers: no coordinates
    kOutOfRange,   // a coordinate below 0 or above 1000: `pixels` are clipped to the picture
    kSwapped,      // x1 > x2 or y1 > y2: `pixels` are ordered
    kDegenerate,   // a box without area in the picture
    kNoSuchImage,  // names a picture that is not there: no pixels
  };

  Kind kind = Kind::kBox;
  std::string label;  // "label", else "text_content", "text", "name"; what <|object_ref_start|> says; else empty
  std::vector<double> relative;  // as the model wrote them: x1, y1, x2, y2 or x, y; empty when malformed
  // The same in pixels of the original, 0..width and 0..height, ordered: no rounding. Empty when malformed or without
  // a picture.
  std::vector<double> pixels;
  int64_t visual = -1;  // index into the visuals; -1: none
  std::vector<Problem> problems;  // in the order of the enumeration; empty: the item passed all checks
  size_t begin = 0, end = 0;      // bytes of the answer where it stands (of the whole JSON object)

  bool has(Problem problem) const;
  // Something can be drawn: there are pixels, and a box has area.
  bool drawable() const { return !pixels.empty() && !has(Problem::kDegenerate); }
};

std::string_view grounding_problem_name(GroundedItem::Problem problem);  // "malformed", "out_of_range", ...

struct Grounding {
  std::vector<GroundedItem> items;  // in the order of the text
  // "bbox_2d" or "point_2d" written somewhere that could not be read as part of a JSON object: an answer that was cut
  // off, or broken JSON. Counted, never guessed.
  int64_t unread = 0;

  // {"items": [{"kind": "box", "label", "relative": [...], "pixels": [...] or null, "image": index or null, "problems":
  // ["swapped"]}], "unread"}
  Json to_json() const;
};

// Which picture an item belongs to: its key "image" (1 is the first picture, as in "Picture 1: "; a number, or a text
// that ends with one); without the key, the only or last picture, or with videos alone the last video. A "bbox_2d" that
// is a list of boxes is that many items. Beside JSON, (x1,y1),(x2,y2) between <|box_start|> and <|box_end|> is read, with
// the label of the <|object_ref_start|>...<|object_ref_end|> before it. Never throws for any text; linear in its length.
Grounding parse_grounding(std::string_view answer, std::span<const GroundedVisual> visuals);

}  // namespace qvl::generate
