// linear and linear_swiglu over integer weights: every table against double sums of the values it must use, with int8
// activations and with float ones, all formats and tails, determinism and the checks.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"
#include "qvl/quant/block_codec.h"

namespace qvl::kernels {
namespace {

using quant::Format;

const std::vector<Format>& formats() {
  static const std::vector<Format> all = [] {
    std::vector<Format> f;
    for (const int64_t block : {16, 32, 64, 128, 256}) {
      f.push_back(Format::blocks(4, block, false, DType::kBF16));
      f.push_back(Format::blocks(4, block, true, DType::kF32));
      f.push_back(Format::blocks(8, block, false, DType::kF16));
    }
    f.push_back(Format::blocks(4, 32, false, DType::kF32));
    f.push_back(Format::blocks(4, 32, true, DType::kBF16));
    f.push_back(Format::blocks(8, 32, false, DType::kBF16));
    f.push_back(Format::blocks(8, 32, true, DType::kF32));
    for (const int64_t block : {16, 32, 64, 128, 256}) {
      for (const int bits : {4, 8}) f.push_back(Format::blocks(bits, block, false, DType::kI8));
    }
    f.push_back(Format::blocks(4, 32, true, DType::kI8));
    f.push_back(Format::row8());
    return f;
  }();
  return all;
}

// A weight of random codes. The buffers end where the weight ends, so that a sanitizer sees any read past it.
struct IntegerWeight {
  IntegerWeight(const Format& f, int64_t n, int64_t k, std::mt19937& rng) : format(f), out(n), in(k) {
    quant::Codes codes;
    const int low = f.kind == quant::Kind::kRow8 ? 1 : 0, high = (1 << f.bits) - 1;
    std::uniform_int_distribution<int> code(low, high);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (int64_t i = 0; i < n * k; ++i) codes.q.push_back(static_cast<int16_t>(code(rng)));
    for (int64_t i = 0; i < n * f.block_count(k); ++i) {
      float scale = normal(rng);
      if (f.scale_type == DType::kI8) {
        const int64_t row = i / f.block_count(k);
        scale = std::ldexp(std::clamp(std::nearbyint(scale * 2000), -127.0f, 127.0f), static_cast<int>(row % 5) - 12);
      } else {
        std::array<std::byte, 4> stored;
        convert_elements(&scale, DType::kF32, stored.data(), f.scale_type, 1);
        convert_elements(stored.data(), f.scale_type, &scale, DType::kF32, 1);
      }
      codes.scales.push_back(scale);
      if (f.zero_points) codes.zero_points.push_back(static_cast<int16_t>(code(rng)));
    }
    data.resize(f.data_bytes(n, k));
    scales.resize(f.scale_bytes(n, k));
    zero_points.resize(f.zero_point_bytes(n, k));
    quant::pack(f, n, k, codes, {data, scales, zero_points});
    values.resize(static_cast<size_t>(n * k));
    quant::dequantize(f, n, k, {data, scales, zero_points}, values);
  }

  // x_bits: 8 or 7 bits of the codes of x, 0: x stays as it is.
  Weight view(int x_bits = 8, const float* bias = nullptr) const {
    Weight w;
    w.data = data.data();
    w.out = out;
    w.in = in;
    w.bias = bias;
    w.format = format;
    w.scales = scales.data();
    w.zero_points = format.zero_points ? zero_points.data() : nullptr;
    w.int8_activations = x_bits != 0;
    if (x_bits != 0) w.activation_bits = x_bits;
    return w;
  }

