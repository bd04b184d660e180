#include "qvl/generate/vision_gate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

// Features that follow from the pixels, and a share of noise of their size in one output.
class FakeVision final : public engine::VisionStage {
 public:
  explicit FakeVision(double noise = 0, size_t noisy_output = 0, size_t levels = 2)
      : noise_(noise), noisy_output_(noisy_output), levels_(levels) {}

  engine::VisionFeatures encode(std::span<const float> pixels, std::span<const image::Grid> grids,
                                const engine::StageHooks& hooks) const override {
    if (hooks.progress && !hooks.progress(0, 1)) fail(ErrorCode::kCancelled, "vision", "cancelled");
    engine::VisionFeatures out;
    out.merged = output(pixels, grids, 0);
    for (size_t i = 0; i < levels_; ++i) out.deepstack.push_back(output(pixels, grids, i + 1));
    return out;
  }

 private:
  Tensor output(std::span<const float> pixels, std::span<const image::Grid> grids, size_t index) const {
    const int64_t rows = grids[0].patches() / 4, columns = 8;
    Tensor t(DType::kF32, {rows, columns});
    for (size_t i = 0; i < t.as<float>().size(); ++i) {
      const float value = std::sin(static_cast<float>(i * (index + 1))) + pixels[i % pixels.size()];
      const double error = index == noisy_output_ ? noise_ * (i % 2 == 0 ? 1 : -1) : 0;
      t.as<float>()[i] = value + static_cast<float>(error);
    }
    return t;
  }

  double noise_;
  size_t noisy_output_;
  size_t levels_;
};

VisionGate measure(const FakeVision& reference, const FakeVision& candidate, const engine::ProgressFn& progress = {}) {
  const engine::VisionStage* const candidates[] = {&candidate};
  return measure_vision_gates(reference, candidates, {}, vision_gate_pictures(), nullptr, progress).at(0);
}

TEST(VisionGate, EqualStagesPass) {
  const VisionGate gate = measure(FakeVision(), FakeVision());
  EXPECT_TRUE(gate.passed());
  EXPECT_GE(gate.cosine, 1 - 1e-12);
  EXPECT_EQ(gate.pictures, 3);
  EXPECT_GT(gate.patches, 1000);
}

TEST(VisionGate, NoiseInOneOutputDecidesAndIsNamed) {
  for (const size_t output : {0u, 1u, 2u}) {
    const VisionGate little = measure(FakeVision(), FakeVision(0.01, output));
    EXPECT_TRUE(little.passed()) << little.cosine;
    EXPECT_LT(little.cosine, 1);
    const VisionGate much = measure(FakeVision(), FakeVision(0.1, output));
    EXPECT_FALSE(much.passed()) << much.cosine;
    EXPECT_GT(much.cosine, 0.9);
    const std::string name = output == 0 ? "merged" : "deepstack" + std::to_string(output - 1);
    EXPECT_EQ(much.worst.substr(0, name.size()), name);
    const Json json = much.to_json();
    EXPECT_EQ(json["passed"], false);
    EXPECT_EQ(json["limit"], 0.999);
    EXPECT_EQ(json["cosine"], much.cosine);
  }
}

TEST(VisionGate, CandidatesAreMeasuredEachForItself) {
  const FakeVision reference, equal, little(0.01, 0), much(0.1, 2);
  const engine::VisionStage* const candidates[] = {&much, &equal, &little};
  const std::vector<VisionGate> gates = measure_vision_gates(reference, candidates, {}, vision_gate_pictures(), nullptr);
  ASSERT_EQ(gates.size(), 3u);
  EXPECT_EQ(gates[0].to_json(), measure(reference, much).to_json());
  EXPECT_EQ(gates[1].to_json(), measure(reference, equal).to_json());
  EXPECT_EQ(gates[2].to_json(), measure(reference, little).to_json());
}

TEST(VisionGate, WhatIsNotFiniteDoesNotPass) {
  EXPECT_EQ(measure(FakeVision(), FakeVision(std::numeric_limits<double>::quiet_NaN(), 1)).cosine, 0);
  EXPECT_FALSE(measure(FakeVision(), FakeVision(std::numeric_limits<double>::infinity())).passed());
}

TEST(VisionGate, RefusesStagesThatDoNotFitTogetherAndNoPictures) {
  EXPECT_THROW(measure(FakeVision(), FakeVision(0, 0, 1)), Error);
  EXPECT_THROW(measure_vision_gates(FakeVision(), {}, {}, {}, nullptr), Error);
}

TEST(VisionGate, StopsWhenAskedBetweenPicturesAndInThem) {
  for (const int stop_at : {0, 1, 2, 5}) {
    int calls = 0;
    EXPECT_THROW(measure(FakeVision(), FakeVision(), [&](int64_t, int64_t) { return calls++ < stop_at; }), Error);
  }
}

}  // namespace
}  // namespace qvl::generate
