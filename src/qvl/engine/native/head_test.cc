// Logits by the shortlist: those asked for are those of the whole head, to the bit, whatever the rows look like.
#include "qvl/engine/native/head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "qvl/engine/native/matrices.h"
#include "qvl/quant/quantize.h"

namespace qvl::engine::native {
namespace {

using kernels::LinearPath;

// A matrix rounded to a format.
struct Stored {
  Stored(const quant::Format& format, const Tensor& floats, ThreadPool& pool) {
    const int64_t rows = floats.dim(0), columns = floats.dim(1);
    data.resize(format.data_bytes(rows, columns));
    scales.resize(format.scale_bytes(rows, columns));
    quant::Quantizer(format, columns, quant::Method::kPlain, {}, "test")
        .quantize(floats.data(), floats.dtype(), rows, {data, scales, {}}, pool, 0);
    weight.data = data.data();
    weight.scales = scales.data();
    weight.out = rows;
    weight.in = columns;
    weight.format = format;
  }
  Stored(const Stored&) = delete;

  std::vector<std::byte> data, scales;
  kernels::Weight weight;
};

class HeadTest : public testing::Test {
 protected:
  static constexpr int64_t kWidth = 272;

  Tensor random(int64_t rows, float scale = 1) {
    Tensor t(DType::kF32, {rows, kWidth});
    for (float& v : t.as<float>()) v = std::normal_distribution<float>(0, scale)(rng_);
    return t;
  }
  static std::span<float> row(Tensor& t, int64_t r) { return t.as<float>().subspan(static_cast<size_t>(r * t.dim(1)), static_cast<size_t>(t.dim(1))); }

  struct Brief {
    Brief(const Tensor& floats, ThreadPool& pool) {
      const int64_t rows = floats.dim(0), columns = floats.dim(1);
      const quant::ShortlistBytes bytes = quant::shortlist_bytes(rows, columns);
      memory.resize(bytes.coarse + bytes.fine + bytes.scales);
      const std::span<std::byte> all(memory);
      const quant::ShortlistSpan parts{all.first(bytes.coarse), all.subspan(bytes.coarse, bytes.fine), all.last(bytes.scales)};
      quant::encode_shortlist(floats.data(), floats.dtype(), rows, columns, parts, pool, "test");
      list = {rows, columns, parts};
    }
    std::vector<std::byte> memory;
    kernels::Shortlist list;
  };

  // The head of these floats, its rows counted as they are read.
  struct Case {
    Case(const Tensor& floats, ThreadPool& pool)
        : exact(quant::Format::blocks(8, 32, false, DType::kBF16), floats, pool),
          brief(floats, pool),
          head(exact.weight, brief.list, [this](int64_t r, std::byte* data, std::byte* scales, std::byte*) {
            const size_t data_bytes = exact.data.size() / static_cast<size_t>(exact.weight.out);
            const size_t scale_bytes = exact.scales.size() / static_cast<size_t>(exact.weight.out);
            std::memcpy(data, exact.data.data() + static_cast<size_t>(r) * data_bytes, data_bytes);
            std::memcpy(scales, exact.scales.data() + static_cast<size_t>(r) * scale_bytes, scale_bytes);
            ++read;
          }) {}
    Stored exact;
    Brief brief;
    std::atomic<int64_t> read = 0;
    Head head;
  };

  Tensor logits(const Head& head, LinearPath path, const Tensor& x, TopLogits top, int64_t vocabulary) {
    Tensor out(DType::kF32, {x.dim(0), vocabulary});
    head.logits(context_, path, view(x), top, view(out));
    return out;
  }

