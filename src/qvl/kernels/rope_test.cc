// rope_vision and qk_norm_rope_append on every table that runs here, against plain double loops, and the
// rounding steps of the bf16 decoder.
#include "qvl/base/error.h"
#include "qvl/kernels/attention_testing.h"

namespace qvl::kernels {
namespace {

using testing::Activations;
using testing::Cache;
using testing::kUnit;
using testing::VariantTest;

// cos and sin of random angles [rows, half].
struct Angles {
  std::vector<float> cos, sin;
  Angles(int64_t rows, int64_t half, uint32_t seed) {
    std::mt19937 g(seed);
    std::uniform_real_distribution<float> u(-3.1f, 3.1f);
    for (int64_t i = 0; i < rows * half; ++i) {
      const float a = u(g);
      cos.push_back(std::cos(a));
      sin.push_back(std::sin(a));
    }
  }
};

class Rope : public VariantTest {};

TEST_P(Rope, VisionMatchesTheHalvesRule) {
  for (int64_t hd : {4, 6, 16, 32, 48, 64, 72, 80, 128}) {
    const int64_t rows = 13, heads = 3, half = hd / 2;
    // q inside packed qkv: the other columns must stay as they are.
    Activations x(dtype(), rows, 3 * heads * hd);
    testing::fill_normal(x, 1);
    const Activations before = x.copy();
    const Angles a(rows, half, 2);
    rope_vision(context(), x.view(0, rows, heads * hd, heads * hd), heads, hd, a.cos.data(), a.sin.data());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c) {
        if (c < heads * hd || c >= 2 * heads * hd) {
          ASSERT_EQ(x.at(r, c), before.at(r, c));
          continue;
        }
        const int64_t d = (c - heads * hd) % hd, pair = d % half;
        const double other = d < half ? -before.at(r, c + half) : before.at(r, c - half);
        const double cosine = a.cos[static_cast<size_t>(r * half + pair)],
                     sine = a.sin[static_cast<size_t>(r * half + pair)];
        const double expected = before.at(r, c) * cosine + other * sine;
        const double magnitude = std::abs(before.at(r, c) * cosine) + std::abs(other * sine);
        // Products and sum in float, then one rounding: no further than half a unit of bf16.
        const double tolerance =
            2 * kUnit * magnitude + (bf16() ? (std::abs(expected) + 2 * kUnit * magnitude) / 256 : 0);
        ASSERT_NEAR(x.at(r, c), expected, tolerance + 1e-37) << "head_dim " << hd << " at " << r << ", " << c;
      }
    }
  }
}

TEST_P(Rope, AppendNormsRotatesAndStores) {
  for (int64_t hd : {4, 16, 32, 48, 64, 72, 80, 128}) {
    const int64_t rows = 21, heads = 4, kv_heads = 2, past = 30, half = hd / 2;
    Cache cache(dtype(), past + rows, 16, kv_heads, hd);
    Activations q(dtype(), rows, heads * hd, 1), k(dtype(), rows, kv_heads * hd, 2),
        v(dtype(), rows, kv_heads * hd, 3);
    testing::fill_normal(q, 3, 2.0f);
    testing::fill_normal(k, 4, 0.5f);
    testing::fill_normal(v, 5);
    const Activations q_before = q.copy(), k_before = k.copy();
    const auto q_norm = testing::random_floats(hd, 6, 0.2f, 1.0f, dtype());
    const auto k_norm = testing::random_floats(hd, 7, 0.2f, 1.0f, dtype());
    const Angles a(rows, half, 8);
    const float eps = 1e-6f;
    qk_norm_rope_append(context(), q.matrix(), k.matrix(), v.matrix(), heads, q_norm.data(), k_norm.data(),
                        eps, a.cos.data(), a.sin.data(), past, cache.view);

    // `get(d)` is the head's input, `out(d)` what came out.
    const auto check = [&](int64_t r, const std::vector<float>& norm, const auto& get, const auto& out) {
      double mean = 0;
      for (int64_t d = 0; d < hd; ++d) mean += static_cast<double>(get(d)) * get(d);
      const double inverse = 1.0 / std::sqrt(mean / static_cast<double>(hd) + static_cast<double>(eps));
      for (int64_t d = 0; d < hd; ++d) {
        const int64_t pair = d % half;
        const auto angle = static_cast<size_t>(r * half + pair);
        const int64_t twin = d < half ? d + half : d - half;
        const float sign = d < half ? -1.0f : 1.0f;
        const auto normed = [&](int64_t i) { return get(i) * inverse * norm[static_cast<size_t>(i)]; };
        if (!bf16()) {
          const double one = normed(d) * a.cos[angle], two = sign * normed(twin) * a.sin[angle];
          const double tolerance =
              kUnit * (16 + std::sqrt(static_cast<double>(hd))) * (std::abs(one) + std::abs(two));
          ASSERT_NEAR(out(d), one + two, tolerance + 1e-37)
              << "head_dim " << hd << " row " << r << " element " << d;
          continue;
        }
        // Every step rounded as spec B has it, computed from the double statistics; where a value before the
        // first rounding is within the float error of a tie, either neighbour is right.
        const auto steps = [&](double nudge_d, double nudge_twin) {
          const auto rounded = [&](int64_t i, double nudge) {
            const float n = round_to_bf16(static_cast<float>(get(i) * inverse * (1 + nudge)));
            return round_to_bf16(n * norm[static_cast<size_t>(i)]);
          };
          const float c = round_to_bf16(a.cos[angle]), s = round_to_bf16(a.sin[angle]);
          const float one = round_to_bf16(rounded(d, nudge_d) * c);
          const float two = round_to_bf16(sign * rounded(twin, nudge_twin) * s);
          return round_to_bf16(one + two);
        };
        const double e = kUnit * (8 + std::sqrt(static_cast<double>(hd)) / 4);
        bool right = false;
        for (double x : {-e, e}) {
          for (double y : {-e, e}) right = right || out(d) == steps(x, y);
        }
        ASSERT_TRUE(right) << "head_dim " << hd << " row " << r << " element " << d << ": " << out(d)
                           << " expected " << steps(0, 0);
      }
    };

    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        check(
            r, q_norm, [&](int64_t d) { return q_before.at(r, h * hd + d); },
            [&](int64_t d) { return q.at(r, h * hd + d); });
      }
      for (int64_t h = 0; h < kv_heads; ++h) {
        check(
            r, k_norm, [&](int64_t d) { return k_before.at(r, h * hd + d); },
            [&](int64_t d) { return cache.key(past + r, h, d); });
        for (int64_t d = 0; d < hd; ++d) ASSERT_EQ(cache.value(past + r, h, d), v.at(r, h * hd + d));
      }
    }
    // Nothing else was written.
    for (int64_t p = 0; p < past; ++p) {
      for (int64_t d = 0; d < hd; ++d)
        ASSERT_TRUE(std::isnan(cache.key(p, 0, d)) && std::isnan(cache.value(p, 1, d)));
    }
  }
}

