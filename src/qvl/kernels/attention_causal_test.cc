// attention_causal on every table that runs here: both paths against plain double loops, and bit equality
// over chunks, rows and threads.
#include "qvl/base/error.h"
#include "qvl/kernels/attention_testing.h"

namespace qvl::kernels {
namespace {

using testing::Activations;
using testing::Cache;
using testing::VariantTest;

struct Case {
  int64_t kv_heads, group, head_dim, block_tokens, past, rows;
};

std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << "kv_heads " << c.kv_heads << " group " << c.group << " head_dim " << c.head_dim
            << " block_tokens " << c.block_tokens << " past " << c.past << " rows " << c.rows;
}

class AttentionCausal : public VariantTest {
 protected:
  float scale(const Case& c) const { return 1.0f / std::sqrt(static_cast<float>(c.head_dim)); }

  void check(LinearPath path, const Case& c, Activations& q, const Cache& cache) {
    const int64_t heads = c.kv_heads * c.group;
    Activations out(dtype(), c.rows, heads * c.head_dim, 2);
    attention_causal(context(), path, q.matrix(), cache.view, heads, c.past, scale(c), out.matrix());
    // Tiles are packed from activations.
    const auto read = [&](float v) { return int8() && bf16() && path == LinearPath::kGemm ? round_to_bf16(v) : v; };
    const int64_t step = c.rows > 40 ? 5 : 1;
    for (int64_t kv = 0; kv < c.kv_heads; ++kv) {
      const testing::WideHead head(
          c.past + c.rows, c.head_dim, [&](int64_t i, int64_t d) { return read(cache.key(i, kv, d)); },
          [&](int64_t i, int64_t d) { return read(cache.value(i, kv, d)); });
      for (int64_t r = 0; r < c.rows; r += (r + step < c.rows ? step : 1)) {
        for (int64_t h = kv * c.group; h < (kv + 1) * c.group; ++h) {
          const auto e = testing::attend_in_double(
              head, c.past + r + 1, scale(c), bf16(), [&](int64_t d) { return q.at(r, h * c.head_dim + d); },
              int8() && path == LinearPath::kGemv, int16() && path == LinearPath::kGemm);
          for (int64_t d = 0; d < c.head_dim; ++d) {
            const auto i = static_cast<size_t>(d);
            ASSERT_NEAR(out.at(r, h * c.head_dim + d), e.out[i], e.tolerance[i])
                << c << " row " << r << " head " << h << " element " << d;
          }
        }
      }
    }
  }

  void check_random(LinearPath path, const Case& c, uint32_t seed, float spread = 1.0f) {
    Cache cache(cache_dtype(), c.past + c.rows, c.block_tokens, c.kv_heads, c.head_dim);
    cache.fill_normal(0, c.past + c.rows, seed, spread);
    Activations q(dtype(), c.rows, c.kv_heads * c.group * c.head_dim, 3);
    testing::fill_normal(q, seed + 1, spread);
    check(path, c, q, cache);
  }

