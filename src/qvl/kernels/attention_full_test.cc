// attention_full on every table that runs here, against plain double loops.
#include <numeric>
#include <optional>

#include "qvl/base/error.h"
#include "qvl/kernels/attention_testing.h"

namespace qvl::kernels {
namespace {

using testing::Activations;
using testing::VariantTest;

// With a cache of int8: attention in 8-bit codes.
std::vector<testing::Variant> variants() {
  std::vector<testing::Variant> v = testing::all_variants();
  for (std::string_view name : runnable_tables()) {
    if (has_int8_attention(table_by_name(name))) v.push_back({std::string(name), DType::kBF16, DType::kI8});
  }
  return v;
}
std::string name_of(const ::testing::TestParamInfo<testing::Variant>& info) {
  const testing::Variant& v = info.param;
  return v.table + "_" + std::string(dtype_name(v.dtype)) + (v.cache == DType::kI8 ? "_int8" : "");
}

class AttentionFull : public VariantTest {
 protected:
  AttentionProducts products() const { return int8() ? AttentionProducts::kInt8 : AttentionProducts::kActivations; }
  bool int16() { return VariantTest::int16() && !int8(); }

  // Packed qkv [P, 3, heads, hd] as the encoder has it.
  struct Case {
    int64_t heads, head_dim;
    std::vector<int64_t> segments;
  };

  int64_t tokens(const Case& c) const {
    return std::accumulate(c.segments.begin(), c.segments.end(), int64_t{0});
  }

  Activations run(const Context& ctx, const Case& c, Activations& qkv, float scale) {
    const int64_t p = tokens(c), width = c.heads * c.head_dim;
    Activations out(dtype(), p, width, 3);
    attention_full(ctx, qkv.view(0, p, 0, width), qkv.view(0, p, width, width),
                   qkv.view(0, p, 2 * width, width), c.heads, c.head_dim, c.segments, scale, out.matrix(), products());
    return out;
  }

  void check(const Case& c, Activations& qkv, float scale) {
    const Activations out = run(context(), c, qkv, scale);
    const int64_t width = c.heads * c.head_dim;
    int64_t start = 0;
    for (int64_t length : c.segments) {
      // Long segments: enough rows to meet every place in a tile and in a block.
      const int64_t step = length > 150 ? 7 : 1;
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t column = h * c.head_dim;
        const testing::WideHead head(
            length, c.head_dim, [&](int64_t i, int64_t d) { return qkv.at(start + i, width + column + d); },
            [&](int64_t i, int64_t d) { return qkv.at(start + i, 2 * width + column + d); });
        const std::optional<testing::Int8Head> codes = int8() ? std::optional<testing::Int8Head>(head) : std::nullopt;
        for (int64_t row = start; row < start + length; row += (row + step < start + length ? step : 1)) {
          const auto query = [&](int64_t d) { return qkv.at(row, column + d); };
          const auto e = codes ? testing::attend_int8_in_double(*codes, static_cast<double>(scale), query)
                               : testing::attend_in_double(head, length, scale, bf16(), query, false, int16());
          for (int64_t d = 0; d < c.head_dim; ++d) {
            const auto i = static_cast<size_t>(d);
            ASSERT_NEAR(out.at(row, column + d), e.out[i], e.tolerance[i])
                << "heads " << c.heads << " head_dim " << c.head_dim << " segment of " << length << " row "
                << row << " head " << h << " element " << d;
          }
        }
      }
      start += length;
    }
  }

