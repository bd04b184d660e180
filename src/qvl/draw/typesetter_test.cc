#include "qvl/draw/typesetter.h"

#include <gtest/gtest.h>

#include "qvl/draw/canvas.h"

namespace qvl::draw {
namespace {

// The tests' machine has fonts-dejavu-core (scripts/lib/setup.sh).
TEST(Typesetter, TheMachineHasFonts) {
  EXPECT_TRUE(machine_has_fonts());
}

TEST(CleanLabel, OneLineOfValidText) {
  EXPECT_EQ(clean_label(""), "");
  EXPECT_EQ(clean_label(" \n\t "), "");
  EXPECT_EQ(clean_label("  red\r\n\tcircle "), "red circle");
  EXPECT_EQ(clean_label("a\x01" "b\x7f"), "a b");
  EXPECT_EQ(clean_label("a\u2028b\u0085c"), "a b c");
  EXPECT_EQ(clean_label("\xff" "a\xe4\xbd"), "\uFFFDa\uFFFD\uFFFD");
  EXPECT_EQ(clean_label(std::string("a\0b", 3)), "a\uFFFDb");
  EXPECT_EQ(clean_label("犬 と 猫"), "犬 と 猫");
}

TEST(CleanLabel, EndsAfterTwoHundredCharacters) {
  std::string kanji;
  for (int i = 0; i < 200; ++i) kanji += "犬";
  EXPECT_EQ(clean_label(kanji), kanji);
  EXPECT_EQ(clean_label(kanji + "猫"), kanji + "…");
  EXPECT_EQ(clean_label(kanji + "  \n"), kanji);
  EXPECT_LT(clean_label(std::string(5'000'000, 'x')).size(), 210u);
}

TEST(LabelKey, IgnoresCase) {
  EXPECT_EQ(label_key("Red CIRCLE"), label_key("red circle"));
  EXPECT_EQ(label_key("ÄPFEL"), label_key("äpfel"));
  EXPECT_NE(label_key("red circle"), label_key("red square"));
}

TEST(Typesetter, MeasuresGrowWithTextAndSize) {
  const Typesetter small(12), large(48);
  const auto a = small.line("iii", 1e4), b = small.line("WWWWWW", 1e4), c = large.line("iii", 1e4);
  ASSERT_TRUE(a && b && c);
  EXPECT_GT(b->width, 2 * a->width);
  EXPECT_NEAR(c->width, 4 * a->width, a->width);
  EXPECT_NEAR(c->height, 4 * a->height, a->height);
  EXPECT_GT(a->baseline, 0);
  EXPECT_LT(a->baseline, a->height);
}

TEST(Typesetter, CutsLongLines) {
  const Typesetter type(14);
  const std::string words = "a traffic light that is partly hidden by a tree";
  const auto whole = type.line(words, 1e4), cut = type.line(words, 120);
  ASSERT_TRUE(whole && cut);
  EXPECT_GT(whole->width, 250);
  EXPECT_LE(cut->width, 120);
  EXPECT_GT(cut->width, 80);
  EXPECT_NEAR(cut->height, whole->height, 0.01);
}

TEST(Typesetter, SaysWhenNoFontHasACharacter) {
  const Typesetter type(14);
  EXPECT_TRUE(type.line("grün Ωμ привет", 1e4));
  EXPECT_FALSE(type.line("a\U0010FFFD", 1e4));  // for private use: nobody draws it
  EXPECT_TRUE(type.line("a\u200db", 1e4));      // a joiner needs no picture
}

int64_t dark_pixels(const TextLine& line) {
  image::RgbImage picture{.width = 100, .height = 60, .rgb = std::vector<uint8_t>(100 * 60 * 3, 255)};
  const Mark mark{{{0, 0, 100, 60}}, [&](cairo_t* cr) { line.paint(cr, 10, 10); }};
  paint_marks(picture, std::span(&mark, 1));
  int64_t inside = 0;
  for (int64_t y = 0; y < 60; ++y) {
    for (int64_t x = 0; x < 100; ++x) {
      if (picture.rgb[static_cast<size_t>((y * 100 + x) * 3)] > 128) continue;
      EXPECT_TRUE(x >= 9 && x <= 10 + line.width + 1 && y >= 9 && y <= 10 + line.height + 1) << x << "," << y;
      ++inside;
    }
  }
  return inside;
}

TEST(Typesetter, PaintsWhereItMeasured) {
  const Typesetter type(20);
  for (const char* text : {"Wg", "犬", "|", "fjÅ"}) {
    const auto line = type.line(text, 80);
    if (line) {
      EXPECT_GT(dark_pixels(*line), 10) << text;
    }
  }
  EXPECT_GT(dark_pixels(type.number(805)), 50);
}

}  // namespace
}  // namespace qvl::draw
