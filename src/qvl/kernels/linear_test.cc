// linear, linear_swiglu, add_rows: the scalar oracle against a double loop, every other runnable table
// against the same bounds and against the oracle, all tails, determinism, the rounding contract and the
// checks.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {
namespace {

constexpr double kEps = 1.0 / (1 << 24);  // half a unit in the last place of 1.0f

struct Types {
  DType x, w;
};
constexpr Types kTypes[] = {{DType::kF32, DType::kF32},
                            {DType::kF32, DType::kBF16},
                            {DType::kF32, DType::kF16},
                            {DType::kBF16, DType::kBF16}};

float get(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  if (dtype == DType::kBF16) return to_float(static_cast<const BFloat16*>(data)[i]);
  return to_float(static_cast<const Float16*>(data)[i]);
}

void put(void* data, DType dtype, int64_t i, float v) {
  if (dtype == DType::kF32) static_cast<float*>(data)[i] = v;
  if (dtype == DType::kBF16) static_cast<BFloat16*>(data)[i] = to_bfloat16(v);
  if (dtype == DType::kF16) static_cast<Float16*>(data)[i] = to_float16(v);
}

// A buffer that ends exactly where its last row ends, so that a sanitizer sees any read past it; `offset`
// elements in front make it unaligned.
struct Buffer {
  Buffer(DType t, int64_t r, int64_t c, int64_t s, int64_t off = 0) : dtype(t), rows(r), cols(c), stride(s) {
    const int64_t count = off + (r == 0 ? 0 : (r - 1) * s + c);
    bytes.resize(static_cast<size_t>(count) * dtype_size_bytes(t));
    data = bytes.data() + static_cast<size_t>(off) * dtype_size_bytes(t);
  }
  template <typename Rng>
  void fill(Rng& rng, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) put(data, dtype, r * stride + c, normal(rng));
    }
    remember();
  }
  // Integers in [-limit, limit]: sums of their products are exact in any order.
  template <typename Rng>
  void fill_integers(Rng& rng, int limit) {
    std::uniform_int_distribution<int> uniform(-limit, limit);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) put(data, dtype, r * stride + c, static_cast<float>(uniform(rng)));
    }
    remember();
  }
  void remember() {
    values.clear();
    for (int64_t i = 0; i < rows * cols; ++i) values.push_back(at(i / cols, i % cols));
  }
  float at(int64_t r, int64_t c) const { return get(data, dtype, r * stride + c); }
  Matrix view() { return {data, dtype, rows, cols, stride}; }

  DType dtype;
  int64_t rows, cols, stride;
  std::vector<std::byte> bytes;
  void* data;
  std::vector<float> values;  // what fill() stored, rows without gaps
};

double gelu(Activation activation, double v) {
  if (activation == Activation::kGeluTanh) {
    return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  }
  if (activation == Activation::kGeluErf) return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
  return v;
}

double bf16_ulp(double v) {
  if (v == 0) return std::ldexp(1.0, -133);
  return std::ldexp(1.0, std::ilogb(v) - 7);
}

struct Expected {
  double value;
  double tolerance;
};

// One output in double, and how far float sums in any order (and for bf16 one flipped rounding per stored
// value) can be from it.
Expected expect_linear(const Buffer& x, const Buffer& w, int64_t r, int64_t n, const float* bias,
                       Activation activation, const Buffer* residual) {
  double sum = 0, magnitude = 0;
  const float* xr = x.values.data() + r * x.cols;
  const float* wn = w.values.data() + n * w.cols;
  for (int64_t i = 0; i < x.cols; ++i) {
    const double p = static_cast<double>(xr[i]) * wn[i];
    sum += p;
    magnitude += std::abs(p);
  }
  if (bias != nullptr) {
    sum += bias[n];
    magnitude += std::abs(bias[n]);
  }
  const bool bf16 = x.dtype == DType::kBF16;
  double tolerance = static_cast<double>(x.cols + 2) * kEps * magnitude;
  if (bf16) tolerance += 0.51 * bf16_ulp(std::abs(sum) + tolerance);
  double value = sum;
  if (activation != Activation::kNone) {
    value = gelu(activation, sum);
    tolerance = 1.13 * tolerance + 4e-7 * std::abs(sum) + 4e-6 * std::abs(value);
    if (bf16) tolerance += 0.51 * bf16_ulp(std::abs(value) + tolerance);
  }
  if (residual != nullptr) {
    value += residual->at(r, n);
    tolerance += kEps * std::abs(value);
    if (bf16) tolerance += 0.51 * bf16_ulp(std::abs(value) + tolerance);
  }
  return {value, tolerance + kEps * std::abs(value)};
}

