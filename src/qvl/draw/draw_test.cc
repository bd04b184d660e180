#include "qvl/draw/draw.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <random>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/draw/palette.h"
#include "qvl/draw/style.h"

namespace qvl::draw {
namespace {

using Kind = Annotation::Kind;

image::RgbImage plain(int64_t width, int64_t height, uint8_t value = 128) {
  return {.width = width, .height = height, .rgb = std::vector<uint8_t>(static_cast<size_t>(width * height * 3), value)};
}

Annotation box(double x0, double y0, double x1, double y1, std::string label = "", int number = 0) {
  return {.kind = Kind::kBox, .label = std::move(label), .number = number, .x0 = x0, .y0 = y0, .x1 = x1, .y1 = y1};
}
Annotation point(double x, double y, std::string label = "", int number = 0) {
  return {.kind = Kind::kPoint, .label = std::move(label), .number = number, .x0 = x, .y0 = y};
}

Color pixel(const image::RgbImage& image, int64_t x, int64_t y) {
  const uint8_t* p = &image.rgb[static_cast<size_t>((y * image.width + x) * 3)];
  return {p[0], p[1], p[2]};
}

int64_t count(const image::RgbImage& image, Color color) {
  int64_t n = 0;
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x) n += pixel(image, x, y) == color;
  }
  return n;
}

// Pixels that differ, by region: in `region` and elsewhere.
struct Changed {
  int64_t inside = 0, outside = 0;
};
Changed changed(const image::RgbImage& a, const image::RgbImage& b, double x0, double y0, double x1, double y1) {
  Changed out;
  for (int64_t y = 0; y < a.height; ++y) {
    for (int64_t x = 0; x < a.width; ++x) {
      if (pixel(a, x, y) == pixel(b, x, y)) continue;
      const bool in = static_cast<double>(x) >= x0 && static_cast<double>(x) < x1 && static_cast<double>(y) >= y0 &&
                      static_cast<double>(y) < y1;
      (in ? out.inside : out.outside)++;
    }
  }
  return out;
}

// First and last pixel of the first stretch of `color` along a row or column.
struct Stretch {
  int64_t first = -1, last = -1;
};
template <typename At>
Stretch stretch_of(int64_t size, int64_t from, Color color, At at) {
  Stretch stretch;
  for (int64_t i = from; i < size; ++i) {
    if (at(i) == color) {
      if (stretch.first < 0) stretch.first = i;
      stretch.last = i;
    } else if (stretch.first >= 0) {
      break;
    }
  }
  return stretch;
}

class CaughtWarnings {
 public:
  CaughtWarnings() {
    set_log_sink([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::kWarning) lines.emplace_back(text);
    });
  }
  ~CaughtWarnings() { set_log_sink({}); }
  std::vector<std::string> lines;
};

TEST(Draw, LinesAreWhereTheBoxIs) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> x(20, 300), y(20, 220);
  for (int round = 0; round < 20; ++round) {
    const double x0 = x(random), y0 = y(random), x1 = x0 + 40 + x(random), y1 = y0 + 40 + y(random) / 2;
    const auto image = draw_annotations(plain(640, 480), std::vector{box(x0, y0, x1, y1)});
    const Color color = palette()[0];
    const double line = Style::for_picture(640, 480).line;
    const auto mid_x = static_cast<int64_t>((x0 + x1) / 2), mid_y = static_cast<int64_t>((y0 + y1) / 2);
    const auto along_x = [&](int64_t i) { return pixel(image, i, mid_y); };
    const auto along_y = [&](int64_t i) { return pixel(image, mid_x, i); };
    const auto expect_at = [&](const Stretch& stretch, double edge) {
      ASSERT_GE(stretch.first, 0);
      EXPECT_EQ(static_cast<double>(stretch.last - stretch.first + 1), line);
      EXPECT_NEAR(static_cast<double>(stretch.first + stretch.last + 1) / 2, edge, 0.51);
    };
    expect_at(stretch_of(640, 0, color, along_x), x0);
    expect_at(stretch_of(640, mid_x, color, along_x), x1);
    expect_at(stretch_of(480, 0, color, along_y), y0);
    expect_at(stretch_of(480, mid_y, color, along_y), y1);
  }
}

