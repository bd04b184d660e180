#include "qvl/generate/repeated_frames.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace qvl::generate {
namespace {

TEST(RepeatedFrames, DistinctOnesAreFoundAndSpreadAgain) {
  // Frames of four values: a b a c b.
  const std::vector<float> pixels = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 1, 2, 3, 5, 5, 6, 7, 8};
  const DistinctFrames frames = distinct_frames(pixels, 5);
  EXPECT_TRUE(frames.repeat());
  EXPECT_EQ(frames.first, (std::vector<int64_t>{0, 1, 3}));
  EXPECT_EQ(frames.kind, (std::vector<int64_t>{0, 1, 0, 2, 1}));
  EXPECT_EQ(distinct_pixels(pixels, frames), (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 5}));

  engine::VisionFeatures features;
  features.merged = Tensor(DType::kF32, {6, 1});  // two rows a frame
  for (size_t i = 0; i < 6; ++i) features.merged.as<float>()[i] = static_cast<float>(10 * (i / 2) + i % 2);
  features.deepstack.push_back(features.merged.copy());
  const engine::VisionFeatures all = repeat_features(features, frames);
  const std::vector<float> want = {0, 1, 10, 11, 0, 1, 20, 21, 10, 11};
  EXPECT_EQ(all.merged.shape(), (Shape{10, 1}));
  EXPECT_TRUE(std::ranges::equal(all.merged.as<float>(), want));
  EXPECT_TRUE(std::ranges::equal(all.deepstack.at(0).as<float>(), want));
}

TEST(RepeatedFrames, BitsDecide) {
  const std::vector<float> zeros = {0.0F, 0.0F, -0.0F, 0.0F};
  EXPECT_FALSE(distinct_frames(zeros, 2).repeat());
  EXPECT_FALSE(distinct_frames(zeros, 1).repeat());
}

}  // namespace
}  // namespace qvl::generate