class LinearTest : public testing::TestWithParam<std::string_view> {
 protected:
  const KernelTable& table() { return table_by_name(GetParam()); }
};

struct Case {
  LinearPath path;
  Types types;
  int64_t m, n, k;
  bool bias;
  Activation activation;
  bool residual;
  bool in_place;
  int64_t pad;  // stride - cols
};

void check_case(const Context& ctx, const Case& c, std::mt19937& rng) {
  SCOPED_TRACE("path " + std::to_string(static_cast<int>(c.path)) + " types " +
               std::string(dtype_name(c.types.x)) + "x" + std::string(dtype_name(c.types.w)) + " m " +
               std::to_string(c.m) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " pad " +
               std::to_string(c.pad) + " bias " + std::to_string(c.bias) + " residual " +
               std::to_string(c.residual) + " in place " + std::to_string(c.in_place));
  Buffer x(c.types.x, c.m, c.k, c.k + c.pad, c.pad), w(c.types.w, c.n, c.k, c.k, c.pad);
  Buffer residual(c.types.x, c.m, c.n, c.n + c.pad, c.pad), y(c.types.x, c.m, c.n, c.n + 2 * c.pad, c.pad);
  x.fill(rng, 1.0f);
  w.fill(rng, 1.5f / std::sqrt(static_cast<float>(c.k)));
  residual.fill(rng, 1.0f);
  std::vector<float> bias(static_cast<size_t>(c.n));
  std::normal_distribution<float> normal;
  for (float& b : bias) b = round_to_bf16(normal(rng));

  Buffer original_residual(c.types.x, c.m, c.n, c.n + c.pad, c.pad);
  original_residual.bytes = residual.bytes;
  original_residual.data =
      original_residual.bytes.data() + static_cast<size_t>(c.pad) * dtype_size_bytes(c.types.x);
  const std::vector<std::byte> y_before = y.bytes;
  Weight weight{w.data, c.types.w, c.n, c.k, c.bias ? bias.data() : nullptr};
  Matrix out = c.in_place ? residual.view() : y.view();
  linear(ctx, c.path, x.view(), weight, c.activation,
         c.residual ? ConstMatrix(residual.view()) : ConstMatrix{}, out);
  const Buffer& result = c.in_place ? residual : y;
  for (int64_t r = 0; r < c.m; ++r) {
    for (int64_t n = 0; n < c.n; ++n) {
      const Expected e =
          expect_linear(x, w, r, n, weight.bias, c.activation, c.residual ? &original_residual : nullptr);
      ASSERT_NEAR(result.at(r, n), e.value, e.tolerance) << "row " << r << " column " << n;
    }
  }
  // The gaps between rows are not ours.
  if (!c.in_place && c.pad > 0) {
    const size_t size = dtype_size_bytes(y.dtype);
    const std::byte* base = static_cast<const std::byte*>(y.data);
    for (int64_t r = 0; r + 1 < c.m; ++r) {
      const size_t begin =
          static_cast<size_t>(base - y.bytes.data()) + static_cast<size_t>(r * y.stride + c.n) * size;
      ASSERT_EQ(std::memcmp(y.bytes.data() + begin, y_before.data() + begin, 2 * c.pad * size), 0)
          << "gap after " << r;
    }
  }
}

