// Logits by a shortlist against products with the values that it stands for, for every table that runs here.
#include "qvl/kernels/shortlist.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

class ShortlistTest : public ::testing::TestWithParam<std::string_view> {
 protected:
  const KernelTable& table() const { return table_by_name(GetParam()); }
};

struct Case {
  Case(int64_t rows, int64_t columns, std::mt19937& rng) : coarse(static_cast<size_t>(rows * columns)), fine(coarse.size()) {
    std::vector<float> floats(coarse.size());
    for (float& v : floats) v = std::normal_distribution<float>(0, 0.02f)(rng);
    const quant::ShortlistBytes bytes = quant::shortlist_bytes(rows, columns);
    memory.resize(bytes.coarse + bytes.fine + bytes.scales);
    const std::span<std::byte> all(memory);
    const quant::ShortlistSpan parts{all.first(bytes.coarse), all.subspan(bytes.coarse, bytes.fine), all.last(bytes.scales)};
    ThreadPool pool(2);
    quant::encode_shortlist(floats.data(), DType::kF32, rows, columns, parts, pool, "test");
    list = {rows, columns, {parts.coarse, parts.fine, parts.scales}};
    quant::decode_shortlist(rows, columns, list.parts, false, coarse);
    quant::decode_shortlist(rows, columns, list.parts, true, fine);
  }
  // Scales end where the memory does: reading on would be found by a sanitizer.
  std::vector<std::byte> memory;
  Shortlist list;
  std::vector<float> coarse, fine;
};

Tensor random_x(int64_t rows, int64_t columns, DType type, std::mt19937& rng) {
  Tensor x(DType::kF32, {rows, columns});
  for (float& v : x.as<float>()) v = std::normal_distribution<float>(0, 2)(rng);
  x.as<float>()[static_cast<size_t>(columns / 2)] = 40;  // one that makes its block's scale
  return x.to(type);
}

ConstMatrix view(const Tensor& x) {
  return {x.data(), x.dtype(), x.dim(0), x.dim(1), x.dim(1)};
}

// A row of x as its codes stand for it.
std::vector<double> rounded(const Tensor& x, int64_t row) {
  const Tensor floats = x.to(DType::kF32);
  const std::span<const float> values = floats.as<float>().subspan(static_cast<size_t>(row * x.dim(1)), static_cast<size_t>(x.dim(1)));
  std::vector<double> out;
  for (size_t begin = 0; begin < values.size(); begin += quant::kShortlistBlock) {
    const std::span<const float> block = values.subspan(begin, std::min<size_t>(quant::kShortlistBlock, values.size() - begin));
    float most = 0;
    for (const float v : block) most = std::max(most, std::fabs(v));
    for (const float v : block) out.push_back(std::nearbyint(v * (127.0f / most)) * most / 127.0);
  }
  return out;
}

TEST_P(ShortlistTest, LogitsAreThoseOfTheValues) {
  std::mt19937 rng(3);
  ThreadPool pool(2);
  const Context ctx{&pool, &table()};
  // From less than a block to more than are scaled together.
  for (const auto& [vocabulary, columns] : {std::pair<int64_t, int64_t>{1, 40}, {131, 256}, {75, 1111}, {200, 2560}, {67, 4400}}) {
    const Case c(vocabulary, columns, rng);
    std::vector<int32_t> ids(static_cast<size_t>(vocabulary));
    std::iota(ids.begin(), ids.end(), 0);
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const int64_t rows : {1, 2, 3, 4, 9}) {
        const Tensor x = random_x(rows, columns, type, rng);
        Tensor logits(DType::kF32, {rows, vocabulary});
        shortlist_logits(ctx, view(x), c.list, {logits.data(), DType::kF32, rows, vocabulary, vocabulary});
        for (int64_t r = 0; r < rows; ++r) {
          const ConstMatrix one{static_cast<const std::byte*>(x.data()) + static_cast<size_t>(r * columns) * dtype_size_bytes(type), type, 1, columns, columns};
          std::vector<float> more(ids.size());
          shortlist_refinements(ctx, one, c.list, ids, more);
          const std::vector<double> want = rounded(x, r);
          for (int64_t v = 0; v < vocabulary; ++v) {
            double coarse = 0, fine = 0, size = 0;
            for (int64_t k = 0; k < columns; ++k) {
              const auto at = static_cast<size_t>(v * columns + k);
              coarse += want[static_cast<size_t>(k)] * c.coarse[at];
              fine += want[static_cast<size_t>(k)] * c.fine[at];
              size += std::fabs(want[static_cast<size_t>(k)] * c.coarse[at]);
            }
            const double bound = 1e-6 * size;
            const float got = logits.as<float>()[static_cast<size_t>(r * vocabulary + v)];
            ASSERT_NEAR(got, coarse, bound) << columns << " columns, row " << r << " of " << rows << ", token " << v;
            ASSERT_NEAR(got + more[static_cast<size_t>(v)], fine, 2 * bound) << columns << " columns, row " << r << " of " << rows << ", token " << v;
          }
        }
      }
    }
  }
}

