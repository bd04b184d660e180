// Where the chips with the labels go: inside the picture, close to what they name, out of each other's way.
#pragma once

#include <span>
#include <vector>

#include "qvl/draw/geometry.h"

namespace qvl::draw {

// What a chip names, and how large the chip is. A chip without width is not placed.
struct Target {
  Rect shape;  // the outer edge of the drawn box or point
  double chip_width = 0;
  double chip_height = 0;
};

// A rectangle for every target (empty for chips without width), each inside 0..width x 0..height: no chip may be larger
// than that. Around and inside a target several places are tried, then others further off; what counts is how much of
// other chips, of targets, and of how many targets a place would cover. Targets are served in their order and then
// looked at again, knowing the others' places.
std::vector<Rect> place_chips(std::span<const Target> targets, double width, double height);

}  // namespace qvl::draw