TEST(Draw, WhatIsInTheBoxStaysAsItIs) {
  const auto before = plain(640, 480), after = draw_annotations(before, std::vector{box(100, 80, 300, 200)});
  const Changed frame = changed(before, after, 95, 75, 305, 205);
  EXPECT_GT(frame.inside, 2 * (200 + 120));
  EXPECT_EQ(frame.outside, 0);
  EXPECT_EQ(changed(before, after, 106, 86, 294, 194).inside, 0);
}

TEST(Draw, AHaloOnBothSidesMakesTheLineVisibleOnItsOwnColour) {
  image::RgbImage picture = plain(640, 480);
  const Color color = palette()[0];
  for (size_t i = 0; i < picture.rgb.size(); i += 3) {
    picture.rgb[i] = color.red, picture.rgb[i + 1] = color.green, picture.rgb[i + 2] = color.blue;
  }
  const auto image = draw_annotations(picture, std::vector{box(100, 80, 300, 200)});
  const auto at = [&](int64_t i) { return pixel(image, i, 140); };
  const Stretch before = stretch_of(640, 0, contrast_to(color), at);
  const Stretch after = stretch_of(640, before.last + 1, contrast_to(color), at);
  EXPECT_LT(before.last, 100);
  EXPECT_GT(after.first, 99);
  EXPECT_LT(after.last, 105);
}

TEST(Draw, CornersMayComeInAnyOrder) {
  const auto picture = plain(640, 480);
  const auto expected = draw_annotations(picture, std::vector{box(100, 80, 300, 200, "a")});
  EXPECT_TRUE(draw_annotations(picture, std::vector{box(300, 200, 100, 80, "a")}).rgb == expected.rgb);
  EXPECT_TRUE(draw_annotations(picture, std::vector{box(100, 200, 300, 80, "a")}).rgb == expected.rgb);
}

TEST(Draw, BoxesAtAndBeyondTheEdgeKeepTheirWholeLine) {
  const double line = Style::for_picture(640, 480).line;
  for (const Annotation& a : {box(0, 0, 640, 480), box(-50, -1e9, 700, 1e9)}) {
    const auto image = draw_annotations(plain(640, 480), std::vector{a});
    for (int64_t i = 0; i < static_cast<int64_t>(line); ++i) {
      EXPECT_EQ(pixel(image, i, 240), palette()[0]);
      EXPECT_EQ(pixel(image, 639 - i, 240), palette()[0]);
      EXPECT_EQ(pixel(image, 320, i), palette()[0]);
      EXPECT_EQ(pixel(image, 320, 479 - i), palette()[0]);
    }
  }
  // Off the picture altogether: at the edge that is closest.
  const auto image = draw_annotations(plain(640, 480), std::vector{box(900, 100, 1000, 200)});
  EXPECT_EQ(pixel(image, 639, 150), palette()[0]);
}

TEST(Draw, APointIsACrossAroundItsPixel) {
  const auto before = plain(640, 480), after = draw_annotations(before, std::vector{point(200.5, 100.5)});
  EXPECT_EQ(pixel(after, 200, 100), palette()[0]);
  const Changed around = changed(before, after, 180, 80, 221, 121);
  EXPECT_GT(around.inside, 100);
  EXPECT_EQ(around.outside, 0);
  // Symmetric: the middle of what changed is the point.
  double sum_x = 0, sum_y = 0, n = 0;
  for (int64_t y = 80; y < 121; ++y) {
    for (int64_t x = 180; x < 221; ++x) {
      if (pixel(after, x, y) == pixel(before, x, y)) continue;
      sum_x += static_cast<double>(x) + 0.5, sum_y += static_cast<double>(y) + 0.5, ++n;
    }
  }
  EXPECT_NEAR(sum_x / n, 200.5, 0.3);
  EXPECT_NEAR(sum_y / n, 100.5, 0.3);
}