  Format format;
  int64_t out, in;
  std::vector<std::byte> data, scales, zero_points;
  std::vector<float> values;  // [out, in]
};

struct Activations {
  Activations(DType t, int64_t m, int64_t k, std::mt19937& rng, float scale = 1.0f, bool one_sided = false)
      : tensor(t, {m, k}) {
    Tensor f(DType::kF32, {m, k});
    std::normal_distribution<float> normal(0.0f, scale);
    for (float& v : f.as<float>()) v = one_sided ? std::fabs(normal(rng)) : normal(rng);
    tensor = f.to(t);
    rows = tensor.to(DType::kF32);
  }
  ConstMatrix view() const { return {tensor.data(), tensor.dtype(), tensor.dim(0), tensor.dim(1), tensor.dim(1)}; }
  Tensor tensor, rows;
};

// The least power of two of which `largest` is no more than 127.
float least_power(double largest) {
  return static_cast<float>(std::exp2(std::ceil(std::log2(largest / 127))));
}

// Row r of x as the contract of int8_kernels.h rounds it.
std::vector<double> rounded_row(const Activations& x, int64_t r, const Format& format, int x_bits) {
  const int64_t k = x.tensor.dim(1);
  const int64_t group = format.kind == quant::Kind::kRow8 ? 128 : std::min<int64_t>(format.block, 128);
  const float* row = x.rows.as<float>().data() + r * k;
  std::vector<double> out(static_cast<size_t>(k));
  for (int64_t g = 0; g < k; g += group) {
    float least = 0, greatest = 0;
    for (int64_t i = g; i < std::min(k, g + group); ++i) {
      least = std::min(least, row[i]);
      greatest = std::max(greatest, row[i]);
    }
    const double range =
        x_bits == 7 ? static_cast<double>(greatest) - static_cast<double>(least) : std::max<double>(-least, greatest);
    float scale = static_cast<float>(range / 127), inverse = range > 0 ? static_cast<float>(127 / range) : 0.0f;
    if (group <= 32 && x_bits == 8 && range > 0) {
      scale = least_power(range);
      inverse = 1 / scale;
    }
    for (int64_t i = g; i < std::min(k, g + group); ++i) {
      out[static_cast<size_t>(i)] = static_cast<double>(std::nearbyint(row[i] * inverse)) * scale;
    }
  }
  return out;
}

bool rounds(const Format& f, int x_bits) {
  return x_bits != 0 && !(f.bits == 8 && f.zero_points);
}

// Expected sums [m, n] in double, and the sum of magnitudes as a measure of the error float sums may have.
void expected(const Activations& x, const IntegerWeight& w, int x_bits, std::vector<double>& sums,
              std::vector<double>& magnitudes) {
  const int64_t m = x.tensor.dim(0);
  sums.assign(static_cast<size_t>(m * w.out), 0);
  magnitudes = sums;
  for (int64_t r = 0; r < m; ++r) {
    std::vector<double> row(static_cast<size_t>(w.in));
    for (int64_t i = 0; i < w.in; ++i) row[static_cast<size_t>(i)] = x.rows.as<float>()[static_cast<size_t>(r * w.in + i)];
    if (rounds(w.format, x_bits)) row = rounded_row(x, r, w.format, x_bits);
    for (int64_t n = 0; n < w.out; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t i = 0; i < w.in; ++i) {
        double v = w.values[static_cast<size_t>(n * w.in + i)];
        if (x.tensor.dtype() == DType::kBF16 && !rounds(w.format, x_bits)) {
          v = round_to_bf16(static_cast<float>(v));
        }
        sum += row[static_cast<size_t>(i)] * v;
        magnitude += std::fabs(row[static_cast<size_t>(i)] * v);
      }
      sums[static_cast<size_t>(r * w.out + n)] = sum;
      magnitudes[static_cast<size_t>(r * w.out + n)] = magnitude;
    }
  }
}

double tolerance(double magnitude, double value, DType type) {
  return 4e-6 * magnitude + 1e-30 + (type == DType::kBF16 ? std::fabs(value) / 128 + 4e-6 * magnitude : 0);
}

// The stored code of output j, column i, less its usual zero point.
int codes(const IntegerWeight& w, int64_t j, int64_t i) {
  const std::byte* row = w.data.data() + j * w.format.data_bytes(1, w.in);
  if (w.format.bits == 8) return std::to_integer<int>(row[i]) - 128;
  return (std::to_integer<int>(row[i / 2]) >> (i % 2 * 4) & 15) - 8;
}

class IntegerLinearTest : public testing::TestWithParam<std::string_view> {
 protected:
  const KernelTable& table() { return table_by_name(GetParam()); }

