// What is painted: frames, points, chips with their text, lines from a chip to what it names.
#pragma once

#include <optional>

#include "qvl/draw/canvas.h"
#include "qvl/draw/geometry.h"
#include "qvl/draw/palette.h"
#include "qvl/draw/style.h"
#include "qvl/draw/typesetter.h"

namespace qvl::draw {

// The line of a box on whole pixels: its outer edge, and its inner one (empty where the box is all line). Both inside
// 0..width x 0..height; the middle of the line is within a pixel of the box's edge unless that would leave the picture.
struct Frame {
  Rect outer;
  Rect inner;
};
Frame frame_of(const Rect& box, const Style& style, double width, double height);
// The cross of a point.
Rect cross_of(double x, double y, const Style& style);

Mark frame_mark(const Frame& frame, const Paint& paint, const Style& style);
Mark cross_mark(double x, double y, const Paint& paint, const Style& style);
// From the chip to the closest place of `shape`, where they do not touch.
std::optional<Mark> leader_mark(const Rect& chip, const Rect& shape, const Paint& paint, const Style& style);

// The text of a chip: number, label, or both.
struct ChipText {
  std::optional<TextLine> number;
  std::optional<TextLine> label;

  bool empty() const { return !number && !label; }
};
// Size of a chip on whole pixels; 0 for an empty one.
double chip_width(const ChipText& text, const Style& style);
double chip_height(const ChipText& text, const Style& style);
// `place` is on whole pixels and as large as chip_width() and chip_height() say.
Mark chip_mark(const Rect& place, ChipText text, const Paint& paint, const Style& style);

}  // namespace qvl::draw
