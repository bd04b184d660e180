// Integer weights and activations at their largest magnitudes and of one sign: where products of bytes are added in 16
// bits somewhere, this is where they would overflow (int8_kernels.h).
#include <gtest/gtest.h>

#include <initializer_list>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"
#include "qvl/quant/block_codec.h"

namespace qvl::kernels {
namespace {

using quant::Format;

struct Extreme {
  Format format;
  std::byte codes, zeros;
  int value;  // of every weight
};

// 8-bit weights of scale 1, all zero until they are set.
struct UnitWeight {
  UnitWeight(const Format& f, int64_t n, int64_t columns)
      : format(f),
        out(n),
        k(columns),
        data(f.data_bytes(n, columns), std::byte{128}),
        scales(static_cast<size_t>(n * f.block_count(columns)), 1.0f),
        values(static_cast<size_t>(n * columns)) {}
  void set(int64_t n, int64_t i, int value) {
    const auto stride = static_cast<int64_t>(data.size()) / out;
    values[static_cast<size_t>(n * k + i)] = value;
    data[static_cast<size_t>(n * stride + i)] = static_cast<std::byte>(value + 128);
  }
  Weight view(int activation_bits) const {
    Weight w;
    w.data = data.data();
    w.out = out;
    w.in = k;
    w.format = format;
    w.scales = reinterpret_cast<const std::byte*>(scales.data());
    w.activation_bits = activation_bits;
    return w;
  }

  Format format;
  int64_t out, k;
  std::vector<std::byte> data;
  std::vector<float> scales;
  std::vector<int> values;  // [out, k]
};

// x [rows, k], whose groups all have the scale 1, times `w` is exactly the integer sum of its codes times the weights, `values`
// [out, k]: for so many of its first rows, on both paths.
void expect_exact_sums(const Context& ctx, const Weight& w, const std::vector<int>& values, const std::vector<float>& x,
                       const std::vector<int>& codes, std::initializer_list<int64_t> row_counts) {
  for (const int64_t rows : row_counts) {
    for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      if (path == LinearPath::kGemv && rows > 16) continue;
      std::vector<float> y(static_cast<size_t>(rows * w.out));
      linear(ctx, path, {x.data(), DType::kF32, rows, w.in, w.in}, w, Activation::kNone, {},
             {y.data(), DType::kF32, rows, w.out, w.out});
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < w.out; ++n) {
          int64_t sum = 0;
          for (int64_t i = 0; i < w.in; ++i)
            sum += static_cast<int64_t>(codes[static_cast<size_t>(r * w.in + i)]) * values[static_cast<size_t>(n * w.in + i)];
          ASSERT_EQ(y[static_cast<size_t>(r * w.out + n)], static_cast<float>(sum))
              << w.format.name() << " k " << w.in << " row " << r << " of " << rows << ", output " << n
              << (path == LinearPath::kGemm ? " gemm" : " gemv");
        }
      }
    }
  }
}

class Int8Extremes : public testing::TestWithParam<std::string_view> {};

TEST_P(Int8Extremes, LargestProductsOfBytes) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table_by_name(GetParam())};
  constexpr int64_t kOut = 37, kRows = 9;
  std::vector<Extreme> extremes;
  for (const int64_t block : {16, 32, 128}) {
    const Format four = Format::blocks(4, block, true, DType::kF32), eight = Format::blocks(8, block, false, DType::kF32);
    extremes.push_back({four, std::byte{0x00}, std::byte{0xff}, -15});
    extremes.push_back({four, std::byte{0xff}, std::byte{0x00}, 15});
    extremes.push_back({eight, std::byte{0x00}, std::byte{}, -128});
    extremes.push_back({eight, std::byte{0xff}, std::byte{}, 127});
  }
  for (const Extreme& e : extremes) {
    for (const int64_t k : {16, 128, 512}) {
      const std::vector<std::byte> data(e.format.data_bytes(kOut, k), e.codes);
      const std::vector<std::byte> zeros(e.format.zero_point_bytes(kOut, k), e.zeros);
      const std::vector<float> scales(static_cast<size_t>(kOut * e.format.block_count(k)), 1.0f);
      Weight w;
      w.data = data.data();
      w.out = kOut;
      w.in = k;
      w.format = e.format;
      w.scales = reinterpret_cast<const std::byte*>(scales.data());
      w.zero_points = e.format.zero_points ? zeros.data() : nullptr;
      for (const float x : {127.0f, -127.0f}) {  // the scale of such a row is 1
        const std::vector<float> rows(static_cast<size_t>(kRows * k), x);
        for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
          std::vector<float> y(static_cast<size_t>(kRows * kOut));
          linear(ctx, path, {rows.data(), DType::kF32, kRows, k, k}, w, Activation::kNone, {},
                 {y.data(), DType::kF32, kRows, kOut, kOut});
          for (const float v : y) {
            ASSERT_EQ(v, x * static_cast<float>(e.value * k))
                << e.format.name() << " value " << e.value << " k " << k
                << (path == LinearPath::kGemm ? " gemm" : " gemv");
          }
        }
      }
    }
  }
}

