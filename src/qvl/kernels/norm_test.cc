// layer_norm and rms_norm on every table that runs here, against plain double loops, and their rounding
// contract.
#include "qvl/base/error.h"
#include "qvl/kernels/attention_testing.h"

namespace qvl::kernels {
namespace {

using testing::Activations;
using testing::kUnit;
using testing::VariantTest;

class Norm : public VariantTest {
 protected:
  // In units of the result: float statistics over n elements are good to about (8 + sqrt(n)/4) u in 16 or
  // more partial sums; the rest is a handful of roundings.
  double relative(int64_t n) const { return kUnit * (12 + 0.25 * std::sqrt(static_cast<double>(n))); }

  void check_layer_norm(int64_t rows, int64_t cols, float spread, float offset, float eps, bool in_place) {
    Activations x(dtype(), rows, cols, 3), y(dtype(), rows, cols, 1);
    testing::fill_normal(x, 1, spread, offset);
    const auto weight = testing::random_floats(cols, 2, 0.2f, 1.0f, dtype());
    const auto bias = testing::random_floats(cols, 3, 0.2f, 0.0f, dtype());
    const Activations in = x.copy();
    layer_norm(context(), x.matrix(), weight.data(), bias.data(), eps, (in_place ? x : y).matrix());
    const Activations& out = in_place ? x : y;
    for (int64_t r = 0; r < rows; ++r) {
      double mean = 0, variance = 0, magnitude = 0;
      for (int64_t c = 0; c < cols; ++c) {
        mean += in.at(r, c);
        magnitude = std::max(magnitude, std::abs(static_cast<double>(in.at(r, c))));
      }
      mean /= static_cast<double>(cols);
      for (int64_t c = 0; c < cols; ++c) variance += (in.at(r, c) - mean) * (in.at(r, c) - mean);
      variance /= static_cast<double>(cols);
      const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(eps));
      for (int64_t c = 0; c < cols; ++c) {
        const auto i = static_cast<size_t>(c);
        const double scaled = (in.at(r, c) - mean) * inverse * weight[i];
        const double expected = scaled + bias[i];
        // The mean is off by rounding of sums of the raw values, which a large offset makes visible.
        double tolerance =
            relative(cols) * (std::abs(scaled) + std::abs(bias[i]) + magnitude * inverse * weight[i]);
        if (bf16()) tolerance += std::abs(expected) / 256;
        ASSERT_NEAR(out.at(r, c), expected, tolerance + 1e-37)
            << rows << " x " << cols << " at " << r << ", " << c;
      }
    }
  }

  void check_rms_norm(int64_t rows, int64_t cols, float spread, float eps, bool in_place) {
    Activations x(dtype(), rows, cols, 3), y(dtype(), rows, cols, 1);
    testing::fill_normal(x, 4, spread);
    const auto weight = testing::random_floats(cols, 5, 0.2f, 1.0f, dtype());
    const Activations in = x.copy();
    rms_norm(context(), x.matrix(), weight.data(), eps, (in_place ? x : y).matrix());
    const Activations& out = in_place ? x : y;
    for (int64_t r = 0; r < rows; ++r) {
      double mean = 0;
      for (int64_t c = 0; c < cols; ++c) mean += static_cast<double>(in.at(r, c)) * in.at(r, c);
      const double inverse = 1.0 / std::sqrt(mean / static_cast<double>(cols) + static_cast<double>(eps));
      for (int64_t c = 0; c < cols; ++c) {
        const double normalised = in.at(r, c) * inverse, w = weight[static_cast<size_t>(c)];
        if (!bf16()) {
          ASSERT_NEAR(out.at(r, c), w * normalised, relative(cols) * std::abs(w * normalised) + 1e-37)
              << rows << " x " << cols << " at " << r << ", " << c;
          continue;
        }
        // Rounded, multiplied, rounded. Where the float value before the first rounding may fall on either
        // side of a tie, both results are right.
        const double slack = relative(cols) * std::abs(normalised);
        const float low =
            round_to_bf16(round_to_bf16(static_cast<float>(normalised - slack)) * static_cast<float>(w));
        const float high =
            round_to_bf16(round_to_bf16(static_cast<float>(normalised + slack)) * static_cast<float>(w));
        const float got = out.at(r, c);
        ASSERT_TRUE(got == low || got == high)
            << got << " expected " << low << " or " << high << " at " << r << ", " << c;
      }
    }
  }
};

TEST_P(Norm, LayerNorm) {
  for (int64_t cols : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 100, 127, 1024, 1152, 4096}) {
    check_layer_norm(3, cols, 1.0f, 0.0f, 1e-6f, false);
  }
  check_layer_norm(100, 1024, 3.0f, 0.5f, 1e-6f, true);
}

