#include "qvl/generate/logprobs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

TEST(TokenLogprobs, AreTheLogarithmOfTheSoftmaxOverAll) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> logits(5000);
  for (float& v : logits) v = normal(random);
  long double sum = 0;
  for (float v : logits) sum += std::exp(static_cast<long double>(v));
  const TokenLogprobs got = token_logprobs(logits, 4990, 20, 4500);
  EXPECT_EQ(got.said.id, 4990);
  EXPECT_NEAR(got.said.logprob, static_cast<double>(static_cast<long double>(logits[4990]) - std::log(sum)), 1e-12);
  // The likeliest by sorting all that have text.
  std::vector<int32_t> order(4500);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  ASSERT_EQ(got.top.size(), 20U);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(got.top[i].id, order[i]);
    EXPECT_NEAR(got.top[i].logprob, static_cast<double>(static_cast<long double>(logits[order[i]]) - std::log(sum)), 1e-12);
  }
}

TEST(TokenLogprobs, LargeLogitsDoNotOverflowAndEqualOnesStandByTheirIds) {
  const std::vector<float> logits = {3000, -3000, 3000, 2999, -INFINITY, 3000};
  const TokenLogprobs got = token_logprobs(logits, 4, 3, 6);
  EXPECT_EQ(got.said.logprob, -INFINITY);
  ASSERT_EQ(got.top.size(), 3U);
  EXPECT_EQ(got.top[0].id, 0);
  EXPECT_EQ(got.top[1].id, 2);
  EXPECT_EQ(got.top[2].id, 5);
  EXPECT_NEAR(got.top[0].logprob, -std::log(3 + std::exp(-1.0)), 1e-12);
  // Fewer than asked for where there are no more.
  EXPECT_EQ(token_logprobs(logits, 0, 20, 2).top.size(), 2U);
  EXPECT_TRUE(token_logprobs(logits, 0, 0, 6).top.empty());
}

TEST(TokenLogprobs, WhatIsOutOfRangeIsRefused) {
  const std::vector<float> logits(6, 1.0F);
  EXPECT_THROW(token_logprobs(logits, 6, 0, 6), Error);
  EXPECT_THROW(token_logprobs(logits, -1, 0, 6), Error);
  EXPECT_THROW(token_logprobs(logits, 0, 21, 6), Error);
  EXPECT_THROW(token_logprobs(logits, 0, -1, 6), Error);
}

}  // namespace
}  // namespace qvl::generate
