#include "qvl/draw/palette.h"

#include <array>
#include <cmath>
#include <unordered_map>

namespace qvl::draw {
namespace {

constexpr std::array<Color, 7> kPalette = {{
    {0xD5, 0x5E, 0x00},  // vermilion
    {0x56, 0xB4, 0xE9},  // sky blue
    {0xF0, 0xE4, 0x42},  // yellow
    {0x00, 0x9E, 0x73},  // bluish green
    {0xCC, 0x79, 0xA7},  // reddish purple
    {0x00, 0x72, 0xB2},  // blue
    {0xE6, 0x9F, 0x00},  // orange
}};

double linear(uint8_t value) {
  const double v = value / 255.0;
  return v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4);
}

}  // namespace

std::span<const Color> palette() {
  return kPalette;
}

Color contrast_to(Color color) {
  const double luminance = 0.2126 * linear(color.red) + 0.7152 * linear(color.green) + 0.0722 * linear(color.blue);
  return (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) ? kBlack : kWhite;
}

std::vector<Paint> paints_of(std::span<const std::string> labels) {
  std::unordered_map<std::string, size_t> places;
  std::vector<Paint> out;
  out.reserve(labels.size());
  for (const std::string& label : labels) {
    const size_t place = places.try_emplace(label, places.size()).first->second;
    const Color color = kPalette[place % kPalette.size()];
    out.push_back({color, contrast_to(color), place / kPalette.size() % 2 == 1});
  }
  return out;
}

}  // namespace qvl::draw