  void check_random(const Case& c, uint32_t seed, float spread = 1.0f) {
    Activations qkv(dtype(), tokens(c), 3 * c.heads * c.head_dim, 5);
    testing::fill_normal(qkv, seed, spread);
    check(c, qkv, 1.0f / std::sqrt(static_cast<float>(c.head_dim)));
  }
};

TEST_P(AttentionFull, HeadDims) {
  for (int64_t hd : {4, 12, 16, 20, 32, 48, 64, 72, 80, 96, 128, 160}) check_random({2, hd, {37, 70}}, 1);
}

TEST_P(AttentionFull, LengthsAroundTiles) {
  for (int64_t n : {1,  2,  3,  4,   5,   15,  16,  17,  31,  32,  33,  47,  48,  49,  63,  64, 65,
                    95, 96, 97, 127, 128, 129, 191, 192, 193, 255, 256, 257, 300, 511, 512, 513}) {
    check_random({1, 64, {n}}, 2);
  }
  for (int64_t n : {63, 64, 65, 129, 257}) check_random({1, 72, {n}}, 3);
}

TEST_P(AttentionFull, HeadCounts) {
  for (int64_t heads : {1, 3, 16}) check_random({heads, 16, {40}}, 4);
}

TEST_P(AttentionFull, SegmentsDoNotSeeEachOther) {
  check_random({2, 32, {4, 100, 1, 64, 17, 0, 256, 3}}, 5);
}

// Scores of about 1e4 in both directions: one key takes all, nothing overflows.
TEST_P(AttentionFull, LargeScores) {
  check_random({1, 64, {130}}, 6, 100.0f);
  const Case c{1, 16, {200}};
  Activations qkv(dtype(), 200, 48);
  testing::fill_normal(qkv, 7, 1.0f);
  for (int64_t r = 0; r < 200; ++r) {
    for (int64_t d = 0; d < 16; ++d) {
      qkv.set(r, d, 50.0f);
      qkv.set(r, 16 + d, (r % 2 == 0 ? 50.0f : -50.0f) * (1.0f + 0.0625f * static_cast<float>(r % 7)));
    }
  }
  check(c, qkv, 0.25f);
  const Activations out = run(context(), c, qkv, 0.25f);
  for (int64_t r = 0; r < 200; ++r) {
    for (int64_t d = 0; d < 16; ++d) ASSERT_TRUE(std::isfinite(out.at(r, d)));
  }
}

// The maximum rises with every key and falls with every key: both rescaling directions.
TEST_P(AttentionFull, RisingAndFallingScores) {
  for (float sign : {1.0f, -1.0f}) {
    const Case c{1, 16, {700}};
    Activations qkv(dtype(), 700, 48);
    testing::fill_normal(qkv, 8, 1.0f);
    for (int64_t r = 0; r < 700; ++r) {
      for (int64_t d = 0; d < 16; ++d) {
        qkv.set(r, d, 1.0f);
        qkv.set(r, 16 + d, sign * 0.125f * static_cast<float>(r / 4));
      }
    }
    check(c, qkv, 0.25f);
  }
}

TEST_P(AttentionFull, EqualScoresGiveTheMean) {
  const Case c{1, 32, {129}};
  Activations qkv(dtype(), 129, 96);
  testing::fill_normal(qkv, 9);
  for (int64_t r = 0; r < 129; ++r) {
    for (int64_t d = 0; d < 32; ++d) qkv.set(r, d, 0.0f);
  }
  check(c, qkv, 1.0f);
}

// One key: its weight is one whatever its score, so the value passes unchanged but for one float rounding, or for its code.
TEST_P(AttentionFull, OneKeyReturnsItsValue) {
  for (float spread : {1.0f, 100.0f}) {
    const Case c{4, 64, {1}};
    Activations qkv(dtype(), 1, 3 * 256);
    testing::fill_normal(qkv, 10, spread);
    const Activations out = run(context(), c, qkv, 0.125f);
    for (int64_t d = 0; d < 256; ++d) {
      const float v = qkv.at(0, 512 + d);
      if (int8()) {
        ASSERT_EQ(out.at(0, d), v);  // the largest of its column: 127 times a 127th
      } else if (int16()) {
        float largest = 0;
        for (int64_t i = d / 64 * 64; i < d / 64 * 64 + 64; ++i) largest = std::max(largest, std::abs(qkv.at(0, 512 + i)));
        ASSERT_NEAR(out.at(0, d), v, std::abs(v) < largest / 64 ? largest * 0x1p-15 : 0.0);
      } else if (bf16()) {
        ASSERT_EQ(out.at(0, d), v);
      } else {
        ASSERT_NEAR(out.at(0, d), v, std::abs(v) * 2 * testing::kUnit);
      }
    }
  }
}

// One key takes 30 % of the weight, two thousand others share the rest in weights of 1/860 of its own each: they are not lost.
TEST_P(AttentionFull, SmallWeightsBesideALargeOne) {
  const Case c{1, 16, {2000}};
  Activations qkv(dtype(), 2000, 48);
  testing::fill_normal(qkv, 12, 0.25f, 1.0f);
  for (int64_t r = 0; r < 2000; ++r) {
    for (int64_t d = 0; d < 16; ++d) {
      qkv.set(r, d, 0.5f);
      qkv.set(r, 16 + d, r == 70 ? 3.375f : 0.0f);
      if (r == 70) qkv.set(r, 32 + d, 0.0f);
    }
  }
  check(c, qkv, 0.25f);
  const Activations out = run(context(), c, qkv, 0.25f);
  for (int64_t d = 0; d < 16; ++d) ASSERT_NEAR(out.at(1, d), 0.7f, 0.05f);
}

// Elements of one size make the largest sums of products that codes can have; weights of one size, the largest of values.
TEST_P(AttentionFull, ElementsOfOneSize) {
  for (int64_t hd : {4, 64, 72, 160}) {
    for (float size : {1.0f, 1.0078125f, 1.4453125f, 1.9921875f, 3e-30f, 1e15f}) {
      for (float sign : {1.0f, -1.0f}) {
        const Case c{1, hd, {70}};
        Activations qkv(dtype(), 70, 3 * hd);
        for (int64_t r = 0; r < 70; ++r) {
          for (int64_t d = 0; d < hd; ++d) {
            qkv.set(r, d, size);
            qkv.set(r, hd + d, sign * size);
            qkv.set(r, 2 * hd + d, r % 2 == 0 ? size : 0.5f * size);
          }
        }
        const float scale = 1.0f / (static_cast<float>(hd) * std::max(size * size, 1e-30f));
        check(c, qkv, scale);
      }
    }
  }
}

// What is not a number stays so, for those who see it.
TEST_P(AttentionFull, NotANumber) {
  const Case c{2, 64, {70, 70}};
  const int64_t width = 128;
  for (int64_t part : {0, 1, 2}) {
    Activations qkv(dtype(), 140, 3 * width);
    testing::fill_normal(qkv, 13);
    const Activations whole = run(context(), c, qkv, 0.125f);
    qkv.set(3, part * width + 5, NAN);
    const Activations out = run(context(), c, qkv, 0.125f);
    for (int64_t r = 0; r < 140; ++r) {
      const bool sees = r < 70 && (part != 0 || r == 3);
      bool lost = false;
      for (int64_t d = 0; d < 64; ++d) lost |= std::isnan(out.at(r, d));
      ASSERT_EQ(lost, sees) << "part " << part << " row " << r;
      for (int64_t d = 0; d < width; ++d) {
        if (sees && d < 64) continue;
        ASSERT_EQ(out.at(r, d), whole.at(r, d)) << "part " << part << " row " << r << " element " << d;
      }
    }
  }
}

TEST_P(AttentionFull, ThreadsDoNotMatter) {
  const Case c{3, 72, {150, 40, 333}};
  Activations qkv(dtype(), tokens(c), 3 * 3 * 72);
  testing::fill_normal(qkv, 11);
  ThreadPool one(1), three(3);
  const KernelTable* table = context().table;
  const Activations a = run({&one, table}, c, qkv, 0.1f);
  EXPECT_TRUE(testing::same_bits(a, run(context(), c, qkv, 0.1f)));
  EXPECT_TRUE(testing::same_bits(a, run({&three, table}, c, qkv, 0.1f)));
}

// A segment's result is the same alone and among others, at whatever place.
TEST_P(AttentionFull, OtherSegmentsDoNotMatter) {
  const Case together{2, 64, {31, 203, 5}}, alone{2, 64, {203}};
  Activations qkv(dtype(), 239, 3 * 128);
  testing::fill_normal(qkv, 12);
  const Activations all = run(context(), together, qkv, 0.125f);
  Activations middle(dtype(), 203, 3 * 128), expected(dtype(), 203, 128);
  for (int64_t r = 0; r < 203; ++r) {
    for (int64_t c = 0; c < 3 * 128; ++c) middle.set(r, c, qkv.at(31 + r, c));
    for (int64_t c = 0; c < 128; ++c) expected.set(r, c, all.at(31 + r, c));
  }
  EXPECT_TRUE(testing::same_bits(expected, run(context(), alone, middle, 0.125f)));
}

TEST_P(AttentionFull, RejectsWhatDoesNotFit) {
  Activations qkv(dtype(), 8, 48), out(dtype(), 8, 16);
  const auto call = [&](int64_t heads, int64_t hd, std::vector<int64_t> segments, float scale,
                        int64_t v_cols) {
    attention_full(context(), qkv.view(0, 8, 0, 16), qkv.view(0, 8, 16, 16), qkv.view(0, 8, 32, v_cols),
                   heads, hd, segments, scale, out.matrix());
  };
  EXPECT_THROW(call(2, 16, {8}, 1.0f, 16), Error);      // 32 columns
  EXPECT_THROW(call(8, 2, {8}, 1.0f, 16), Error);       // head_dim not a multiple of 4
  EXPECT_THROW(call(1, 16, {4, 3}, 1.0f, 16), Error);   // segments of 7 rows
  EXPECT_THROW(call(1, 16, {9, -1}, 1.0f, 16), Error);  // negative length
  EXPECT_THROW(call(1, 16, {8}, 0.0f, 16), Error);
  EXPECT_THROW(call(1, 16, {8}, NAN, 16), Error);
  EXPECT_THROW(call(1, 16, {8}, 1.0f, 12), Error);  // v of another width
}

// A long call stops now and then and lets others run on the same threads. One thread and the fastest table: it takes more
// than 2.5e9 operations until it does.
TEST(AttentionFullPause, OthersMayRunInsideAndNoBitChanges) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table_by_name(runnable_tables().back())};
  const int64_t p = 2000, heads = 3, hd = 64, width = heads * hd;
  Activations qkv(DType::kF32, p, 3 * width), plain(DType::kF32, p, width), paused(DType::kF32, p, width);
  testing::fill_normal(qkv, 3);
  const std::vector<int64_t> segments = {p};
  const auto run = [&](Activations& out, const Pause& pause) {
    attention_full(ctx, qkv.view(0, p, 0, width), qkv.view(0, p, width, width), qkv.view(0, p, 2 * width, width), heads, hd,
                   segments, 0.125f, out.matrix(), AttentionProducts::kActivations, pause);
  };
  run(plain, {});
  int pauses = 0;
  Activations other(DType::kF32, 40, width), expected(DType::kF32, 40, width);
  const std::vector<int64_t> few = {40};
  const auto run_few = [&](Activations& out) {
    attention_full(ctx, qkv.view(7, 40, 0, width), qkv.view(7, 40, width, width), qkv.view(7, 40, 2 * width, width), heads,
                   hd, few, 0.125f, out.matrix());
  };
  run_few(expected);
  run(paused, [&] {
    ++pauses;
    run_few(other);
  });
  EXPECT_EQ(pauses, 1);
  EXPECT_TRUE(testing::same_bits(plain, paused));
  EXPECT_TRUE(testing::same_bits(expected, other));
  EXPECT_THROW(run(paused, [] { fail(ErrorCode::kCancelled, "test", "enough"); }), Error);
}