  // Every logit that `top` asks for is that of the whole head, and no other reaches them.
  void check(const Case& c, const Tensor& x, TopLogits top) {
    const int64_t vocabulary = c.exact.weight.out;
    const int64_t ids = top.ids > 0 ? top.ids : vocabulary;
    for (const DType type : {DType::kF32, DType::kBF16}) {
      const Tensor typed = x.to(type);
      for (const LinearPath path : {LinearPath::kGemv, LinearPath::kGemm}) {
        Tensor whole = logits(c.head, path, typed, {}, vocabulary), some = logits(c.head, path, typed, top, vocabulary);
        for (int64_t r = 0; r < x.dim(0); ++r) {
          const std::span<const float> want = row(whole, r).first(static_cast<size_t>(ids)), got = row(some, r).first(static_cast<size_t>(ids));
          std::vector<float> sorted(want.begin(), want.end());
          std::ranges::sort(sorted, std::greater<>());
          const float least = sorted[static_cast<size_t>(top.count - 1)];
          for (size_t i = 0; i < want.size(); ++i) {
            if (want[i] >= least) {
              ASSERT_EQ(got[i], want[i]) << "row " << r << " id " << i;
            } else {
              ASSERT_LT(got[i], least) << "row " << r << " id " << i;
            }
          }
        }
      }
    }
  }