TEST(Draw, PointsAtTheCornersAreInThePicture) {
  for (const auto& [x, y] : {std::pair{0.0, 0.0}, {640.0, 0.0}, {0.0, 480.0}, {640.0, 480.0}, {9e9, -9e9}}) {
    const auto image = draw_annotations(plain(640, 480), std::vector{point(x, y, "corner", 1)});
    EXPECT_GT(count(image, palette()[0]), 200);
  }
}

// The chip's ground is the label's colour: as much of it must be there at a corner as in the middle.
TEST(Draw, LabelsAreWholeWhereverTheBoxIs) {
  const auto chip_pixels = [](double x, double y) {
    const auto with = draw_annotations(plain(640, 480), std::vector{box(x, y, x + 40, y + 40, "traffic light", 12)});
    const auto without = draw_annotations(plain(640, 480), std::vector{box(x, y, x + 40, y + 40)});
    return count(with, palette()[0]) - count(without, palette()[0]);
  };
  const int64_t expected = chip_pixels(300, 200);
  EXPECT_GT(expected, 1000);
  for (const auto& [x, y] : {std::pair{0, 0}, {600, 0}, {0, 440}, {600, 440}, {300, 0}, {0, 200}, {600, 200}, {300, 440}}) {
    EXPECT_NEAR(static_cast<double>(chip_pixels(x, y)), static_cast<double>(expected), 0.03 * static_cast<double>(expected))
        << x << "," << y;
  }
}

TEST(Draw, NumbersAndLabelsAreInIt) {
  const auto picture = plain(640, 480);
  const auto drawn = [&](const std::string& label, int number) {
    return draw_annotations(picture, std::vector{box(100, 80, 300, 200, label, number)}).rgb;
  };
  EXPECT_NE(drawn("", 0), drawn("", 1));
  EXPECT_NE(drawn("", 1), drawn("", 2));
  EXPECT_NE(drawn("cat", 1), drawn("", 1));
  EXPECT_NE(drawn("cat", 1), drawn("cat", 0));
  EXPECT_NE(drawn("cat", 1), drawn("cut", 1));
  EXPECT_EQ(drawn("cat", 1), drawn("cat", 1));
  EXPECT_EQ(drawn(" \n", 0), drawn("", 0));
}

TEST(Draw, ALabelHasOneColour) {
  const auto image = draw_annotations(
      plain(640, 480), std::vector{box(50, 80, 150, 160, "cat"), box(250, 80, 350, 160, "dog"), box(450, 80, 550, 160, "Cat")});
  EXPECT_EQ(pixel(image, 50, 120), palette()[0]);
  EXPECT_EQ(pixel(image, 250, 120), palette()[1]);
  EXPECT_EQ(pixel(image, 450, 120), palette()[0]);
}