TEST_P(Norm, LayerNormOfLargeOffsetsAndValues) {
  check_layer_norm(4, 1024, 1.0f, 100.0f, 1e-6f, false);
  check_layer_norm(4, 515, 1e4f, 0.0f, 1e-6f, false);
  check_layer_norm(4, 64, 1e-4f, 0.0f, 1e-6f, false);  // eps decides
}

TEST_P(Norm, LayerNormOfAConstantRowIsTheBias) {
  Activations x(dtype(), 1, 37), y(dtype(), 1, 37);
  for (int64_t c = 0; c < 37; ++c) x.set(0, c, 2.0f);
  const std::vector<float> weight(37, 3.0f), bias(37, 0.5f);
  layer_norm(context(), x.matrix(), weight.data(), bias.data(), 1e-6f, y.matrix());
  for (int64_t c = 0; c < 37; ++c) ASSERT_EQ(y.at(0, c), 0.5f);
}

TEST_P(Norm, RmsNorm) {
  for (int64_t cols : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 100, 127, 128, 2048, 2560, 4096}) {
    check_rms_norm(3, cols, 1.0f, 1e-6f, false);
  }
  check_rms_norm(100, 2560, 3.0f, 1e-6f, true);
  check_rms_norm(4, 515, 1e4f, 1e-6f, false);
  check_rms_norm(4, 64, 1e-4f, 1e-6f, false);  // eps decides
}

// A row's bits do not depend on its neighbours or on threads.
TEST_P(Norm, RowsAreIndependent) {
  const int64_t rows = 70, cols = 1027;
  Activations x(dtype(), rows, cols), together(dtype(), rows, cols), single(dtype(), rows, cols);
  testing::fill_normal(x, 6);
  const auto weight = testing::random_floats(cols, 7, 0.2f, 1.0f, dtype());
  const auto bias = testing::random_floats(cols, 8, 0.2f, 0.0f, dtype());
  ThreadPool one(1), three(3);
  const Context ctx = context();
  layer_norm({&three, ctx.table}, x.matrix(), weight.data(), bias.data(), 1e-6f, together.matrix());
  for (int64_t r = 0; r < rows; ++r) {
    layer_norm({&one, ctx.table}, x.view(r, 1, 0, cols), weight.data(), bias.data(), 1e-6f,
               single.view(r, 1, 0, cols));
  }
  EXPECT_TRUE(testing::same_bits(together, single));
  rms_norm({&three, ctx.table}, x.matrix(), weight.data(), 1e-6f, together.matrix());
  for (int64_t r = 0; r < rows; ++r) {
    rms_norm({&one, ctx.table}, x.view(r, 1, 0, cols), weight.data(), 1e-6f, single.view(r, 1, 0, cols));
  }
  EXPECT_TRUE(testing::same_bits(together, single));
}

TEST_P(Norm, RejectsWhatDoesNotFit) {
  Activations x(dtype(), 4, 16), narrow(dtype(), 4, 15), other(bf16() ? DType::kF32 : DType::kBF16, 4, 16);
  const std::vector<float> w(16, 1.0f);
  EXPECT_THROW(rms_norm(context(), x.matrix(), w.data(), 1e-6f, narrow.matrix()), Error);
  EXPECT_THROW(rms_norm(context(), x.matrix(), w.data(), 1e-6f, other.matrix()), Error);
  EXPECT_THROW(rms_norm(context(), x.matrix(), nullptr, 1e-6f, x.matrix()), Error);
  EXPECT_THROW(layer_norm(context(), x.matrix(), w.data(), nullptr, 1e-6f, x.matrix()), Error);
  EXPECT_THROW(layer_norm(context(), x.matrix(), w.data(), w.data(), 1e-6f, narrow.matrix()), Error);
  Matrix half = x.matrix();
  half.dtype = DType::kF16;
  EXPECT_THROW(rms_norm(context(), half, w.data(), 1e-6f, half), Error);
}

INSTANTIATE_TEST_SUITE_P(Tables, Norm, ::testing::ValuesIn(testing::all_variants()), testing::variant_name);

}  // namespace
}  // namespace qvl::kernels