// Largest 4-bit weights, codes of x and codes of scales: a group's sum needs 16 bits and, times its code, 23; four groups 24.
TEST_P(Int8Extremes, LargestCodesOfScales) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table_by_name(GetParam())};
  constexpr int64_t kOut = 23, kRows = 17, kLane = 8;  // columns whose products some kernels add first
  const Format format = Format::blocks(4, 32, false, DType::kI8);
  for (const int64_t k : {32, 64, 96, 128}) {
    std::mt19937 rng(11);
    const auto one_of = [&](int a, int b) { return rng() % 2 == 0 ? a : b; };
    quant::Codes weights;
    for (int64_t n = 0; n < kOut; ++n) {
      for (int64_t i = 0; i < k; i += kLane) {
        const int value = n == 0 ? 0 : n == 1 ? 15 : one_of(0, 15);
        weights.q.insert(weights.q.end(), kLane, static_cast<int16_t>(value));
      }
      for (int64_t g = 0; g < format.block_count(k); ++g) weights.scales.push_back(static_cast<float>(n < 2 ? 127 : one_of(127, -127)));
    }
    std::vector<std::byte> data(format.data_bytes(kOut, k)), scales(format.scale_bytes(kOut, k));
    quant::pack(format, kOut, k, weights, {data, scales, {}});
    Weight w;
    w.data = data.data();
    w.out = kOut;
    w.in = k;
    w.format = format;
    w.scales = scales.data();

    std::vector<int> values;
    for (size_t i = 0; i < weights.q.size(); ++i) values.push_back((weights.q[i] - 8) * static_cast<int>(weights.scales[i / 32]));
    std::vector<int> codes;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < k; i += kLane) codes.insert(codes.end(), kLane, r == 0 ? 127 : r == 1 ? -127 : one_of(127, -127));
    }
    const std::vector<float> x(codes.begin(), codes.end());
    ASSERT_NO_FATAL_FAILURE(expect_exact_sums(ctx, w, values, x, codes, {1, 2, 3, 4, kRows}));
  }
}