  // With `one_sided` no x is negative, as after an activation.
  void check(LinearPath path, DType type, const Format& format, int x_bits, int64_t m, int64_t n, int64_t k, int threads,
             std::mt19937& rng, bool one_sided = false) {
    SCOPED_TRACE(format.name() + ", " + std::to_string(x_bits) + " bits of x " + std::string(dtype_name(type)) +
                 (path == LinearPath::kGemm ? " gemm " : " gemv ") + std::to_string(m) + "x" + std::to_string(n) + "x" +
                 std::to_string(k));
    ThreadPool pool(threads);
    const Context ctx{&pool, &table()};
    const IntegerWeight w(format, n, k, rng);
    const Activations x(type, m, k, rng, 1.0f, one_sided);
    std::vector<float> bias(static_cast<size_t>(n));
    for (float& b : bias) b = round_to_bf16(std::normal_distribution<float>()(rng));
    Tensor y(type, {m, n});
    linear(ctx, path, x.view(), w.view(x_bits, bias.data()), Activation::kNone, {}, {y.data(), type, m, n, n});
    std::vector<double> sums, magnitudes;
    expected(x, w, x_bits, sums, magnitudes);
    const Tensor got = y.to(DType::kF32);
    for (int64_t i = 0; i < m * n; ++i) {
      const double want = sums[static_cast<size_t>(i)] + bias[static_cast<size_t>(i % n)];
      ASSERT_NEAR(got.as<float>()[static_cast<size_t>(i)], want,
                  tolerance(magnitudes[static_cast<size_t>(i)] + 1, want, type))
          << "row " << i / n << " column " << i % n;
    }
  }
};

TEST_P(IntegerLinearTest, MatchesDoubleForAllFormatsAndTails) {
  std::mt19937 rng(1);
  int counter = 0;
  for (const Format& format : formats()) {
    for (const int64_t k : {1, 15, 16, 33, 64, 100, 127, 128, 129, 256, 300, 513, 1100}) {
      for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
        const int i = counter++;
        const int64_t ns[] = {1, 4, 5, 16, 17, 33, 64, 70};
        std::vector<int> of_x = {i % 5 == 0 ? 0 : 8};
        if (format.bits == 8 || i % 8 == 0) of_x.push_back(7);  // 4-bit weights read them as they read any others
        for (const int x_bits : of_x) {
          check(path, i % 3 == 0 ? DType::kBF16 : DType::kF32, format, x_bits, 1 + i % 14, ns[i % 8], k, 1 + i % 2, rng,
                i % 4 == 1);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(IntegerLinearTest, MatchesDoubleBeyondOneBlock) {
  // More than one block of depth, of columns and of rows.
  std::mt19937 rng(2);
  for (const Format& format : {Format::blocks(4, 32, false, DType::kBF16), Format::blocks(4, 16, true, DType::kF32),
                               Format::blocks(4, 32, false, DType::kI8), Format::blocks(8, 128, false, DType::kBF16), Format::row8()}) {
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{7, 70, 2049}, {401, 130, 48}, {5, 65, 4097}}) {
      for (const int x_bits : {8, 7, 0}) {
        if (x_bits == 7 && format.bits == 4) continue;
        check(LinearPath::kGemm, DType::kF32, format, x_bits, m, n, k, 2, rng);
        if (m <= 16) check(LinearPath::kGemv, DType::kF32, format, x_bits, m, n, k, 3, rng);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(IntegerLinearTest, EveryTableRoundsActivationsAlike) {
  // The float sums of one group are exact: with one group a row the results of all tables are the same bits.
  std::mt19937 rng(3);
  ThreadPool pool(1);
  const Context oracle{&pool, &table_by_name("scalar")}, ctx{&pool, &table()};
  for (const DType type : {DType::kF32, DType::kBF16}) {
    struct Case {
      float scale;
      int bits, x_bits;
      int64_t block;
    };
    for (const auto& [scale, bits, x_bits, block] :
         {Case{1e-3f, 4, 8, 128}, {1.0f, 4, 8, 128}, {1e20f, 4, 8, 128}, {1e-3f, 4, 7, 128}, {1.0f, 8, 7, 128}, {1e20f, 8, 7, 128},
          {1.0f, 8, 8, 128}, {1e-3f, 4, 8, 32}, {1.0f, 8, 8, 32}, {1e20f, 4, 8, 32}, {1.0f, 4, 7, 32}, {1.0f, 4, 8, 16},
          {1.0f, 8, 8, 16}, {1.0f, 4, 8, 64}}) {
      SCOPED_TRACE(std::to_string(bits) + " bits in blocks of " + std::to_string(block) + ", " + std::to_string(x_bits) + " bits of x");
      const IntegerWeight w(Format::blocks(bits, block, false, DType::kBF16), 37, block, rng);
      const Activations x(type, 19, block, rng, scale);
      const Weight view = w.view(x_bits);
      Tensor want(type, {19, 37}), got(type, {19, 37});
      linear(oracle, LinearPath::kGemm, x.view(), view, Activation::kNone, {}, {want.data(), type, 19, 37, 37});
      linear(ctx, LinearPath::kGemm, x.view(), view, Activation::kNone, {}, {got.data(), type, 19, 37, 37});
      ASSERT_EQ(std::memcmp(want.data(), got.data(), want.size_bytes()), 0);
    }
  }
}

TEST_P(IntegerLinearTest, ScalesOfNarrowGroupsAreTheLeastPowersOfTwo) {
  std::mt19937 rng(10);
  for (const int64_t group : {16, 32, 64, 128}) {
    for (const int exponent : {-119, -60, -1, 0, 5, 60, 120}) {
      const float edge = std::ldexp(127.0f, exponent - 6);  // from 127 / 64 of a power of two on the next one is needed
      for (const float largest : {std::ldexp(1.0f, exponent), std::nextafter(edge, 0.0f), edge, std::nextafter(edge, INFINITY)}) {
        SCOPED_TRACE("group " + std::to_string(group) + ", largest value " + std::to_string(largest));
        std::array<float, 128> x;
        std::uniform_real_distribution<float> within(-largest, largest);
        for (float& v : x) v = within(rng);
        for (int64_t g = 0; g < 128; g += group) x[static_cast<size_t>(g + static_cast<int64_t>(rng()) % group)] = g % (2 * group) == 0 ? largest : -largest;
        std::array<int8_t, 128> q;
        std::array<float, 8> scales;
        table().int8->quantize_f32(x.data(), 128, group, 8, q.data(), scales.data());
        for (int64_t g = 0; g < 128 / group; ++g) {
          const float scale = scales[static_cast<size_t>(g)];
          ASSERT_EQ(scale, group <= 32 ? least_power(largest) : largest / 127.0f);
          for (int64_t i = g * group; i < (g + 1) * group; ++i) {
            const float v = x[static_cast<size_t>(i)];
            ASSERT_EQ(q[static_cast<size_t>(i)], std::nearbyint(group <= 32 ? v / scale : v * (127.0f / largest)));
          }
        }
      }
    }
  }
}

// Scales of any size meet each other: an instruction set may multiply those of narrow groups by adding exponents.
TEST_P(IntegerLinearTest, ScalesOfAnySizeMultiplyExactly) {
  std::mt19937 rng(11);
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> scales = {0.0f, -0.0f, 1e-45f, -1e-40f, 1.2e-38f, 3e-30f, -7e-20f, 1e-3f, -1.0f, 5e19f, 3e38f, -kInfinity, kNaN};
  const std::vector<float> sizes = {0.0f, 1e-42f, 1.1e-36f, 2e-30f, 3e-19f, 1e-2f, 1.0f, 300.0f, 4e18f, 1e30f, 3.4e38f, kInfinity, kNaN};
  const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  const auto product = [&](const Tensor& x, const IntegerWeight& w, int64_t begin, int64_t rows) {
    std::vector<float> y(static_cast<size_t>(rows * w.out));
    linear(ctx, LinearPath::kGemm, {x.as<float>().data() + begin * w.in, DType::kF32, rows, w.in, w.in}, w.view(8), Activation::kNone, {},
           {y.data(), DType::kF32, rows, w.out, w.out});
    return y;
  };
  const int64_t n = static_cast<int64_t>(scales.size()) * 5, rows = static_cast<int64_t>(sizes.size()) * 3;
  for (const int bits : {4, 8}) {
    for (const int64_t block : {16, 32}) {
      for (const int64_t blocks : {1, 3}) {
        SCOPED_TRACE(std::to_string(bits) + " bits, " + std::to_string(blocks) + " blocks of " + std::to_string(block));
        const int64_t k = block * blocks;
        IntegerWeight w(Format::blocks(bits, block, false, DType::kF32), n, k, rng);
        Tensor x(DType::kF32, {rows, k});
        float* const stored = reinterpret_cast<float*>(w.scales.data());
        for (int64_t i = 0; i < n * blocks; ++i) stored[i] = scales[static_cast<size_t>(i / blocks + (i % blocks == 0 ? 0 : static_cast<int64_t>(rng() % 5))) % scales.size()];
        std::uniform_real_distribution<float> within(-1.0f, 1.0f);
        for (int64_t i = 0; i < rows * k; ++i) {
          const float size = sizes[static_cast<size_t>(i / k + (i % k < block ? 0 : i % k / block * 4)) % sizes.size()];
          x.as<float>()[static_cast<size_t>(i)] = std::isfinite(size) ? size * within(rng) : i % block == 3 ? size : within(rng);
        }
        const std::vector<float> y = product(x, w, 0, rows);
        for (int64_t begin = 0; begin < rows; begin += 13) {
          for (const int64_t some : {1, 4, 7, 13}) {
            const std::vector<float> part = product(x, w, begin, some);
            for (size_t i = 0; i < part.size(); ++i)
              ASSERT_TRUE(same(part[i], y[static_cast<size_t>(begin * n) + i])) << part[i] << " and " << y[static_cast<size_t>(begin * n) + i];
          }
        }
        if (blocks > 1) continue;
        for (int64_t r = 0; r < rows; ++r) {
          const float* row = x.as<float>().data() + r * k;
          float largest = 0;
          bool finite = true;
          for (int64_t i = 0; i < k; ++i) {
            finite = finite && std::isfinite(row[i]);
            largest = std::max(largest, std::fabs(row[i]));
          }
          const float x_scale = !finite ? kNaN : largest < 1e-36f ? 1.0f : least_power(largest);
          for (int64_t j = 0; j < n; ++j) {
            const float w_scale = stored[j];
            int64_t dot = 0;
            for (int64_t i = 0; i < k && finite; ++i) dot += std::lrint(row[i] / x_scale) * codes(w, j, i);
            const float want = static_cast<float>(dot) * (x_scale * w_scale);
            ASSERT_TRUE(same(y[static_cast<size_t>(r * n + j)], want))
                << y[static_cast<size_t>(r * n + j)] << " instead of " << want << ", scales " << x_scale << " and " << w_scale;
          }
        }
      }
    }
  }
}

TEST_P(IntegerLinearTest, RowsDoNotDependOnOtherRowsOrThreads) {
  std::mt19937 rng(4);
  constexpr int64_t kRows = 420, kCols = 150, kDepth = 2081;
  for (const Format& format : {Format::blocks(4, 32, false, DType::kBF16), Format::row8()}) {
    const IntegerWeight gate(format, kCols, kDepth, rng), up(format, kCols, kDepth, rng);
    const Activations x(DType::kBF16, kRows, kDepth, rng);
    for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      const int64_t all = path == LinearPath::kGemm ? kRows : 16;
      Tensor whole(DType::kBF16, {all, kCols});
      ThreadPool one(1);
      ConstMatrix xs = x.view();
      xs.rows = all;
      linear_swiglu({&one, &table()}, path, xs, gate.view(8), up.view(8),
                    {whole.data(), DType::kBF16, all, kCols, kCols});
      for (const int threads : {2, 3}) {
        ThreadPool pool(threads);
        for (const auto& [begin, rows] : {std::array<int64_t, 2>{0, all}, {5, 1}, {3, 2}, {2, 4}, {9, 7}}) {
          ConstMatrix part = x.view();
          part.data = x.tensor.as<BFloat16>().data() + begin * kDepth;
          part.rows = rows;
          Tensor y(DType::kBF16, {rows, kCols});
          linear_swiglu({&pool, &table()}, path, part, gate.view(8), up.view(8),
                        {y.data(), DType::kBF16, rows, kCols, kCols});
          ASSERT_EQ(std::memcmp(whole.as<BFloat16>().data() + begin * kCols, y.data(), y.size_bytes()), 0)
              << format.name() << " rows " << begin << "+" << rows << " threads " << threads;
        }
      }
    }
  }
}

TEST_P(IntegerLinearTest, CodedScalesGiveTheBitsOfTheirFloats) {
  std::mt19937 rng(12);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  for (const int bits : {4, 8}) {
    for (const int64_t block : {16, 32, 128}) {
      for (const auto& [n, k] : {std::array<int64_t, 2>{37, 1111}, {75, 272}, {3, 40}}) {
        const IntegerWeight coded(Format::blocks(bits, block, false, DType::kI8), n, k, rng);
        IntegerWeight wide = coded;
        wide.format.scale_type = DType::kBF16;  // holds the product of a code and a power of two
        wide.scales.resize(wide.format.scale_bytes(n, k));
        const int64_t count = n * coded.format.block_count(k);
        std::vector<float> scales(static_cast<size_t>(count));
        quant::read_scales(coded.format, n, k, coded.scales, scales);
        convert_elements(scales.data(), DType::kF32, wide.scales.data(), DType::kBF16, count);
        const Activations x(DType::kF32, 80, k, rng);
        for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
          for (const int64_t rows : {1, 2, 3, 5, 16, 80}) {
            if (path == LinearPath::kGemv && rows > 16) continue;
            const auto product = [&](const IntegerWeight& w, int x_bits) {
              std::vector<float> y(static_cast<size_t>(rows * n));
              ConstMatrix part = x.view();
              part.rows = rows;
              linear(ctx, path, part, w.view(x_bits), Activation::kNone, {}, {y.data(), DType::kF32, rows, n, n});
              return y;
            };
            for (const int x_bits : {8, 7, 0}) {
              ASSERT_EQ(product(coded, x_bits), product(wide, x_bits))
                  << bits << " bits in blocks of " << block << ", " << rows << " rows of " << x_bits << " bits with " << n << "x" << k;
            }
          }
        }
      }
    }
  }
}

TEST_P(IntegerLinearTest, FewRowsAreThoseOfManyInEveryFormat) {
  // A table may multiply few rows otherwise than many, on either path: the bits must not tell.
  std::mt19937 rng(8);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  struct Case {
    Format format;
    int x_bits;
  };
  std::vector<Case> cases;
  for (const Format& format : formats()) cases.push_back({format, 8});
  cases.push_back({Format::row8(), 7});
  cases.push_back({Format::blocks(8, 128, false, DType::kBF16), 7});
  for (const auto& [format, x_bits] : cases) {
    for (const auto& [cols, depth] : {std::array<int64_t, 2>{37, 1111}, {75, 272}, {5, 40}}) {
      const IntegerWeight w(format, cols, depth, rng);
      constexpr int64_t kMany = 70;  // more than what any table takes for few
      const Activations x(DType::kF32, kMany, depth, rng);
      for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
        const int64_t all = path == LinearPath::kGemm ? kMany : 16;
        const auto product = [&](int64_t begin, int64_t rows) {
          std::vector<float> y(static_cast<size_t>(rows * cols));
          ConstMatrix part = x.view();
          part.data = x.tensor.as<float>().data() + begin * depth;
          part.rows = rows;
          linear(ctx, path, part, w.view(x_bits), Activation::kNone, {}, {y.data(), DType::kF32, rows, cols, cols});
          return y;
        };
        const std::vector<float> whole = product(0, all);
        for (int64_t rows = 1; rows <= all; rows += rows < 6 ? 1 : rows < 40 ? 5 : 10) {
          const std::vector<float> some = product(all - rows, rows);
          ASSERT_EQ(std::memcmp(whole.data() + (all - rows) * cols, some.data(), some.size() * sizeof(float)), 0)
              << format.name() << (path == LinearPath::kGemm ? " gemm, " : " gemv, ") << rows << " rows of " << depth
              << " with " << cols;
        }
      }
    }
  }
}

TEST_P(IntegerLinearTest, SwigluMatchesDouble) {
  std::mt19937 rng(5);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  // A recipe may keep one of the two at more bits, or in larger blocks, than the other.
  const Format int4 = Format::blocks(4, 32, false, DType::kBF16), int8 = Format::blocks(8, 32, false, DType::kBF16);
  const std::array<Format, 2> pairs[] = {{int4, int4},
                                         {int8, int8},
                                         {int8, int4},
                                         {int4, int8},
                                         {int4, Format::blocks(4, 128, true, DType::kF32)},
                                         {Format::blocks(4, 16), Format::row8()},
                                         {int4, Format::blocks(8, 64, true)}};
  for (const auto& [gate_format, up_format] : pairs) {
    SCOPED_TRACE(gate_format.name() + " with " + up_format.name());
    const bool int8_sums = rounds(gate_format, 8) && rounds(up_format, 8);
    for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      const IntegerWeight gate(gate_format, 70, 200, rng), up(up_format, 70, 200, rng);
      const Activations x(DType::kF32, 7, 200, rng);
      Tensor y(DType::kF32, {7, 70});
      linear_swiglu(ctx, path, x.view(), gate.view(8), up.view(8), {y.data(), DType::kF32, 7, 70, 70});
      std::vector<double> g, u, gm, um;
      expected(x, gate, int8_sums ? 8 : 0, g, gm);
      expected(x, up, int8_sums ? 8 : 0, u, um);
      for (size_t i = 0; i < g.size(); ++i) {
        const double silu = g[i] / (1 + std::exp(-g[i]));
        ASSERT_NEAR(y.as<float>()[i], silu * u[i], 1e-5 * (gm[i] + 1) * (um[i] + 1));
      }
    }
  }
}

// Several products in one loop have the bits of single ones: alike, of formats that want x prepared in their own ways, of
// fewer outputs than a task has and of more, of other rows of x, and beside weights in floats.
TEST_P(IntegerLinearTest, TogetherIsEachByItself) {
  std::mt19937 rng(9);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  const int64_t k = 200;
  const Format int4 = Format::blocks(4, 32, false, DType::kBF16), int8 = Format::blocks(8, 32, false, DType::kBF16),
               zero = Format::blocks(4, 128, true, DType::kF32), float_x = Format::blocks(8, 64, true, DType::kF32);
  const std::array<Format, 4> sets[] = {
      {int4, int4, int4, int4}, {int4, int4, int8, int4}, {int4, zero, Format::row8(), int8}, {int8, float_x, int4, float_x}};
  const int64_t outs[] = {300, 40, 8, 513};
  for (const auto& set : sets) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const LinearPath path : {LinearPath::kGemv, LinearPath::kGemm}) {
        for (const int64_t rows : {1, 3}) {
          for (const size_t count : {size_t{3}, size_t{4}}) {
            SCOPED_TRACE(set[0].name() + ", " + set[1].name() + ", ...; " + std::string(dtype_name(type)) + ", " +
                         std::to_string(rows) + " rows, " + std::to_string(count) + " products");
            const Activations x(type, rows, k, rng), other_x(type, rows, k, rng);
            std::vector<IntegerWeight> weights;
            std::vector<std::vector<float>> biases;
            std::vector<Tensor> together, single;
            std::vector<LinearProduct> products;
            for (size_t i = 0; i < count; ++i) {
              weights.emplace_back(set[i], outs[i], k, rng);
              biases.emplace_back(static_cast<size_t>(outs[i]), static_cast<float>(i));
              together.emplace_back(type, Shape{rows, outs[i]});
              single.emplace_back(type, Shape{rows, outs[i]});
            }
            std::vector<Weight> views;
            for (size_t i = 0; i < count; ++i) views.push_back(weights[i].view(8, i == 1 ? nullptr : biases[i].data()));
            for (size_t i = 0; i < count; ++i) {
              const ConstMatrix rows_of_x = (count == 3 && i == 2 ? other_x : x).view();
              products.push_back({rows_of_x, &views[i], {together[i].data(), type, rows, outs[i], outs[i]}});
              linear(ctx, path, rows_of_x, views[i], Activation::kNone, {}, {single[i].data(), type, rows, outs[i], outs[i]});
            }
            linear_together(ctx, path, products);
            for (size_t i = 0; i < count; ++i)
              ASSERT_EQ(std::memcmp(together[i].data(), single[i].data(), single[i].size_bytes()), 0) << "product " << i;
          }
        }
      }
    }
  }
}

