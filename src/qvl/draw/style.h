// Sizes of lines and letters for a picture.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace qvl::draw {

// Letters below this many pixels cannot be read.
inline constexpr double kSmallestText = 11;

struct Style {
  double line = 1;  // whole pixels, as is the halo on either side of it
  double halo = 1;
  double text = kSmallestText;  // em

  // A picture is looked at in a window of about a thousand pixels whatever its size, so everything grows with it, a
  // little slower for small ones.
  static Style for_picture(int64_t width, int64_t height) {
    const double side = std::sqrt(static_cast<double>(width) * static_cast<double>(height));
    const auto shorter = static_cast<double>(std::min(width, height));
    Style s;
    s.line = std::max(1.0, std::min(std::round(1.3 + side / 450), std::floor(shorter / 16)));
    s.halo = std::max(1.0, std::round(s.line / 3));
    s.text = std::max(kSmallestText, std::min(7.5 + side / 65, shorter / 6));
    return s;
  }
};

}  // namespace qvl::draw