  // Rows [first, first + rows) of q at their place in the cache.
  Activations run(const Context& ctx, LinearPath path, Activations& q, const Cache& cache, int64_t heads,
                  int64_t position, int64_t first, int64_t rows) {
    Activations out(dtype(), rows, q.cols);
    attention_causal(ctx, path, q.view(first, rows, 0, q.cols), cache.view, heads, position, 0.09f,
                     out.matrix());
    return out;
  }
};

TEST_P(AttentionCausal, GemmHeadDims) {
  for (int64_t hd : {4, 16, 32, 48, 64, 72, 80, 128})
    check_random(LinearPath::kGemm, {2, 2, hd, 16, 3, 40}, 1);
}

TEST_P(AttentionCausal, GemmPastAndBlocks) {
  for (int64_t block : {16, 64, 256}) {
    for (int64_t past : {0, 1, 17, 255, 256, 257}) {
      check_random(LinearPath::kGemm, {1, 4, 64, block, past, 19}, 2);
      check_random(LinearPath::kGemm, {1, 2, 32, block, past, 1}, 3);
    }
  }
}

TEST_P(AttentionCausal, GemmGroupsAndLengths) {
  for (int64_t group : {1, 2, 3, 4, 8}) {
    for (int64_t rows : {1, 2, 15, 16, 17, 47, 48, 49, 64, 130}) {
      check_random(LinearPath::kGemm, {2, group, 16, 64, 0, rows}, 4);
    }
  }
}

TEST_P(AttentionCausal, GemvHeadDims) {
  for (int64_t hd : {4, 12, 16, 32, 48, 64, 72, 80, 128}) {
    check_random(LinearPath::kGemv, {2, 2, hd, 16, 30, 1}, 5);
    check_random(LinearPath::kGemv, {1, 4, hd, 16, 30, 3}, 5);
  }
}

TEST_P(AttentionCausal, GemvPastAndBlocks) {
  for (int64_t block : {16, 64, 256}) {
    for (int64_t past : {0, 1, 17, 255, 256, 257, 511, 1300}) {
      check_random(LinearPath::kGemv, {2, 4, 64, block, past, 1}, 6);
      check_random(LinearPath::kGemv, {2, 4, 128, block, past, 1}, 6);  // of every published model
      check_random(LinearPath::kGemv, {1, 2, 32, block, past, 16}, 7);
    }
  }
}

TEST_P(AttentionCausal, GemvGroupsAndRows) {
  for (int64_t group : {1, 2, 3, 4, 8}) {
    for (int64_t rows : {1, 2, 5, 16}) check_random(LinearPath::kGemv, {2, group, 128, 64, 250, rows}, 8);
  }
}

// The weights of streamed attention against exp2 in double, at arguments that floats hold: relative error of
// a few units down to the smallest normal result, nothing negative or infinite below.
TEST_P(AttentionCausal, WeightsAreAccurate) {
  const AttentionKernels& kernels = *context().table->attention;
  const AttentionStream& stream = int8() ? (bf16() ? kernels.stream_bf16_int8 : kernels.stream_f32_int8)
                                         : (bf16() ? kernels.stream_bf16 : kernels.stream_f32);
  for (int64_t count : {1, 7, 16, 17, 256}) {
    std::vector<float> scores(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      scores[static_cast<size_t>(i)] = -0.609375f * static_cast<float>((i * 37) % count);
    std::vector<float> weights = scores;
    float max = NAN;
    const int64_t visible = count > 2 ? count - 2 : count;
    const float sum = stream.weights(weights.data(), visible, count, 2.0f, &max);
    double largest = -INFINITY, expected_sum = 0;
    for (int64_t i = 0; i < visible; ++i) largest = std::max(largest, 2.0 * scores[static_cast<size_t>(i)]);
    ASSERT_EQ(max, static_cast<float>(largest));
    for (int64_t i = 0; i < count; ++i) {
      const float w = weights[static_cast<size_t>(i)];
      if (i >= visible) {
        ASSERT_EQ(w, 0.0f);
        continue;
      }
      const double expected = std::exp2(2.0 * scores[static_cast<size_t>(i)] - largest);
      expected_sum += expected;
      // Below 2^-126 a kernel may lose bits or give zero.
      ASSERT_NEAR(w, expected, expected < 0x1p-126 ? 0x1p-126 : expected * 4 * testing::kUnit)
          << i << " of " << count;
      ASSERT_GE(w, 0.0f);
    }
    ASSERT_NEAR(sum, expected_sum, expected_sum * 16 * testing::kUnit);
  }
}

TEST_P(AttentionCausal, LargeScores) {
  for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
    check_random(path, {1, 4, 64, 64, 600, 7}, 9, 100.0f);
  }
}

// The first row of an empty cache sees one key and returns its value.
TEST_P(AttentionCausal, OneKeyReturnsItsValue) {
  for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
    Cache cache(cache_dtype(), 1, 16, 1, 64);
    cache.fill_normal(0, 1, 10, 100.0f);
    Activations q(dtype(), 1, 128);
    testing::fill_normal(q, 11, 100.0f);
    const Activations out = run(context(), path, q, cache, 2, 0, 0, 1);
    for (int64_t d = 0; d < 128; ++d) {
      const float v = cache.value(0, 0, d % 64);
      if (bf16()) {
        ASSERT_EQ(out.at(0, d), round_to_bf16(v));
      } else {
        ASSERT_NEAR(out.at(0, d), v, std::abs(v) * 2 * testing::kUnit);
      }
    }
  }
}

// Prefill in chunks gives the bits of the whole prompt: with the later part of the cache not yet written
// (NaN).
TEST_P(AttentionCausal, ChunksDoNotMatter) {
  const int64_t kv_heads = 2, group = 4, hd = 64, prompt = 300, past = 77;
  for (float spread : {0.5f, 30.0f}) {
    Cache full(cache_dtype(), past + prompt, 64, kv_heads, hd);
    full.fill_normal(0, past + prompt, 12, spread);
    Activations q(dtype(), prompt, kv_heads * group * hd);
    testing::fill_normal(q, 13, spread);
    const Activations whole = run(context(), LinearPath::kGemm, q, full, kv_heads * group, past, 0, prompt);
    for (int64_t chunk : {1, 3, 64, 100}) {
      Cache cache(cache_dtype(), past + prompt, 64, kv_heads, hd);
      Activations pieces(dtype(), prompt, q.cols);
      int64_t filled = 0;
      for (int64_t first = 0; first < prompt; first += chunk) {
        const int64_t rows = std::min(chunk, prompt - first);
        for (; filled < past + first + rows; ++filled) cache.copy_position(full, filled);
        const Activations part =
            run(context(), LinearPath::kGemm, q, cache, kv_heads * group, past + first, first, rows);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < q.cols; ++c) pieces.set(first + r, c, part.at(r, c));
        }
      }
      ASSERT_TRUE(testing::same_bits(whole, pieces)) << "chunks of " << chunk << " spread " << spread;
    }
  }
}