  std::mt19937 rng_{11};
  ThreadPool pool_{2};
  kernels::Context context_{&pool_, &kernels::active_table()};
};

TEST_F(HeadTest, TheGreatestAreThoseOfTheWholeHead) {
  const Tensor floats = random(6000, 0.02f);
  Case c(floats, pool_);
  const Tensor x = random(9);
  for (const int64_t count : {1, 20, 64}) check(c, x, {count, 0});
  check(c, x, {5, 4321});
  // And only few rows were read for them.
  c.read = 0;
  logits(c.head, LinearPath::kGemv, x, {1, 0}, 6000);
  EXPECT_GE(c.read, 9 * 64);
  EXPECT_LT(c.read, 9 * 600);
}

TEST_F(HeadTest, RowsThatFewBitsHardlySee) {
  // One great element of 32, where x is zero, makes steps wide; what others add to the logit, coarse codes say they take off it. So
  // the shortlist says nothing of tokens that are the likeliest of all. None of them is among those measured; only the scales
  // tell how far off they may be.
  Tensor floats = random(6000, 0.02f), x = random(2);
  for (int64_t r = 0; r < 2; ++r) {
    for (size_t i = 0; i < static_cast<size_t>(kWidth); i += 32) row(x, r)[i] = 0;
  }
  for (int64_t r = 50; r < 6000; r += 500) {
    double balance = 0;
    for (size_t i = 0; i < static_cast<size_t>(kWidth); ++i) {
      const float v = row(x, r / 500 % 2)[i];
      const bool adds = balance <= 0;
      if (i % 32 != 0) balance += adds ? std::fabs(v) : -std::fabs(v);
      row(floats, r)[i] = i % 32 == 0 ? 1.0f : std::copysign(adds ? 0.3f : 0.21f, adds ? v : -v);
    }
  }
  for (int64_t r = 13; r < 6000; r += 50) std::ranges::fill(row(floats, r), 0.0f);
  const Case c(floats, pool_);
  Tensor brief(DType::kF32, {2, 6000}), whole = logits(c.head, LinearPath::kGemv, x, {}, 6000);
  kernels::shortlist_logits(context_, view(x), c.brief.list, view(brief));
  ASSERT_EQ(std::ranges::max_element(row(whole, 0)) - row(whole, 0).begin(), 50);
  ASSERT_LT(std::fabs(row(brief, 0)[50]), 1.0f);
  check(c, x, {1, 0});
  // The same beside a token that leaves all others behind: those come next.
  std::ranges::transform(row(x, 0), row(floats, 7).begin(), [](float v) { return 0.1f * v; });
  const Case beside(floats, pool_);
  check(beside, x, {5, 0});
  check(beside, x, {20, 0});
}

TEST_F(HeadTest, EqualRowsAreAllThere) {
  Tensor floats = random(6000, 0.02f);
  const Tensor x = random(1);
  // Three tokens that say the same, and say it loudest.
  for (const int64_t r : {5, 2999, 5999}) {
    for (size_t i = 0; i < static_cast<size_t>(kWidth); ++i) row(floats, r)[i] = 0.05f * x.as<float>()[i];
  }
  const Case c(floats, pool_);
  check(c, x, {1, 0});
  Tensor some = logits(c.head, LinearPath::kGemv, x, {1, 0}, 6000);
  EXPECT_EQ(row(some, 0)[5], row(some, 0)[2999]);
  EXPECT_EQ(row(some, 0)[5], row(some, 0)[5999]);
  EXPECT_EQ(std::ranges::max_element(row(some, 0)) - row(some, 0).begin(), 5);
}

TEST_F(HeadTest, AllRowsWhereFewDoNotSuffice) {
  const auto same = [&](const Tensor& floats, const Tensor& x, TopLogits top) {
    const Case c(floats, pool_);
    const Tensor whole = logits(c.head, LinearPath::kGemv, x, {}, floats.dim(0)), some = logits(c.head, LinearPath::kGemv, x, top, floats.dim(0));
    return std::memcmp(whole.data(), some.data(), whole.size_bytes()) == 0;
  };
  EXPECT_TRUE(same(random(200, 0.02f), random(2), {1, 0}));    // a small vocabulary
  EXPECT_TRUE(same(random(6000, 0.02f), random(2), {65, 0}));  // more than anybody should ask for so
  Tensor alike = random(6000, 0.02f);                          // nothing stands out
  for (int64_t r = 1; r < 6000; ++r) std::ranges::copy(row(alike, 0), row(alike, r).begin());
  EXPECT_TRUE(same(alike, random(2), {1, 0}));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Tensor x = random(2);
    row(x, 1)[40] = bad;
    const Case c(random(6000, 0.02f), pool_);
    Tensor some = logits(c.head, LinearPath::kGemv, x, {1, 0}, 6000);
    EXPECT_FALSE(std::isfinite(row(some, 1)[77]));  // said by the sampler, not hidden here
    EXPECT_TRUE(std::isfinite(row(some, 0)[77]));
  }
}

TEST_F(HeadTest, ScalesThatAreNoNumbersHideNothing) {
  // In the fine codes of a token that is read among the first, and in the head's row of it.
  Tensor floats = random(6000, 0.02f);
  const Tensor x = random(1);
  for (size_t i = 0; i < static_cast<size_t>(kWidth); ++i) row(floats, 77)[i] = 0.05f * x.as<float>()[i];
  const auto nan = to_bfloat16(std::numeric_limits<float>::quiet_NaN());
  Case fine(floats, pool_);
  const int64_t fine_bytes = quant::shortlist_fine_bytes(kWidth);
  const auto of_row = static_cast<size_t>(fine.brief.list.parts.fine.data() - fine.brief.memory.data() + 77 * fine_bytes);
  std::memcpy(fine.brief.memory.data() + of_row + 2 * quant::kShortlistFineCodeBytes, &nan, sizeof(nan));
  check(fine, x, {1, 0});
  Case exact(floats, pool_);
  std::memcpy(exact.exact.scales.data() + exact.exact.scales.size() / 6000 * 77, &nan, sizeof(nan));
  Tensor some = logits(exact.head, LinearPath::kGemv, x, {1, 0}, 6000);
  EXPECT_TRUE(std::isnan(row(some, 0)[77]));  // said by the sampler
}

TEST_F(HeadTest, RowsOfXDoNotDependOnEachOther) {
  const Tensor floats = random(6000, 0.02f);
  const Case c(floats, pool_);
  Tensor x = random(16);
  Tensor together = logits(c.head, LinearPath::kGemv, x, {3, 5000}, 6000);
  for (int64_t r = 0; r < 16; ++r) {
    Tensor one(DType::kF32, {1, kWidth});
    std::ranges::copy(row(x, r), one.as<float>().begin());
    Tensor alone = logits(c.head, LinearPath::kGemv, one, {3, 5000}, 6000);
    ASSERT_EQ(std::memcmp(row(together, r).data(), row(alone, 0).data(), 6000 * sizeof(float)), 0) << r;
  }
}

TEST_F(HeadTest, NoTokenIsLostInManySteps) {
  const Tensor floats = random(20000, 0.02f);
  const Case c(floats, pool_);
  for (int step = 0; step < 20; ++step) {
    const Tensor x = random(16);
    Tensor whole = logits(c.head, LinearPath::kGemv, x, {}, 20000), some = logits(c.head, LinearPath::kGemv, x, {1, 0}, 20000);
    for (int64_t r = 0; r < 16; ++r) {
      ASSERT_EQ(std::ranges::max_element(row(some, r)) - row(some, r).begin(), std::ranges::max_element(row(whole, r)) - row(whole, r).begin());
    }
  }
}

}  // namespace
}  // namespace qvl::engine::native
