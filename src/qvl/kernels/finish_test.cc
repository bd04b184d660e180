// The last step of every runnable table against double: activations over the whole range that models reach,
// exactly the values that the vector formulas compute (sums are handed in, nothing is accumulated).
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

class FinishTest : public testing::TestWithParam<std::string_view> {
 protected:
  const LinearKernels& kernels() { return *table_by_name(GetParam()).linear; }

  std::vector<float> finish(Activation activation, const std::vector<float>& sums) {
    std::vector<float> y(sums.size());
    FinishArgs args{};
    args.c = sums.data();
    args.ldc = args.y_stride = args.cols = static_cast<int64_t>(sums.size());
    args.rows = 1;
    args.activation = activation;
    args.y = y.data();
    kernels().finish_f32(args);
    return y;
  }

  std::vector<float> silu(const std::vector<float>& sums) {
    const std::vector<float> ones(sums.size(), 1.0f);
    std::vector<float> y(sums.size());
    FinishArgs args{};
    args.c = sums.data();
    args.c2 = ones.data();
    args.ldc = args.y_stride = args.cols = static_cast<int64_t>(sums.size());
    args.rows = 1;
    args.y = y.data();
    kernels().finish_swiglu_f32(args);
    return y;
  }
};

std::vector<float> range(float limit) {
  std::vector<float> v;
  constexpr int kSteps = 200001;
  for (int i = 0; i < kSteps; ++i) {
    v.push_back(limit * (2.0f * static_cast<float>(i) / static_cast<float>(kSteps - 1) - 1.0f));
  }
  for (float tiny = 1e-38f; tiny < 1.0f; tiny *= 3.0f) {
    v.push_back(tiny);
    v.push_back(-tiny);
  }
  return v;
}

// |got - want| <= absolute * |v| + relative * |want|: near the origin and for positive v the result is about
// v, so both terms are a few float roundings; for negative v the result shrinks and the rounding of the
// exponent's argument shows.
void expect_close(const std::vector<float>& v, const std::vector<float>& got, double (*want)(double),
                  double absolute, double relative) {
  double worst = 0;
  float at = 0;
  for (size_t i = 0; i < v.size(); ++i) {
    const double w = want(v[i]);
    // Denormal results carry fewer bits.
    const double bound = absolute * std::abs(static_cast<double>(v[i])) + relative * std::abs(w) + 3e-45;
    const double ratio = std::abs(got[i] - w) / bound;
    if (!(ratio <= worst)) {
      worst = ratio;
      at = v[i];
    }
  }
  EXPECT_LE(worst, 1.0) << "at " << at;
}

double exact_gelu_tanh(double v) {
  // x / (1 + e^-2u): the same function without cancellation.
  return v / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
}
double exact_gelu_erf(double v) {
  return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
}
double exact_silu(double v) {
  return v / (1 + std::exp(-v));
}

TEST_P(FinishTest, GeluTanhMatchesDouble) {
  const std::vector<float> near = range(6.5f);
  expect_close(near, finish(Activation::kGeluTanh, near), exact_gelu_tanh, 1e-9, 3e-6);
  const std::vector<float> far = range(100.0f);
  expect_close(far, finish(Activation::kGeluTanh, far), exact_gelu_tanh, 3e-8, 3e-7);
}

TEST_P(FinishTest, GeluErfMatchesDouble) {
  const std::vector<float> near = range(6.5f);
  expect_close(near, finish(Activation::kGeluErf, near), exact_gelu_erf, 1e-9, 3e-6);
  const std::vector<float> far = range(100.0f);
  expect_close(far, finish(Activation::kGeluErf, far), exact_gelu_erf, 3e-8, 3e-7);
}

TEST_P(FinishTest, SiluMatchesDouble) {
  const std::vector<float> near = range(20.0f);
  expect_close(near, silu(near), exact_silu, 1e-12, 4e-7);
  const std::vector<float> far = range(1000.0f);
  expect_close(far, silu(far), exact_silu, 1e-12, 4e-7);
}

TEST_P(FinishTest, ActivationsKeepNanAndLargeValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<float> v = {nan, inf, 3e38f, -1e30f, 0.0f, -0.0f};
  for (Activation activation : {Activation::kGeluTanh, Activation::kGeluErf}) {
    const std::vector<float> y = finish(activation, v);
    EXPECT_TRUE(std::isnan(y[0]));
    EXPECT_EQ(y[1], inf);
    EXPECT_EQ(y[2], 3e38f);
    EXPECT_EQ(y[3], 0.0f);
    EXPECT_EQ(y[4], 0.0f);
    EXPECT_EQ(y[5], 0.0f);
  }
  const std::vector<float> y = silu(v);
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[1], inf);
  EXPECT_EQ(y[2], 3e38f);
  EXPECT_EQ(y[3], 0.0f);
}

TEST_P(FinishTest, Bf16StoresEveryRoundingCaseLikeTheScalarConversion) {
  // Every upper half with the lower halves that decide: below, at and above the middle.
  std::vector<float> v;
  for (uint32_t high = 0; high < 0x10000u; ++high) {
    for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      v.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  std::vector<BFloat16> y(v.size());
  FinishArgs args{};
  args.c = v.data();
  args.ldc = args.y_stride = args.cols = static_cast<int64_t>(v.size());
  args.rows = 1;
  args.activation = Activation::kNone;
  args.y = y.data();
  kernels().finish_bf16(args);
  for (size_t i = 0; i < v.size(); ++i) {
    ASSERT_EQ(y[i].bits, to_bfloat16(v[i]).bits) << std::hex << std::bit_cast<uint32_t>(v[i]);
  }
}

std::vector<std::string_view> table_names() {
  return {runnable_tables().begin(), runnable_tables().end()};
}

INSTANTIATE_TEST_SUITE_P(Tables, FinishTest, testing::ValuesIn(table_names()),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace qvl::kernels