// One row at a time, on one thread, gives the bits of all rows on three.
TEST_P(Rope, AppendRowsAreIndependent) {
  const int64_t rows = 40, heads = 8, kv_heads = 2, hd = 128;
  const auto q_norm = testing::random_floats(hd, 9, 0.2f, 1.0f, dtype());
  Activations q(dtype(), rows, heads * hd), k(dtype(), rows, kv_heads * hd), v(dtype(), rows, kv_heads * hd);
  testing::fill_normal(q, 10);
  testing::fill_normal(k, 11);
  testing::fill_normal(v, 12);
  Activations q2 = q.copy();
  const Angles a(rows, hd / 2, 13);
  Cache together(dtype(), rows, 16, kv_heads, hd), single(dtype(), rows, 16, kv_heads, hd);
  ThreadPool one(1), three(3);
  const KernelTable* table = context().table;
  qk_norm_rope_append({&three, table}, q.matrix(), k.matrix(), v.matrix(), heads, q_norm.data(),
                      q_norm.data(), 1e-6f, a.cos.data(), a.sin.data(), 0, together.view);
  for (int64_t r = 0; r < rows; ++r) {
    qk_norm_rope_append({&one, table}, q2.view(r, 1, 0, q.cols), k.view(r, 1, 0, k.cols),
                        v.view(r, 1, 0, v.cols), heads, q_norm.data(), q_norm.data(), 1e-6f,
                        a.cos.data() + r * hd / 2, a.sin.data() + r * hd / 2, r, single.view);
  }
  EXPECT_TRUE(testing::same_bits(q, q2));
  for (size_t b = 0; b < together.blocks.size(); ++b)
    EXPECT_EQ(std::memcmp(together.blocks[b].data(), single.blocks[b].data(), single.blocks[b].size_bytes()), 0);
}

TEST_P(Rope, RejectsWhatDoesNotFit) {
  const int64_t rows = 5, hd = 16;
  Cache cache(dtype(), 16, 16, 2, hd);
  Activations q(dtype(), rows, 4 * hd), k(dtype(), rows, 2 * hd), v(dtype(), rows, 2 * hd),
      short_v(dtype(), 4, 2 * hd);
  const std::vector<float> w(64, 1.0f), angle(static_cast<size_t>(rows * hd), 0.5f);
  const auto call = [&](Matrix qm, ConstMatrix km, ConstMatrix vm, int64_t heads, int64_t past, KvView kv) {
    qk_norm_rope_append(context(), qm, km, vm, heads, w.data(), w.data(), 1e-6f, angle.data(), angle.data(),
                        past, kv);
  };
  call(q.matrix(), k.matrix(), v.matrix(), 4, 11, cache.view);
  EXPECT_THROW(call(q.matrix(), k.matrix(), v.matrix(), 3, 0, cache.view), Error);
  EXPECT_THROW(call(q.matrix(), k.matrix(), v.matrix(), 4, -1, cache.view), Error);
  EXPECT_THROW(call(q.matrix(), k.matrix(), short_v.matrix(), 4, 0, cache.view), Error);
  EXPECT_THROW(call(q.matrix(), q.matrix(), v.matrix(), 4, 0, cache.view), Error);
  KvView null_block = cache.view;
  void* none = nullptr;
  null_block.blocks = &none;
  EXPECT_THROW(call(q.matrix(), k.matrix(), v.matrix(), 4, 0, null_block), Error);
  EXPECT_THROW(rope_vision(context(), q.matrix(), 3, hd, angle.data(), angle.data()), Error);
  EXPECT_THROW(rope_vision(context(), q.matrix(), 64, 1, angle.data(), angle.data()), Error);
  EXPECT_THROW(rope_vision(context(), q.matrix(), 4, hd, nullptr, angle.data()), Error);
}

INSTANTIATE_TEST_SUITE_P(Tables, Rope, ::testing::ValuesIn(testing::all_variants()), testing::variant_name);

}  // namespace
}  // namespace qvl::kernels