TEST(Draw, LongLabelsAreCutAndStayInside) {
  const auto before = plain(640, 480);
  const auto after = draw_annotations(before, std::vector{box(100, 80, 300, 200, std::string(100'000, 'W'), 1)});
  const Changed chip = changed(before, after, 95, 40, 500, 205);
  EXPECT_EQ(chip.outside, 0);
  EXPECT_GT(chip.inside, 4000);
}

TEST(Draw, NothingToDrawChangesNothing) {
  const auto picture = plain(64, 48);
  EXPECT_TRUE(draw_annotations(picture, {}).rgb == picture.rgb);
}

TEST(Draw, TinyPictures) {
  for (int64_t width : {1, 2, 3, 7, 16, 40, 200}) {
    for (int64_t height : {1, 2, 5, 23, 200}) {
      const auto w = static_cast<double>(width), h = static_cast<double>(height);
      const std::vector<Annotation> annotations = {box(0, 0, w, h, "everything", 1), point(w / 2, h / 2, "middle", 2),
                                                   box(w / 2, h / 2, w / 2, h / 2, "nothing", 3)};
      const auto image = draw_annotations(plain(width, height), annotations);
      EXPECT_EQ(image.width, width);
      EXPECT_EQ(image.height, height);
      EXPECT_EQ(image.rgb.size(), static_cast<size_t>(width * height * 3));
      EXPECT_NE(image.rgb, plain(width, height).rgb);
    }
  }
}

TEST(Draw, AnEmptyBoxIsADot) {
  EXPECT_GE(count(draw_annotations(plain(640, 480), std::vector{box(200, 100, 200, 100)}), palette()[0]), 9);
}

TEST(Draw, FiveHundredBoxes) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> x(0, 1800), y(0, 1000), side(10, 200);
  std::vector<Annotation> annotations;
  for (int i = 0; i < 500; ++i) {
    const double x0 = x(random), y0 = y(random);
    annotations.push_back(box(x0, y0, x0 + side(random), y0 + side(random), "label " + std::to_string(i % 9), i + 1));
  }
  const auto before = plain(1920, 1080), after = draw_annotations(before, annotations);
  // Full, but the picture is still there.
  const Changed all = changed(before, after, 0, 0, 1920, 1080);
  EXPECT_GT(all.inside, 1920 * 1080 / 10);
  EXPECT_LT(all.inside, 1920 * 1080 * 7 / 10);
}

// Cairo's surfaces end at 32767 pixels.
TEST(Draw, WiderThanASurface) {
  const auto before = plain(40000, 250), after = draw_annotations(before, std::vector{box(39000, 50, 39900, 200, "far", 1)});
  EXPECT_EQ(pixel(after, 39900, 125), palette()[0]);
  EXPECT_EQ(changed(before, after, 38800, 0, 40000, 250).outside, 0);
}

TEST(Draw, UnknownCharactersBecomeNumbersWithAWarning) {
  const CaughtWarnings warnings;
  const auto picture = plain(640, 480);
  const std::string unknown = "\U0010FFFD";  // for private use: in no font
  const auto drawn = draw_annotations(picture, std::vector{box(100, 80, 300, 200, "x" + unknown, 4), box(400, 80, 500, 200, "x" + unknown, 5)});
  ASSERT_EQ(warnings.lines.size(), 1u);
  EXPECT_NE(warnings.lines[0].find("\"x" + unknown + "\""), std::string::npos) << warnings.lines[0];
  EXPECT_NE(warnings.lines[0].find("number 4"), std::string::npos) << warnings.lines[0];
  EXPECT_TRUE(drawn.rgb == draw_annotations(picture, std::vector{box(100, 80, 300, 200, "", 4), box(400, 80, 500, 200, "", 5)}).rgb);
  // One that has no number gets its place.
  EXPECT_TRUE(draw_annotations(picture, std::vector{box(100, 80, 300, 200, unknown)}).rgb ==
              draw_annotations(picture, std::vector{box(100, 80, 300, 200, "", 1)}).rgb);
}

TEST(Draw, BrokenTextIsDrawnAllTheSame) {
  const auto image = draw_annotations(plain(640, 480), std::vector{box(100, 80, 300, 200, "a\xff\n\tb", 1)});
  EXPECT_GT(count(image, palette()[0]), 2500);
}

TEST(Draw, RefusesWhatIsNoCoordinate) {
  const auto picture = plain(64, 48);
  for (const double v : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    try {
      draw_annotations(picture, std::vector{box(1, 2, 3, 4), box(1, v, 3, 4)});
      ADD_FAILURE() << v;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(e.what()).find("coordinate of annotation 2"), std::string::npos) << e.what();
    }
  }
  image::RgbImage broken = picture;
  broken.rgb.pop_back();
  EXPECT_THROW(draw_annotations(broken, {}), Error);
}

TEST(Draw, APhotoOfTwelveMegapixelsTakesAMoment) {
  const auto picture = plain(4032, 3024);
  std::vector<Annotation> annotations;
  for (int i = 0; i < 40; ++i) annotations.push_back(box(90.0 * i, 60.0 * i, 90.0 * i + 400, 60.0 * i + 500, "a car", i + 1));
  const auto start = std::chrono::steady_clock::now();
  const auto image = draw_annotations(picture, annotations);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  RecordProperty("milliseconds", static_cast<int>(seconds * 1000));
  EXPECT_LT(seconds, 5);  // 0.1 s on a quiet machine
  EXPECT_EQ(pixel(image, 90, 310), palette()[0]);
}

}  // namespace
}  // namespace qvl::draw
