#include "qvl/quant/error_stats.h"

#include <gtest/gtest.h>

#include <cmath>

#include "qvl/base/error.h"

namespace qvl::quant {
namespace {

TEST(ErrorStats, FiguresByHand) {
  const std::vector<float> x = {3, -4, 0, 12}, y = {3, -3, 2, 12};
  const std::vector<float> importance = {1, 4};
  ErrorStats s;
  s.add(x, y, 2, importance);
  s.stored_bytes = 2;
  EXPECT_EQ(s.count, 4);
  EXPECT_DOUBLE_EQ(s.bits_per_weight(), 4.0);
  EXPECT_DOUBLE_EQ(s.max_error, 2.0);
  EXPECT_DOUBLE_EQ(s.mean_error(), 0.75);
  EXPECT_DOUBLE_EQ(s.rms_error(), std::sqrt(5.0 / 4));
  EXPECT_DOUBLE_EQ(s.relative_rms(), std::sqrt(5.0 / 169));
  // errors 1 (column 1) and 2 (column 0): 4 * 1 + 1 * 4; squares 9 + 4 * 16 + 0 + 4 * 144
  EXPECT_DOUBLE_EQ(s.weighted_relative_rms(), std::sqrt(8.0 / 649));
  EXPECT_DOUBLE_EQ(s.cosine(), (9 + 12 + 144) / (13 * std::sqrt(166.0)));
  EXPECT_DOUBLE_EQ(s.to_json()["max_error"].get<double>(), 2.0);
}

TEST(ErrorStats, MergedPartsEqualTheWhole) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6}, y = {1.5f, 2, 2, 4, 5.25f, 6}, importance = {1, 2, 3};
  ErrorStats whole, first, second;
  whole.add(x, y, 3, importance);
  first.add(std::span(x).first(3), std::span(y).first(3), 3, importance);
  second.add(std::span(x).last(3), std::span(y).last(3), 3, importance);
  first.stored_bytes = 5;
  second.stored_bytes = 6;
  first.merge(second);
  EXPECT_EQ(first.stored_bytes, 11u);
  first.stored_bytes = 0;
  EXPECT_EQ(first.to_json(), whole.to_json());
  EXPECT_EQ(first.count, 6);
}

TEST(ErrorStats, NothingAndZeros) {
  ErrorStats s;
  EXPECT_EQ(s.bits_per_weight(), 0);
  EXPECT_EQ(s.cosine(), 0);
  EXPECT_EQ(s.relative_rms(), 0);
  s.add(std::vector<float>{0, 0}, std::vector<float>{0, 0}, 2);
  EXPECT_EQ(s.cosine(), 1);
  EXPECT_EQ(s.relative_rms(), 0);
  s.add(std::vector<float>{0, 0}, std::vector<float>{0, 1}, 2);
  EXPECT_EQ(s.cosine(), 0);
  EXPECT_TRUE(std::isinf(s.relative_rms()));
  EXPECT_TRUE(s.to_json()["relative_rms"].is_null());
}

TEST(ErrorStats, SizesMustFit) {
  ErrorStats s;
  const std::vector<float> four(4), three(3);
  EXPECT_THROW(s.add(four, three, 2), Error);
  EXPECT_THROW(s.add(four, four, 3), Error);
  EXPECT_THROW(s.add(four, four, 2, three), Error);
  EXPECT_THROW(s.add(four, four, 0), Error);
  EXPECT_EQ(s.count, 0);
}

}  // namespace
}  // namespace qvl::quant
