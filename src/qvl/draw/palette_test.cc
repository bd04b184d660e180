#include "qvl/draw/palette.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace qvl::draw {
namespace {

// What a colour looks like to people without one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1), as
// CIE L*a*b*.
using Matrix = std::array<std::array<double, 3>, 3>;
constexpr Matrix kEveryCone = {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
constexpr Matrix kProtanopia = {
    {{0.152286, 1.052583, -0.204868}, {0.114503, 0.786281, 0.099216}, {-0.003882, -0.048116, 1.051998}}};
constexpr Matrix kDeuteranopia = {
    {{0.367322, 0.860646, -0.227968}, {0.280085, 0.672501, 0.047413}, {-0.011820, 0.042940, 0.968881}}};
constexpr Matrix kTritanopia = {
    {{1.255528, -0.076749, -0.178779}, {-0.078411, 0.930809, 0.147602}, {0.004733, 0.691367, 0.303900}}};

std::array<double, 3> times(const Matrix& m, const std::array<double, 3>& v) {
  std::array<double, 3> out{};
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) out[i] += m[i][j] * v[j];
  }
  return out;
}

std::array<double, 3> lab(Color color, const Matrix& eyes) {
  std::array<double, 3> rgb = {color.red / 255.0, color.green / 255.0, color.blue / 255.0};
  for (double& v : rgb) v = v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4);
  rgb = times(eyes, rgb);
  for (double& v : rgb) v = std::clamp(v, 0.0, 1.0);
  constexpr Matrix kToXyz = {{{0.4124, 0.3576, 0.1805}, {0.2126, 0.7152, 0.0722}, {0.0193, 0.1192, 0.9505}}};
  std::array<double, 3> xyz = times(kToXyz, rgb);
  constexpr std::array<double, 3> kWhitePoint = {0.9505, 1.0, 1.089};
  for (size_t i = 0; i < 3; ++i) {
    const double t = xyz[i] / kWhitePoint[i];
    xyz[i] = t > 0.008856 ? std::cbrt(t) : 7.787 * t + 16.0 / 116;
  }
  return {116 * xyz[1] - 16, 500 * (xyz[0] - xyz[1]), 200 * (xyz[1] - xyz[2])};
}

TEST(Palette, AllEyesTellItsColoursApart) {
  for (const Matrix& eyes : {kEveryCone, kProtanopia, kDeuteranopia, kTritanopia}) {
    for (size_t i = 0; i < palette().size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        const auto a = lab(palette()[i], eyes), b = lab(palette()[j], eyes);
        // 2.3 is a difference that is just noticed side by side.
        EXPECT_GT(std::hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]), 12) << i << " and " << j;
      }
    }
  }
}

double luminance(Color color) {
  return std::pow((lab(color, kEveryCone)[0] + 16) / 116, 3);
}

TEST(Palette, TextOnItCanBeRead) {
  for (const Color c : palette()) {
    const double a = luminance(c), b = luminance(contrast_to(c));
    // WCAG 2 asks for 4.5.
    EXPECT_GT((std::max(a, b) + 0.05) / (std::min(a, b) + 0.05), 4.5);
  }
  EXPECT_EQ(contrast_to(kWhite), kBlack);
  EXPECT_EQ(contrast_to(kBlack), kWhite);
}

TEST(Palette, OneColourForEachLabel) {
  const std::vector<std::string> labels = {"cat", "dog", "cat", "", "dog"};
  const std::vector<Paint> paints = paints_of(labels);
  EXPECT_EQ(paints[0].color, paints[2].color);
  EXPECT_EQ(paints[1].color, paints[4].color);
  EXPECT_NE(paints[0].color, paints[1].color);
  EXPECT_NE(paints[3].color, paints[0].color);
  EXPECT_NE(paints[3].color, paints[1].color);
}

TEST(Palette, BeginsAgainWithDashes) {
  std::vector<std::string> labels;
  for (int i = 0; i < 20; ++i) labels.push_back(std::to_string(i));
  const std::vector<Paint> paints = paints_of(labels);
  const size_t n = palette().size();
  EXPECT_EQ(paints[0].color, paints[n].color);
  EXPECT_FALSE(paints[n - 1].dashed);
  EXPECT_TRUE(paints[n].dashed);
  EXPECT_FALSE(paints[2 * n].dashed);
}

}  // namespace
}  // namespace qvl::draw