TEST_P(IntegerLinearTest, ZerosTinyValuesAndNonFiniteOnes) {
  std::mt19937 rng(6);
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  const IntegerWeight four(Format::blocks(4, 32, false, DType::kF32), 20, 96, rng), eight(Format::row8(), 20, 96, rng);
  struct Case {
    const IntegerWeight* w;
    int x_bits;
    int64_t rows;
    LinearPath path;
  };
  for (const auto& [w, x_bits, rows, path] :
       {Case{&four, 8, 1, LinearPath::kGemm}, {&four, 8, 1, LinearPath::kGemv}, {&four, 7, 1, LinearPath::kGemm},
        {&eight, 8, 1, LinearPath::kGemv}, {&eight, 8, 17, LinearPath::kGemm}, {&eight, 7, 1, LinearPath::kGemv},
        {&eight, 7, 17, LinearPath::kGemm}}) {
    const auto product = [&](float fill, float first) {
      Tensor x(DType::kF32, {rows, 96}), y(DType::kF32, {rows, 20});
      for (float& v : x.as<float>()) v = fill;
      for (int64_t r = 0; r < rows; ++r) x.as<float>()[static_cast<size_t>(r * 96 + 40)] = first;
      linear(ctx, path, {x.data(), DType::kF32, rows, 96, 96}, w->view(x_bits), Activation::kNone, {},
             {y.data(), DType::kF32, rows, 20, 20});
      return std::vector<float>(y.as<float>().begin(), y.as<float>().end());
    };
    for (const float v : product(0.0f, 0.0f)) ASSERT_EQ(v, 0.0f);
    for (const float v : product(-0.0f, 0.0f)) ASSERT_EQ(v, 0.0f);
    for (const float v : product(1e-40f, 1e-42f)) ASSERT_EQ(v, 0.0f);  // below what the scales can hold
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      for (const float v : product(1.0f, bad)) ASSERT_TRUE(std::isnan(v));
    }
    // Their distance is no float.
    constexpr float kHuge = 3e38f;
    for (const float v : product(kHuge * 1e-4f, -kHuge)) ASSERT_FALSE(std::isnan(v));
    // A single value keeps its sign and size, whichever side of zero is empty.
    for (const float one : {1.0f, -1.0f}) {
      const std::vector<float> y = product(0.0f, one);
      for (size_t i = 0; i < y.size(); ++i)
        ASSERT_NEAR(y[i], one * w->values[(i % 20) * 96 + 40], 1e-6f * std::fabs(w->values[(i % 20) * 96 + 40]));
    }
  }
}

