#include "qvl/base/greatest.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace qvl {
namespace {

TEST(Greatest, OfAnyNumberOfValues) {
  EXPECT_EQ(greatest({}), -INFINITY);
  for (size_t n = 1; n < 70; ++n) {
    for (size_t at = 0; at < n; ++at) {
      std::vector<float> values(n, -3);
      values[at] = -2;
      ASSERT_EQ(greatest(values), -2) << n << " " << at;
      values[(at + 1) % n] = NAN;
      ASSERT_EQ(greatest(values), n == 1 ? -INFINITY : -2) << n << " " << at;
    }
  }
}

TEST(Greatest, WhatIsNotFiniteIsFoundWhereverItIs) {
  EXPECT_TRUE(all_finite({}));
  EXPECT_TRUE(all_below_infinity({}));
  for (size_t n = 1; n < 70; ++n) {
    std::vector<float> values(n, 3e38f);
    ASSERT_TRUE(all_finite(values));
    ASSERT_TRUE(all_below_infinity(values));
    for (size_t at = 0; at < n; ++at) {
      for (const float bad : {INFINITY, -INFINITY, NAN}) {
        values[at] = bad;
        ASSERT_FALSE(all_finite(values)) << n << " " << at;
        ASSERT_EQ(all_below_infinity(values), bad == -INFINITY) << n << " " << at;
      }
      values[at] = 0;
    }
  }
}

TEST(Greatest, ChunksCoverAllValuesOnce) {
  for (const size_t n : {0u, 1u, 63u, 64u, 65u, 200u}) {
    const std::vector<float> values(n);
    size_t next = 0;
    for (size_t c = 0; c < chunk_count(values); ++c) {
      const std::span<const float> chunk = chunk_of(values, c);
      ASSERT_EQ(chunk.data(), values.data() + next);
      ASSERT_GT(chunk.size(), 0u);
      next += chunk.size();
    }
    EXPECT_EQ(next, n);
  }
}

TEST(Greatest, TheNthCountsEqualsOneByOne) {
  const std::vector<float> values = {2, -1, 5, 5, -INFINITY, 3};
  const std::vector<float> descending = {5, 5, 3, 2, -1, -INFINITY};
  for (size_t n = 1; n <= values.size(); ++n) EXPECT_EQ(nth_greatest(values, n), descending[n - 1]);
}

}  // namespace
}  // namespace qvl
