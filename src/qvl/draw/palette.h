// Colours of labels.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace qvl::draw {

struct Color {
  uint8_t red = 0, green = 0, blue = 0;
  bool operator==(const Color&) const = default;
};

inline constexpr Color kBlack{0, 0, 0};
inline constexpr Color kWhite{255, 255, 255};

// Okabe and Ito's colours without black, which people with any kind of colour vision can tell apart.
std::span<const Color> palette();

// Black or white, whichever contrasts more with `color` (WCAG 2 relative luminance): for text on it and halos around
// it.
Color contrast_to(Color color);

struct Paint {
  Color color;
  Color contrast;
  bool dashed = false;  // the palette is used up and begins again
};

// One paint for each label; equal labels get equal ones. Colours are given in the order of first appearance.
std::vector<Paint> paints_of(std::span<const std::string> labels);

}  // namespace qvl::draw