// Few large weights among many small ones: kernels that go by the weights' values (int8_wide_avx2.h) find most sums of
// products to fit 16 bits, some just so and others just not.
TEST_P(Int8Extremes, SumsOfProductsAtTheEdgeOf16Bits) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table_by_name(GetParam())};
  constexpr int64_t kOut = 53, kRows = 21;
  constexpr int kFours[][4] = {{64, 64, 0, 0},     {64, 65, 0, 0},   {0, 0, -64, -65}, {127, 2, -127, -2}, {-128, -1, 0, 0},
                               {0, 0, -128, -2}, {127, 127, 2, 2}, {126, 126, 0, 0}, {-128, -128, 1, 1}, {0, 0, 127, -127},
                               {3, 3, 3, 3}};
  for (const Format& format : {Format::blocks(8, 128, false, DType::kF32), Format::blocks(8, 256, false, DType::kF32),
                               Format::row8()}) {
    for (const int64_t k : {128, 132, 512, 1100}) {
      std::mt19937 rng(7);
      UnitWeight w(format, kOut, k);
      for (int64_t n = 0; n < kOut; ++n) {
        for (int64_t i = 0; i < k; i += 4) {
          const auto& four = kFours[rng() % std::size(kFours)];
          // One step in eight has some of them, in one output in eight.
          const bool edge = (i / 4 + static_cast<int64_t>(rng() % 2)) % 8 == 0 && rng() % 8 == 0;
          for (int64_t j = 0; j < 4; ++j) w.set(n, i + j, edge ? four[j] : static_cast<int>(rng() % 31) - 15);
        }
      }
      std::vector<int> codes(static_cast<size_t>(kRows * k));
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t i = 0; i < k; ++i) {
          // 127 somewhere in each group makes its scale 1.
          const int any = static_cast<int>(rng() % 255) - 127;
          codes[static_cast<size_t>(r * k + i)] = r % 3 == 0 || i % 128 == 0 ? 127 : r % 3 == 1 ? -127 : any;
        }
      }
      const std::vector<float> x(codes.begin(), codes.end());
      ASSERT_NO_FATAL_FAILURE(expect_exact_sums(ctx, w.view(8), w.values, x, codes, {kRows, 1, 18}));
    }
  }
}

// Codes of 7 bits reach 128 above the least of their group where both ends round away from each other, and stay on one side
// of zero where x does. Sums of two neighbours of two steps reach 255 and -256, which fit, and miss that by one.
TEST_P(Int8Extremes, SevenBitCodesAtTheEdgeOf16Bits) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table_by_name(GetParam())};
  constexpr int64_t kOut = 53, kRows = 27;
  constexpr int kFours[][4] = {{127, 1, 0, 0}, {127, 0, 0, 127},    {0, 1, 127, 1},       {-128, 0, 0, 0}, {0, -128, -127, -1},
                               {-128, -1, 0, 0}, {127, 127, 127, 127}, {-128, -128, -128, -128}, {127, -128, 127, -128}};
  // One range to a row: both ends, and which codes they have.
  struct Range {
    float least, greatest;
    int least_code, greatest_code;
  };
  constexpr Range kRanges[] = {{-63.5f, 63.5f, -64, 64}, {0.0f, 127.0f, 0, 127}, {-127.0f, 0.0f, -127, 0}, {-64.0f, 63.0f, -64, 63}};
  for (const Format& format : {Format::blocks(8, 128, false, DType::kF32), Format::blocks(8, 256, false, DType::kF32),
                               Format::blocks(8, 32, false, DType::kF32), Format::row8()}) {
    for (const int64_t k : {128, 512, 1024}) {
      std::mt19937 rng(11);
      UnitWeight w(format, kOut, k);
      for (int64_t n = 0; n < kOut; ++n) {
        for (int64_t i = 0; i < k; i += 4) {
          // In most groups one output in eight has large weights: in all of them no step would fit with another.
          const bool edge = i / 128 % 4 == 3 || rng() % 8 == 0;
          const auto& four = kFours[rng() % std::size(kFours)];
          for (int64_t j = 0; j < 4; ++j) w.set(n, i + j, edge ? four[j] : static_cast<int>(rng() % 5) - 2);
        }
      }
      std::vector<float> x(static_cast<size_t>(kRows * k));
      std::vector<int> codes(x.size());
      for (int64_t r = 0; r < kRows; ++r) {
        const Range& range = kRanges[r % 4];
        for (int64_t i = 0; i < k; ++i) {
          // Both ends in every group of 16 or more columns; otherwise all at one of them, or anywhere.
          const bool low = i % 16 == 3 || (i % 16 != 5 && (r / 4 % 3 == 1 || (r / 4 % 3 == 2 && rng() % 2 == 0)));
          const auto at = static_cast<size_t>(r * k + i);
          x[at] = low ? range.least : range.greatest;
          codes[at] = low ? range.least_code : range.greatest_code;
        }
      }
      ASSERT_NO_FATAL_FAILURE(expect_exact_sums(ctx, w.view(7), w.values, x, codes, {kRows, 1, 16}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, Int8Extremes, testing::ValuesIn(runnable_tables()),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace qvl::kernels