TEST_P(IntegerLinearTest, OutputsDoNotDependOnOtherRowsOfTheWeight) {
  // What the decoder's shortlist of the head stands on: rows multiplied by themselves have the bits of the whole product.
  std::mt19937 rng(9);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  constexpr int64_t kOut = 75;
  for (const Format& format : formats()) {
    for (const int64_t depth : {40, 272, 1111}) {
      const IntegerWeight w(format, kOut, depth, rng);
      for (const DType type : {DType::kF32, DType::kBF16}) {
        const Activations x(type, 3, depth, rng);
        for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
          const auto product = [&](const Weight& weight) {
            Tensor y(type, {3, weight.out});
            linear(ctx, path, x.view(), weight, Activation::kNone, {}, {y.data(), type, 3, weight.out, weight.out});
            return y.to(DType::kF32);
          };
          const Tensor whole = product(w.view());
          for (const int64_t count : {1, 16, 41}) {
            IntegerWeight some = w;
            const auto pick = [&](std::vector<std::byte>& part) {
              const size_t bytes = part.size() / kOut;
              const std::vector<std::byte> all = part;
              part.resize(bytes * static_cast<size_t>(count));
              for (int64_t i = 0; i < count; ++i)
                std::copy_n(all.begin() + (i * 31 + 74) % kOut * static_cast<int64_t>(bytes), bytes, part.begin() + i * static_cast<int64_t>(bytes));
            };
            for (std::vector<std::byte>* part : {&some.data, &some.scales, &some.zero_points}) pick(*part);
            some.out = count;
            const Tensor got = product(some.view());
            for (int64_t i = 0; i < 3 * count; ++i) {
              ASSERT_EQ(got.as<float>()[static_cast<size_t>(i)],
                        whole.as<float>()[static_cast<size_t>(i / count * kOut + (i % count * 31 + 74) % kOut)])
                  << format.name() << ", depth " << depth << ", row " << i % count << " of " << count;
            }
          }
        }
      }
    }
  }
}

TEST_P(IntegerLinearTest, ChecksTheWeight) {
  std::mt19937 rng(7);
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  const IntegerWeight w(Format::blocks(4, 32, true, DType::kF32), 4, 64, rng);
  const Activations x(DType::kF32, 1, 64, rng);
  Tensor y(DType::kF32, {1, 4});
  const auto run = [&](Weight weight) {
    linear(ctx, LinearPath::kGemv, x.view(), weight, Activation::kNone, {}, {y.data(), DType::kF32, 1, 4, 4});
  };
  Weight no_scales = w.view(8), no_zeros = w.view(8), odd = w.view(8);
  no_scales.scales = nullptr;
  no_zeros.zero_points = nullptr;
  odd.format.block = 48;
  EXPECT_THROW(run(no_scales), Error);
  EXPECT_THROW(run(no_zeros), Error);
  EXPECT_THROW(run(odd), Error);
  EXPECT_NO_THROW(run(w.view(8)));
}

INSTANTIATE_TEST_SUITE_P(Tables, IntegerLinearTest, testing::ValuesIn(runnable_tables()),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace qvl::kernels