// Codes of 8 bits keep what attention says: normal data, at the sizes of the encoder.
TEST(AttentionInt8, IsNearAttentionOfActivations) {
  ThreadPool pool(2);
  for (std::string_view name : runnable_tables()) {
    const Context ctx{&pool, &table_by_name(name)};
    const int64_t p = name == "scalar" ? 150 : 700, heads = 2, hd = 64, width = heads * hd;
    Activations qkv(DType::kBF16, p, 3 * width), exact(DType::kBF16, p, width), codes(DType::kBF16, p, width);
    testing::fill_normal(qkv, 14, 1.5f, 0.5f);
    const std::vector<int64_t> segments = {p};
    for (const auto& [out, products] : {std::pair(&exact, AttentionProducts::kActivations), std::pair(&codes, AttentionProducts::kInt8)}) {
      attention_full(ctx, qkv.view(0, p, 0, width), qkv.view(0, p, width, width), qkv.view(0, p, 2 * width, width), heads, hd,
                     segments, 0.125f, out->matrix(), products);
    }
    if (!has_int8_attention(*ctx.table)) {
      EXPECT_TRUE(testing::same_bits(exact, codes)) << name;
      continue;
    }
    EXPECT_FALSE(testing::same_bits(exact, codes)) << name;
    double xy = 0, xx = 0, yy = 0;
    for (int64_t r = 0; r < p; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        const auto x = static_cast<double>(exact.at(r, c)), y = static_cast<double>(codes.at(r, c));
        xy += x * y, xx += x * x, yy += y * y;
      }
    }
    EXPECT_GT(xy / std::sqrt(xx * yy), 0.9995) << name;
  }
}

// One tile: a key with weight 255 and 127 of 0.3 each, which rounding would lose altogether. Their share is that of the weights.
TEST_P(AttentionFull, ManySmallWeightsOfOneTileKeepTheirShare) {
  const Case c{1, 16, {128}};
  Activations qkv(dtype(), 128, 48);
  testing::fill_normal(qkv, 15, 0.125f, 1.0f);
  for (int64_t r = 0; r < 128; ++r) {
    for (int64_t d = 0; d < 16; ++d) {
      qkv.set(r, d, 0.5f);
      qkv.set(r, 16 + d, r == 70 ? 3.375f : 0.0f);  // a score of 6.75: 1/854
      if (r == 70) qkv.set(r, 32 + d, 0.0f);
    }
  }
  const Activations out = run(context(), c, qkv, 0.25f);
  for (int64_t d = 0; d < 16; ++d) ASSERT_NEAR(out.at(1, d), 127.0f / (854.0f + 127.0f), 0.01f);
}

INSTANTIATE_TEST_SUITE_P(Tables, AttentionFull, ::testing::ValuesIn(variants()), name_of);

}  // namespace
}  // namespace qvl::kernels
