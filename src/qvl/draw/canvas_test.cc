#include "qvl/draw/canvas.h"

#include <gtest/gtest.h>

#include "qvl/draw/marks.h"

namespace qvl::draw {
namespace {

image::RgbImage grey(int64_t width, int64_t height) {
  return {.width = width, .height = height, .rgb = std::vector<uint8_t>(static_cast<size_t>(width * height * 3), 128)};
}

std::vector<Mark> some_of_everything(const Style& style, double width, double height) {
  const Paint paint{palette()[0], contrast_to(palette()[0]), true};
  const Frame frame = frame_of({33.4, 20.7, 270.2, 151}, style, width, height);
  const Typesetter type(style.text);
  const ChipText text{type.number(7), type.line("Quergestreift", 200)};
  const Rect chip{90, 100, 90 + chip_width(text, style), 100 + chip_height(text, style)};
  return {frame_mark(frame, paint, style), cross_mark(64.3, 64.1, paint, style),
          *leader_mark(chip, {10, 10, 20, 20}, paint, style), chip_mark(chip, text, paint, style)};
}

// Cairo cuts lines at the edges of a tile before it computes how much of a pixel they cover, which changes it a
// little.
int largest_difference(const image::RgbImage& a, const image::RgbImage& b) {
  int largest = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) largest = std::max(largest, std::abs(int{a.rgb[i]} - int{b.rgb[i]}));
  return largest;
}

TEST(PaintMarks, TilesLeaveNoSeams) {
  const Style style{.line = 3, .halo = 1, .text = 17};
  const std::vector<Mark> marks = some_of_everything(style, 300, 200);
  image::RgbImage whole = grey(300, 200);
  paint_marks(whole, marks, 4000);
  EXPECT_NE(whole.rgb, grey(300, 200).rgb);
  for (const int64_t tile_px : {1, 7, 64, 299}) {
    image::RgbImage tiled = grey(300, 200);
    paint_marks(tiled, marks, tile_px);
    EXPECT_LE(largest_difference(tiled, whole), 8) << tile_px;
  }
}

// Tiles that no mark covers are not painted, so a mark must not reach beyond what it says.
TEST(PaintMarks, MarksKeepToWhatTheyCover) {
  const Style style{.line = 3, .halo = 1, .text = 17};
  const image::RgbImage before = grey(300, 200);
  for (const Mark& mark : some_of_everything(style, 300, 200)) {
    image::RgbImage after = before;
    paint_marks(after, std::span(&mark, 1));
    int64_t changed = 0;
    for (int64_t y = 0; y < 200; ++y) {
      for (int64_t x = 0; x < 300; ++x) {
        const size_t at = static_cast<size_t>((y * 300 + x) * 3);
        if (std::equal(&before.rgb[at], &before.rgb[at] + 3, &after.rgb[at])) continue;
        ++changed;
        const Rect pixel{static_cast<double>(x), static_cast<double>(y), static_cast<double>(x + 1), static_cast<double>(y + 1)};
        EXPECT_TRUE(std::any_of(mark.covers.begin(), mark.covers.end(), [&](const Rect& r) { return overlap(r, pixel) > 0; }))
            << x << "," << y;
      }
    }
    EXPECT_GT(changed, 50);
  }
}

TEST(PaintMarks, ColoursComeBackAsTheyWere) {
  image::RgbImage picture = grey(16, 16);
  for (size_t i = 0; i < picture.rgb.size(); ++i) picture.rgb[i] = static_cast<uint8_t>(i);
  const image::RgbImage before = picture;
  const Mark nothing{{{0, 0, 16, 16}}, [](cairo_t*) {}};
  paint_marks(picture, std::span(&nothing, 1), 5);
  EXPECT_TRUE(picture.rgb == before.rgb);
}

}  // namespace
}  // namespace qvl::draw
