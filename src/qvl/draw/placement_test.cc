#include "qvl/draw/placement.h"

#include <gtest/gtest.h>

#include <random>

namespace qvl::draw {
namespace {

bool inside(const Rect& r, double width, double height) {
  return r.x0 >= 0 && r.y0 >= 0 && r.x1 <= width && r.y1 <= height;
}

double shared(const std::vector<Rect>& chips) {
  double sum = 0;
  for (size_t i = 0; i < chips.size(); ++i) {
    for (size_t j = 0; j < i; ++j) sum += overlap(chips[i], chips[j]);
  }
  return sum;
}

TEST(PlaceChips, AboveTheLeftCornerWhereThereIsRoom) {
  const Target t{{100, 80, 300, 200}, 60, 20};
  EXPECT_EQ(place_chips(std::span(&t, 1), 640, 480), (std::vector<Rect>{{100, 60, 160, 80}}));
}

TEST(PlaceChips, BelowWhenTheBoxBeginsAtTheTop) {
  const Target t{{100, 0, 300, 200}, 60, 20};
  EXPECT_EQ(place_chips(std::span(&t, 1), 640, 480), (std::vector<Rect>{{100, 200, 160, 220}}));
}

TEST(PlaceChips, InsideWhenTheBoxIsThePicture) {
  const Target t{{0, 0, 640, 480}, 60, 20};
  EXPECT_EQ(place_chips(std::span(&t, 1), 640, 480), (std::vector<Rect>{{0, 0, 60, 20}}));
}

TEST(PlaceChips, EveryCornerKeepsItsChipInside) {
  for (const Rect& shape : {Rect{0, 0, 9, 9}, {631, 0, 640, 9}, {0, 471, 9, 480}, {631, 471, 640, 480}}) {
    const Target t{shape, 200, 30};
    const Rect chip = place_chips(std::span(&t, 1), 640, 480)[0];
    EXPECT_TRUE(inside(chip, 640, 480));
    EXPECT_EQ(overlap(chip, shape), 0);
    EXPECT_EQ(distance(chip, shape), 0);
  }
}

// Boxes in each other: all would have their chips at nearly the same corner.
TEST(PlaceChips, NestedBoxesDoNotShareAPlace) {
  std::vector<Target> targets;
  for (int i = 0; i < 8; ++i) {
    const double d = 4.0 * i;
    targets.push_back({{200 + d, 150 + d, 420 - d, 330 - d}, 90, 22});
  }
  const std::vector<Rect> chips = place_chips(targets, 640, 480);
  EXPECT_EQ(shared(chips), 0);
  for (const Rect& c : chips) EXPECT_TRUE(inside(c, 640, 480));
}

TEST(PlaceChips, TheSameBoxTenTimes) {
  const std::vector<Target> targets(10, {{300, 220, 340, 260}, 80, 20});
  const std::vector<Rect> chips = place_chips(targets, 640, 480);
  EXPECT_EQ(shared(chips), 0);
  for (const Rect& c : chips) EXPECT_LT(distance(c, targets[0].shape), 130);
}

TEST(PlaceChips, RatherOffThanOverASmallNeighbour) {
  // The small box stands where the large one's chip would go.
  const std::vector<Target> targets = {{{100, 100, 300, 300}, 60, 20}, {{95, 80, 125, 96}, 0, 0}};
  const std::vector<Rect> chips = place_chips(targets, 640, 480);
  EXPECT_EQ(overlap(chips[0], targets[1].shape), 0);
  EXPECT_EQ(chips[1], Rect{});
}

TEST(PlaceChips, ManyStayInsideAndMostlyApart) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> x(0, 1900), y(0, 1060), side(5, 150);
  std::vector<Target> targets;
  double area = 0;
  for (int i = 0; i < 200; ++i) {
    const double x0 = x(random), y0 = y(random);
    targets.push_back({{x0, y0, std::min(1920.0, x0 + side(random)), std::min(1080.0, y0 + side(random))}, 70, 20});
    area += 70 * 20;
  }
  const std::vector<Rect> chips = place_chips(targets, 1920, 1080);
  for (const Rect& c : chips) {
    EXPECT_TRUE(inside(c, 1920, 1080));
    EXPECT_EQ(c.width(), 70);
    EXPECT_EQ(c.height(), 20);
  }
  EXPECT_LT(shared(chips), 0.02 * area);
}

TEST(PlaceChips, AChipAsLargeAsThePicture) {
  const Target t{{3, 3, 5, 5}, 64, 20};
  EXPECT_EQ(place_chips(std::span(&t, 1), 64, 20)[0], (Rect{0, 0, 64, 20}));
}

}  // namespace
}  // namespace qvl::draw
