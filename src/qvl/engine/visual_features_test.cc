#include "qvl/engine/visual_features.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"

namespace qvl::engine {
namespace {

Tensor filled(Shape shape, float first) {
  Tensor t(DType::kF32, std::move(shape));
  for (float& v : t.as<float>()) v = first++;
  return t;
}

VisionFeatures features(int64_t rows, float first) {
  VisionFeatures f;
  f.merged = filled({rows, 2}, first);
  f.deepstack.push_back(filled({rows, 2}, first + 0.5f));
  return f;
}

constexpr int32_t kImage = 90;
constexpr int32_t kVideo = 91;

TEST(VisualFeatures, FollowSequenceOrderAcrossKinds) {
  const VisionFeatures images = features(2, 100);
  const VisionFeatures videos = features(2, 200);
  const std::vector<int32_t> ids = {1, kVideo, 2, kImage, kImage, kVideo};
  Tensor embeds = Tensor::zeros(DType::kF32, {6, 2});
  const VisualRows v = place_visual_features(ids, kImage, kVideo, &images, &videos, embeds);
  EXPECT_EQ(v.rows, (std::vector<int64_t>{1, 3, 4, 5}));
  const auto e = embeds.as<float>();
  EXPECT_EQ(std::vector<float>(e.begin(), e.end()),
            (std::vector<float>{0, 0, 200, 201, 0, 0, 100, 101, 102, 103, 202, 203}));
  const auto d = v.deepstack[0].as<float>();
  EXPECT_EQ(std::vector<float>(d.begin(), d.end()),
            (std::vector<float>{200.5, 201.5, 100.5, 101.5, 102.5, 103.5, 202.5, 203.5}));
}

TEST(VisualFeatures, CountsMustMatchExactly) {
  const VisionFeatures images = features(2, 0);
  for (const std::vector<int32_t>& ids :
       {std::vector<int32_t>{kImage}, {kImage, kImage, kImage}, {kVideo}, {1, 2}}) {
    Tensor embeds = Tensor::zeros(DType::kF32, {static_cast<int64_t>(ids.size()), 2});
    try {
      place_visual_features(ids, kImage, kVideo, &images, nullptr, embeds);
      FAIL() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kMismatch);
    }
  }
}

TEST(VisualFeatures, TextAloneNeedsNothing) {
  const std::vector<int32_t> ids = {1, 2};
  Tensor embeds = Tensor::zeros(DType::kBF16, {2, 4});
  const VisualRows v = place_visual_features(ids, kImage, kVideo, nullptr, nullptr, embeds);
  EXPECT_TRUE(v.rows.empty());
  EXPECT_TRUE(v.deepstack.empty());
}

}  // namespace
}  // namespace qvl::engine