// Decoding several rows at once gives the bits of one row at a time.
TEST_P(AttentionCausal, GemvRowsDoNotMatter) {
  const int64_t kv_heads = 2, group = 4, hd = 128;
  for (int64_t past : {0, 250, 509}) {
    Cache cache(cache_dtype(), past + 16, 16, kv_heads, hd);
    cache.fill_normal(0, past + 16, 14);
    Activations q(dtype(), 16, kv_heads * group * hd);
    testing::fill_normal(q, 15);
    const Activations together = run(context(), LinearPath::kGemv, q, cache, kv_heads * group, past, 0, 16);
    Activations single(dtype(), 16, q.cols);
    for (int64_t r = 0; r < 16; ++r) {
      const Activations one = run(context(), LinearPath::kGemv, q, cache, kv_heads * group, past + r, r, 1);
      for (int64_t c = 0; c < q.cols; ++c) single.set(r, c, one.at(0, c));
    }
    ASSERT_TRUE(testing::same_bits(together, single)) << "past " << past;
  }
}

TEST_P(AttentionCausal, ThreadsDoNotMatter) {
  const int64_t kv_heads = 3, group = 2, hd = 64;
  Cache cache(cache_dtype(), 1500, 64, kv_heads, hd);
  cache.fill_normal(0, 1500, 16);
  Activations q(dtype(), 100, kv_heads * group * hd);
  testing::fill_normal(q, 17);
  ThreadPool one(1), three(3);
  const KernelTable* table = context().table;
  for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
    const int64_t rows = path == LinearPath::kGemm ? 100 : 4;
    const Activations a = run({&one, table}, path, q, cache, kv_heads * group, 1400, 0, rows);
    EXPECT_TRUE(testing::same_bits(a, run(context(), path, q, cache, kv_heads * group, 1400, 0, rows)));
    EXPECT_TRUE(testing::same_bits(a, run({&three, table}, path, q, cache, kv_heads * group, 1400, 0, rows)));
  }
}

TEST_P(AttentionCausal, RejectsWhatDoesNotFit) {
  Cache cache(cache_dtype(), 64, 16, 2, 16);
  Activations q(dtype(), 20, 64), out(dtype(), 20, 64);
  const auto call = [&](LinearPath path, int64_t heads, int64_t past, float scale, KvView view) {
    attention_causal(context(), path, q.matrix(), view, heads, past, scale, out.matrix());
  };
  call(LinearPath::kGemm, 4, 44, 1.0f, cache.view);
  EXPECT_THROW(call(LinearPath::kGemv, 4, 44, 1.0f, cache.view), Error);  // more than 16 rows
  EXPECT_THROW(call(LinearPath::kGemm, 3, 44, 1.0f, cache.view), Error);  // columns
  EXPECT_THROW(call(LinearPath::kGemm, 4, -1, 1.0f, cache.view), Error);
  EXPECT_THROW(call(LinearPath::kGemm, 4, 44, -1.0f, cache.view), Error);
  KvView odd = cache.view;
  odd.block_tokens = 8;
  EXPECT_THROW(call(LinearPath::kGemm, 4, 0, 1.0f, odd), Error);
  odd = cache.view;
  odd.dtype = bf16() ? DType::kF32 : DType::kBF16;
  EXPECT_THROW(call(LinearPath::kGemm, 4, 0, 1.0f, odd), Error);
  odd = cache.view;
  odd.dtype = DType::kU8;
  EXPECT_THROW(call(LinearPath::kGemm, 4, 0, 1.0f, odd), Error);
  std::vector<void*> holes = cache.pointers;
  holes[2] = nullptr;
  odd = cache.view;
  odd.blocks = holes.data();
  EXPECT_THROW(call(LinearPath::kGemm, 4, 44, 1.0f, odd), Error);
}

// Between two kv heads whose keys fill the room for packed ones.
TEST(AttentionCausalPause, OthersMayRunInsideAndNoBitChanges) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table_by_name(runnable_tables().back())};
  const int64_t past = 17000, rows = 5, heads = 3, hd = 64;
  Cache cache(DType::kF32, past + rows, 256, heads, hd);
  cache.fill_normal(0, past + rows, 3, 1.0f);
  Activations q(DType::kF32, rows, heads * hd), plain(DType::kF32, rows, heads * hd), paused(DType::kF32, rows, heads * hd);
  testing::fill_normal(q, 4);
  const auto run = [&](Activations& out, int64_t at, const Pause& pause) {
    attention_causal(ctx, LinearPath::kGemm, q.matrix(), cache.view, heads, at, 0.125f, out.matrix(), pause);
  };
  run(plain, past, {});
  Activations other(DType::kF32, rows, heads * hd), expected(DType::kF32, rows, heads * hd);
  run(expected, 100, {});
  int pauses = 0;
  run(paused, past, [&] {
    ++pauses;
    run(other, 100, {});
  });
  EXPECT_EQ(pauses, 2);
  EXPECT_TRUE(testing::same_bits(plain, paused));
  EXPECT_TRUE(testing::same_bits(expected, other));
}

INSTANTIATE_TEST_SUITE_P(Tables, AttentionCausal, ::testing::ValuesIn(testing::all_cache_variants()),
                         testing::variant_name);

}  // namespace
}  // namespace qvl::kernels
