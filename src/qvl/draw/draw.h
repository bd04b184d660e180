// Boxes and points drawn on a picture, each with its label: what an answer says about places, made visible. The only
// room that sees Cairo, Pango and Fontconfig.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "qvl/image/decode.h"

namespace qvl::draw {

struct Annotation {
  enum class Kind : uint8_t { kBox, kPoint };
  Kind kind = Kind::kBox;
  std::string label;  // UTF-8, any length; may be empty
  int number = 0;     // its place in the answer, from 1, shown before the label; 0: not shown
  // Pixels of the picture from its upper left corner (pixel i covers i..i+1). A box has two opposite corners in any
  // order, a point x0, y0 alone. What lies outside is drawn at the picture's edge.
  double x0 = 0, y0 = 0, x1 = 0, y1 = 0;
};

// The picture with all annotations on it, in the same size. Lines and letters grow with the picture; a label has one
// colour (of a palette that colour-blind people can tell apart), and chips with number and label stay inside the
// picture and out of each other's way as far as there is room. A label is cut ("…") when it is too long; where chips
// would hide most of a picture they carry numbers alone, and a picture too small for letters gets none.
//
// Letters come from the machine's fonts. Where a label has characters that no font has, its number stands there
// instead, and a warning is logged that names both; without any font all chips carry numbers, drawn without one, and a
// warning says so.
//
// Throws kInvalidArgument for coordinates that are no numbers or pixels that are not there, kLimit when memory is
// short.
image::RgbImage draw_annotations(const image::RgbImage& picture, std::span<const Annotation> annotations);

}  // namespace qvl::draw