TEST_P(LinearTest, MatchesDoubleForAllTails) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  std::mt19937 rng(1);
  const int64_t ks[] = {1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 97};
  const int64_t ns[] = {1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 81, 129};
  int counter = 0;
  for (const Types& types : kTypes) {
    for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      for (int64_t k : ks) {
        for (int64_t n : ns) {
          // Every combination of n and k, rows and the last step running through theirs.
          const int i = counter++;
          const int64_t m = 1 + i % (path == LinearPath::kGemm ? 20 : 16);
          const bool residual = i % 3 != 0;
          check_case(ctx,
                     {path, types, m, n, k, i % 2 == 0, static_cast<Activation>(i / 2 % 3), residual,
                      residual && i % 5 < 2, i % 4},
                     rng);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(LinearTest, MatchesDoubleForAllRowCounts) {
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  std::mt19937 rng(2);
  for (const Types& types : kTypes) {
    for (int64_t m = 0; m <= 20; ++m) {
      for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
        if (path == LinearPath::kGemv && m > 16) continue;
        check_case(ctx, {path, types, m, 70, 50, true, Activation::kNone, true, false, 3}, rng);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(LinearTest, MatchesDoubleBeyondOneBlock) {
  // More than one block of depth (1024), of columns and of rows.
  std::mt19937 rng(3);
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    const Context ctx{&pool, &table()};
    for (const Types& types : kTypes) {
      for (const auto& [m, n, k] : {std::array<int64_t, 3>{7, 70, 2049},
                                    {3, 17, 4099},
                                    {401, 330, 19},
                                    {5, 65, 1024},
                                    {8, 40, 1025}}) {
        check_case(ctx, {LinearPath::kGemm, types, m, n, k, true, Activation::kGeluTanh, true, true, 0}, rng);
        if (m <= 16)
          check_case(ctx, {LinearPath::kGemv, types, m, n, k, true, Activation::kGeluErf, true, true, 1},
                     rng);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(LinearTest, RowsDoNotDependOnOtherRowsOrThreads) {
  std::mt19937 rng(4);
  constexpr int64_t kRows = 420, kCols = 150, kDepth = 2081;
  for (const Types& types : kTypes) {
    Buffer x(types.x, kRows, kDepth, kDepth), w(types.w, kCols, kDepth, kDepth),
        up(types.w, kCols, kDepth, kDepth);
    x.fill(rng, 1.0f);
    w.fill(rng, 0.03f);
    up.fill(rng, 0.03f);
    const Weight gate_weight{w.data, types.w, kCols, kDepth, nullptr};
    const Weight up_weight{up.data, types.w, kCols, kDepth, nullptr};
    for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      const int64_t all = path == LinearPath::kGemm ? kRows : 16;
      Buffer whole(types.x, all, kCols, kCols), whole_swiglu(types.x, all, kCols, kCols);
      {
        ThreadPool pool(1);
        const Context ctx{&pool, &table()};
        Matrix xs = x.view();
        xs.rows = all;
        linear(ctx, path, xs, gate_weight, Activation::kGeluErf, {}, whole.view());
        linear_swiglu(ctx, path, xs, gate_weight, up_weight, whole_swiglu.view());
      }
      for (int threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        const Context ctx{&pool, &table()};
        for (const auto& [begin, rows] :
             {std::array<int64_t, 2>{0, all}, {0, 1}, {5, 1}, {3, 2}, {2, 4}, {9, 7}, {0, 13}}) {
          Matrix part = x.view();
          part.data = static_cast<std::byte*>(x.data) +
                      static_cast<size_t>(begin * x.stride) * dtype_size_bytes(x.dtype);
          part.rows = rows;
          Buffer y(types.x, rows, kCols, kCols), y_swiglu(types.x, rows, kCols, kCols);
          linear(ctx, path, part, gate_weight, Activation::kGeluErf, {}, y.view());
          linear_swiglu(ctx, path, part, gate_weight, up_weight, y_swiglu.view());
          const size_t offset = static_cast<size_t>(begin * kCols) * dtype_size_bytes(types.x);
          ASSERT_EQ(std::memcmp(whole.bytes.data() + offset, y.bytes.data(), y.bytes.size()), 0)
              << "rows " << begin << "+" << rows << " threads " << threads << " path "
              << static_cast<int>(path);
          ASSERT_EQ(
              std::memcmp(whole_swiglu.bytes.data() + offset, y_swiglu.bytes.data(), y_swiglu.bytes.size()),
              0)
              << "swiglu, rows " << begin << "+" << rows << " threads " << threads;
        }
      }
    }
  }
}

// Several products in one loop have the bits of single ones, also where their weights' types differ.
TEST_P(LinearTest, TogetherIsEachByItself) {
  std::mt19937 rng(10);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  const int64_t k = 200, outs[] = {300, 40, 129};
  using Three = std::array<DType, 3>;
  for (const auto& [type, types] : {std::pair(DType::kBF16, Three{DType::kBF16, DType::kBF16, DType::kBF16}),
                                    std::pair(DType::kF32, Three{DType::kF32, DType::kF32, DType::kF32}),
                                    std::pair(DType::kF32, Three{DType::kBF16, DType::kF16, DType::kBF16})}) {
    for (const LinearPath path : {LinearPath::kGemv, LinearPath::kGemm}) {
      for (const int64_t rows : {0, 1, 5, 16}) {
        SCOPED_TRACE(std::string(dtype_name(types[0])) + ", " + std::to_string(rows) + " rows");
        Buffer x(type, rows, k, k + 3);
        x.fill(rng, 1.0f);
        std::vector<Buffer> weights, together, single;
        for (size_t i = 0; i < 3; ++i) {
          weights.emplace_back(types[i], outs[i], k, k);
          weights.back().fill(rng, 1.0f);
          together.emplace_back(type, rows, outs[i], outs[i]);
          single.emplace_back(type, rows, outs[i], outs[i]);
        }
        std::vector<Weight> views;
        std::vector<LinearProduct> products;
        for (size_t i = 0; i < 3; ++i) views.push_back({weights[i].bytes.data(), types[i], outs[i], k, nullptr});
        for (size_t i = 0; i < 3; ++i) {
          together[i].data = together[i].bytes.data();
          single[i].data = single[i].bytes.data();
          products.push_back({x.view(), &views[i], together[i].view()});
          linear(ctx, path, x.view(), views[i], Activation::kNone, {}, single[i].view());
        }
        linear_together(ctx, path, products);
        for (size_t i = 0; i < 3; ++i) ASSERT_EQ(together[i].bytes, single[i].bytes) << "product " << i;
      }
    }
  }
}

TEST_P(LinearTest, ExactSumsRoundLikeTheOracle) {
  // Integer data: every order of summation gives the same float, so the stored bits are fixed. Sums reach
  // thousands, where bfloat16 keeps steps of 8 to 32, and the residual rounds again.
  ThreadPool pool(2);
  std::mt19937 rng(5);
  const Context oracle{&pool, &table_by_name("scalar")}, ctx{&pool, &table()};
  for (const Types& types : kTypes) {
    for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      for (int64_t k : {33, 64, 301}) {
        Buffer x(types.x, 11, k, k), w(types.w, 77, k, k), up(types.w, 77, k, k),
            residual(types.x, 11, 77, 77);
        x.fill_integers(rng, 15);
        w.fill_integers(rng, 15);
        up.fill_integers(rng, 15);
        residual.fill_integers(rng, 200);
        std::vector<float> bias(77);
        for (float& b : bias) b = static_cast<float>(static_cast<int>(rng() % 101) - 50);
        const Weight weight{w.data, types.w, 77, k, bias.data()};
        for (const bool with_residual : {false, true}) {
          Buffer want(types.x, 11, 77, 77), got(types.x, 11, 77, 77);
          const ConstMatrix r = with_residual ? ConstMatrix(residual.view()) : ConstMatrix{};
          linear(oracle, path, x.view(), weight, Activation::kNone, r, want.view());
          linear(ctx, path, x.view(), weight, Activation::kNone, r, got.view());
          ASSERT_EQ(want.bytes, got.bytes);
          // And the oracle against the contract, written out.
          for (int64_t i = 0; i < 11; ++i) {
            for (int64_t n = 0; n < 77; ++n) {
              double sum = bias[static_cast<size_t>(n)];
              for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(x.at(i, j)) * w.at(n, j);
              float v = static_cast<float>(sum);
              if (types.x == DType::kBF16) v = round_to_bf16(v);
              if (with_residual) v += residual.at(i, n);
              if (types.x == DType::kBF16) v = round_to_bf16(v);
              ASSERT_EQ(want.at(i, n), v);
            }
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, Bf16ActivationSeesTheRoundedSum) {
  // 257 + 1/2 is no bfloat16; without the rounding before the activation and before the residual the results
  // differ.
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  std::vector<BFloat16> x = {to_bfloat16(1.0f)}, w(40);
  std::vector<float> bias(40);
  std::vector<BFloat16> residual(40), y(40);
  for (int i = 0; i < 40; ++i) {
    w[i] = to_bfloat16(256.0f);
    bias[i] = 1.0f + 0.25f * static_cast<float>(i % 5);
    residual[i] = to_bfloat16(-256.0f);
  }
  const Weight weight{w.data(), DType::kBF16, 40, 1, bias.data()};
  for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
    for (Activation activation : {Activation::kNone, Activation::kGeluTanh, Activation::kGeluErf}) {
      linear(ctx, path, {x.data(), DType::kBF16, 1, 1, 1}, weight, activation,
             {residual.data(), DType::kBF16, 1, 40, 40}, {y.data(), DType::kBF16, 1, 40, 40});
      for (int i = 0; i < 40; ++i) {
        // GELU is the identity here.
        const float stored = round_to_bf16(256.0f + bias[i]);
        ASSERT_EQ(to_float(y[i]), round_to_bf16(stored - 256.0f)) << i;
      }
    }
  }
}

TEST_P(LinearTest, SwigluMatchesDouble) {
  std::mt19937 rng(6);
  for (int threads : {1, 2}) {
    ThreadPool pool(threads);
    const Context ctx{&pool, &table()};
    for (const Types& types : kTypes) {
      for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
        for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                      {2, 16, 7},
                                      {5, 65, 33},
                                      {13, 130, 64},
                                      {16, 200, 129},
                                      {3, 40, 2050}}) {
          Buffer x(types.x, m, k, k + 3), gate(types.w, n, k, k), up(types.w, n, k, k),
              y(types.x, m, n, n + 1);
          x.fill(rng, 1.0f);
          gate.fill(rng, 2.0f / std::sqrt(static_cast<float>(k)));
          up.fill(rng, 2.0f / std::sqrt(static_cast<float>(k)));
          linear_swiglu(ctx, path, x.view(), {gate.data, types.w, n, k, nullptr},
                        {up.data, types.w, n, k, nullptr}, y.view());
          const bool bf16 = types.x == DType::kBF16;
          for (int64_t r = 0; r < m; ++r) {
            for (int64_t j = 0; j < n; ++j) {
              const Expected g = expect_linear(x, gate, r, j, nullptr, Activation::kNone, nullptr);
              const Expected u = expect_linear(x, up, r, j, nullptr, Activation::kNone, nullptr);
              const double s = g.value / (1 + std::exp(-g.value));
              double s_tolerance = 1.1 * g.tolerance + 1e-6 * std::abs(s);
              if (bf16) s_tolerance += 0.51 * bf16_ulp(std::abs(s) + s_tolerance);
              double tolerance = s_tolerance * (std::abs(u.value) + u.tolerance) + std::abs(s) * u.tolerance +
                                 2 * kEps * std::abs(s * u.value);
              if (bf16) tolerance += 0.51 * bf16_ulp(std::abs(s * u.value) + tolerance);
              ASSERT_NEAR(y.at(r, j), s * u.value, tolerance)
                  << m << "x" << n << "x" << k << " at " << r << "," << j;
            }
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, SwigluRoundsEachStoredValue) {
  // Exact sums: the chain of the contract fixes the bits, but for silu's own last-bit error before it is
  // rounded.
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  std::mt19937 rng(7);
  Buffer x(DType::kBF16, 6, 40, 40), gate(DType::kBF16, 90, 40, 40), up(DType::kBF16, 90, 40, 40);
  x.fill_integers(rng, 3);
  gate.fill_integers(rng, 3);
  up.fill_integers(rng, 100);
  Buffer y(DType::kBF16, 6, 90, 90);
  for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
    linear_swiglu(ctx, path, x.view(), {gate.data, DType::kBF16, 90, 40, nullptr},
                  {up.data, DType::kBF16, 90, 40, nullptr}, y.view());
    int differing = 0;
    for (int64_t r = 0; r < 6; ++r) {
      for (int64_t j = 0; j < 90; ++j) {
        double g = 0, u = 0;
        for (int64_t i = 0; i < 40; ++i) {
          g += static_cast<double>(x.at(r, i)) * gate.at(j, i);
          u += static_cast<double>(x.at(r, i)) * up.at(j, i);
        }
        const double gr = round_to_bf16(static_cast<float>(g));
        const float s = round_to_bf16(static_cast<float>(gr / (1 + std::exp(-gr))));
        const float want = round_to_bf16(s * round_to_bf16(static_cast<float>(u)));
        if (y.at(r, j) != want) ++differing;
        ASSERT_NEAR(y.at(r, j), want, 2 * bf16_ulp(want) + 1e-30);
      }
    }
    EXPECT_LE(differing, 3);  // of 540
  }
}

TEST_P(LinearTest, AddRowsMatchesTheOracleExactly) {
  std::mt19937 rng(8);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int64_t cols : {1, 15, 16, 17, 100, 40000}) {
      Buffer x(dtype, 5, cols, cols + 3, 1), y(dtype, 5, cols, cols + 1);
      x.fill(rng, 3.0f);
      y.fill(rng, 3.0f);
      std::vector<float> want;
      for (int64_t r = 0; r < 5; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const float v = x.at(r, c) + y.at(r, c);
          want.push_back(dtype == DType::kBF16 ? round_to_bf16(v) : v);
        }
      }
      add_rows(ctx, x.view(), y.view());
      for (int64_t i = 0; i < 5 * cols; ++i)
        ASSERT_EQ(x.at(i / cols, i % cols), want[static_cast<size_t>(i)]);
    }
  }
}

TEST_P(LinearTest, SpecialValuesArePropagated) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const Types& types : kTypes) {
    for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
      Buffer x(types.x, 3, 35, 35), w(types.w, 20, 35, 35), y(types.x, 3, 20, 20);
      for (int64_t i = 0; i < 3 * 35; ++i) put(x.data, types.x, i, 1.0f);
      for (int64_t i = 0; i < 20 * 35; ++i) put(w.data, types.w, i, 1.0f);
      put(x.data, types.x, 34, inf);      // row 0, the odd last input
      put(x.data, types.x, 35 + 7, nan);  // row 1
      linear(ctx, path, x.view(), {w.data, types.w, 20, 35, nullptr}, Activation::kNone, {}, y.view());
      for (int64_t n = 0; n < 20; ++n) {
        EXPECT_EQ(y.at(0, n), inf);
        EXPECT_TRUE(std::isnan(y.at(1, n)));
        EXPECT_EQ(y.at(2, n), 35.0f);
      }
    }
  }
}

std::vector<std::string_view> table_names() {
  return {runnable_tables().begin(), runnable_tables().end()};
}

INSTANTIATE_TEST_SUITE_P(Tables, LinearTest, testing::ValuesIn(table_names()),
                         [](const auto& test) { return std::string(test.param); });

// --- checks
// ------------------------------------------------------------------------------------------------------

template <typename Fn>
void expect_error(ErrorCode code, std::string_view text, const Fn& fn) {
  try {
    fn();
    FAIL() << "no error, wanted " << text;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
  }
}

TEST(LinearChecksTest, RejectsWhatDoesNotFit) {
  ThreadPool pool(1);
  const Context ctx{&pool, &active_table()};
  Buffer x(DType::kF32, 17, 8, 8), w(DType::kF32, 4, 8, 8), y(DType::kF32, 17, 4, 4),
      r(DType::kF32, 17, 4, 4);
  const Weight weight{w.data, DType::kF32, 4, 8, nullptr};
  const auto call = [&](LinearPath path, ConstMatrix xs, const Weight& ws, ConstMatrix rs, Matrix ys) {
    return [=, &ctx] { linear(ctx, path, xs, ws, Activation::kNone, rs, ys); };
  };
  const auto gemm = LinearPath::kGemm;
  call(gemm, x.view(), weight, r.view(), y.view())();

  Matrix bad = x.view();
  bad.cols = 7;
  expect_error(ErrorCode::kMismatch, "[linear] x shape", call(gemm, bad, weight, {}, y.view()));
  bad = x.view();
  bad.stride = 7;
  expect_error(ErrorCode::kMismatch, "row stride", call(gemm, bad, weight, {}, y.view()));
  bad = y.view();
  bad.rows = 16;
  expect_error(ErrorCode::kMismatch, "y shape", call(gemm, x.view(), weight, {}, bad));
  bad = r.view();
  bad.cols = 3;
  expect_error(ErrorCode::kMismatch, "residual shape", call(gemm, x.view(), weight, bad, y.view()));
  expect_error(ErrorCode::kMismatch, "at most 16, got 17",
               call(LinearPath::kGemv, x.view(), weight, {}, y.view()));

  bad = y.view();
  bad.dtype = DType::kBF16;
  expect_error(ErrorCode::kUnsupported, "y type", call(gemm, x.view(), weight, {}, bad));
  bad = x.view();
  bad.dtype = DType::kF16;
  expect_error(ErrorCode::kUnsupported, "activation type", call(gemm, bad, weight, {}, y.view()));
  Weight other = weight;
  other.dtype = DType::kI8;
  expect_error(ErrorCode::kUnsupported, "types of x and weight", call(gemm, x.view(), other, {}, y.view()));
  other = weight;
  other.data = nullptr;
  expect_error(ErrorCode::kInvalidArgument, "weight: no data", call(gemm, x.view(), other, {}, y.view()));
  other = weight;
  other.in = 0;
  expect_error(ErrorCode::kMismatch, "sizes", call(gemm, x.view(), other, {}, y.view()));

  Buffer xb(DType::kBF16, 2, 8, 8), yb(DType::kBF16, 2, 4, 4);
  expect_error(ErrorCode::kUnsupported, "BF16 with F32", call(gemm, xb.view(), weight, {}, yb.view()));
  expect_error(ErrorCode::kMismatch, "[add_rows] y shape", [&] { add_rows(ctx, y.view(), x.view()); });
  expect_error(ErrorCode::kInvalidArgument, "context", [&] {
    add_rows({&pool, nullptr}, y.view(), y.view());
  });
}

TEST(LinearChecksTest, RejectsProductsTogetherBeforeWritingAny) {
  ThreadPool pool(1);
  const Context ctx{&pool, &active_table()};
  std::mt19937 rng(1);
  Buffer x(DType::kF32, 2, 8, 8), w(DType::kF32, 4, 8, 8), y(DType::kF32, 2, 4, 4), z(DType::kF32, 2, 4, 4);
  for (Buffer* b : {&x, &w, &y}) b->fill(rng, 1.0f);
  const std::vector<std::byte> before = y.bytes;
  const Weight weight{w.data, DType::kF32, 4, 8, nullptr};
  Weight other = weight;
  const auto call = [&](size_t count, const Weight* second) {
    return [=, &ctx, &x, &y, &z, &weight] {
      std::vector<LinearProduct> products(count, {x.view(), &weight, y.view()});
      products[1] = {x.view(), second, z.view()};
      linear_together(ctx, LinearPath::kGemv, products);
    };
  };
  expect_error(ErrorCode::kInvalidArgument, "[linear_together] products: expected at most 4, got 5", call(5, &weight));
  expect_error(ErrorCode::kInvalidArgument, "without a weight", call(2, nullptr));
  other.in = 7;
  expect_error(ErrorCode::kMismatch, "x shape", call(2, &other));
  other = weight;
  other.dtype = DType::kI8;
  expect_error(ErrorCode::kUnsupported, "types of x and weight", call(2, &other));
  EXPECT_EQ(y.bytes, before);
  call(2, &weight)();
  EXPECT_EQ(y.bytes, z.bytes);
  EXPECT_NE(y.bytes, before);
  linear_together(ctx, LinearPath::kGemv, {});
}

TEST(LinearChecksTest, RejectsSwigluThatDoesNotFit) {
  ThreadPool pool(1);
  const Context ctx{&pool, &active_table()};
  Buffer x(DType::kF32, 2, 8, 8), w(DType::kF32, 4, 8, 8), y(DType::kF32, 2, 4, 4);
  const Weight gate{w.data, DType::kF32, 4, 8, nullptr};
  Weight up = gate;
  up.out = 3;
  expect_error(ErrorCode::kMismatch, "[linear_swiglu] shape of the up projection",
               [&] { linear_swiglu(ctx, LinearPath::kGemm, x.view(), gate, up, y.view()); });
  up = gate;
  up.dtype = DType::kBF16;
  expect_error(ErrorCode::kUnsupported, "type of the up projection",
               [&] { linear_swiglu(ctx, LinearPath::kGemm, x.view(), gate, up, y.view()); });
  std::vector<float> bias(4);
  up = gate;
  up.bias = bias.data();
  expect_error(ErrorCode::kUnsupported, "bias",
               [&] { linear_swiglu(ctx, LinearPath::kGemm, x.view(), gate, up, y.view()); });
}

}  // namespace
}  // namespace qvl::kernels