TEST_P(ShortlistTest, RowsAndThreadsDoNotMatter) {
  std::mt19937 rng(4);
  constexpr int64_t kRows = 7, kColumns = 1000, kVocabulary = 1500;
  const Case c(kVocabulary, kColumns, rng);
  const Tensor x = random_x(kRows, kColumns, DType::kBF16, rng);
  std::vector<Tensor> all;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    const Context ctx{&pool, &table()};
    Tensor& logits = all.emplace_back(DType::kF32, Shape{kRows, kVocabulary});
    shortlist_logits(ctx, view(x), c.list, {logits.data(), DType::kF32, kRows, kVocabulary, kVocabulary});
    ASSERT_EQ(std::memcmp(logits.data(), all[0].data(), logits.size_bytes()), 0) << threads;
    for (int64_t r = 0; r < kRows; ++r) {
      std::vector<float> alone(kVocabulary);
      const ConstMatrix one{static_cast<const std::byte*>(x.data()) + static_cast<size_t>(r * kColumns) * 2, DType::kBF16, 1, kColumns, kColumns};
      shortlist_logits(ctx, one, c.list, {alone.data(), DType::kF32, 1, kVocabulary, kVocabulary});
      ASSERT_EQ(std::memcmp(alone.data(), logits.as<float>().data() + r * kVocabulary, sizeof(float) * kVocabulary), 0) << r;
    }
  }
}

TEST_P(ShortlistTest, WhatIsNotFiniteIsSaid) {
  std::mt19937 rng(5);
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  const Case c(20, 600, rng);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Tensor x(DType::kF32, {2, 600});
    for (float& v : x.as<float>()) v = std::normal_distribution<float>(0, 1)(rng);
    x.as<float>()[300] = bad;
    Tensor logits(DType::kF32, {2, 20});
    shortlist_logits(ctx, view(x), c.list, {logits.data(), DType::kF32, 2, 20, 20});
    for (size_t i = 0; i < 20; ++i) {
      EXPECT_FALSE(std::isfinite(logits.as<float>()[i]));
      EXPECT_TRUE(std::isfinite(logits.as<float>()[20 + i]));
    }
  }
  // Zeros, and what no scale holds, are zeros.
  for (const float small : {0.0f, 1e-40f}) {
    Tensor x(DType::kF32, {1, 600}), logits(DType::kF32, {1, 20});
    std::ranges::fill(x.as<float>(), small);
    shortlist_logits(ctx, view(x), c.list, {logits.data(), DType::kF32, 1, 20, 20});
    for (const float v : logits.as<float>()) EXPECT_EQ(v, 0.0f);
  }
}

TEST_P(ShortlistTest, ChecksItsArguments) {
  std::mt19937 rng(6);
  ThreadPool pool(1);
  const Context ctx{&pool, &table()};
  const Case c(20, 600, rng);
  const Tensor x = random_x(2, 600, DType::kF32, rng), narrow = random_x(1, 599, DType::kF32, rng), one = random_x(1, 600, DType::kF32, rng);
  Tensor logits(DType::kF32, {2, 20});
  const Matrix out{logits.data(), DType::kF32, 2, 20, 20};
  EXPECT_THROW(shortlist_logits(ctx, view(narrow), c.list, out), Error);
  EXPECT_THROW(shortlist_logits(ctx, view(one), c.list, out), Error);
  EXPECT_THROW(shortlist_logits(ctx, view(x), c.list, {logits.data(), DType::kF32, 2, 19, 20}), Error);
  EXPECT_THROW(shortlist_logits(ctx, view(x), c.list, {logits.data(), DType::kBF16, 2, 20, 20}), Error);
  Shortlist shorter = c.list;
  shorter.parts.fine = shorter.parts.fine.first(shorter.parts.fine.size() - 1);
  EXPECT_THROW(shortlist_logits(ctx, view(x), shorter, out), Error);
  std::vector<float> room(2);
  EXPECT_THROW(shortlist_refinements(ctx, view(x), c.list, std::vector<int32_t>{1, 2}, room), Error);
  EXPECT_THROW(shortlist_refinements(ctx, view(one), c.list, std::vector<int32_t>{1}, room), Error);
  EXPECT_THROW(shortlist_refinements(ctx, view(one), c.list, std::vector<int32_t>{1, 20}, room), Error);
  EXPECT_THROW(shortlist_refinements(ctx, view(one), c.list, std::vector<int32_t>{-1, 2}, room), Error);
}

INSTANTIATE_TEST_SUITE_P(Tables, ShortlistTest, ::testing::ValuesIn(runnable_tables()),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace qvl::kernels
