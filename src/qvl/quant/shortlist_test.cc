#include "qvl/quant/shortlist.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"

namespace qvl::quant {
namespace {

struct Stored {
  Stored(int64_t rows, int64_t columns) {
    const ShortlistBytes bytes = shortlist_bytes(rows, columns);
    coarse.resize(bytes.coarse, std::byte{0xee});
    fine.resize(bytes.fine, std::byte{0xee});
    scales.resize(bytes.scales, std::byte{0xee});
  }
  ShortlistSpan span() { return {coarse, fine, scales}; }

  std::vector<std::byte> coarse, fine, scales;
};

std::vector<float> normal(int64_t count, float scale = 1) {
  std::mt19937 rng(5);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = std::normal_distribution<float>(0, scale)(rng);
  return values;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, all = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - y[i]) * (x[i] - y[i]);
    all += x[i] * x[i];
  }
  return std::sqrt(error / all);
}

TEST(Shortlist, HasBitsWhereTheHeaderSaysTheyAre) {
  // Values around those that the codes stand for, such that the scale is 1.
  constexpr int64_t kRows = 19, kColumns = 256 + 48;
  // Twice as many of the inner codes, by which scales are sought where they are, in each block.
  constexpr std::array<size_t, 24> kCodes = {0, 4, 11, 15, 5, 10, 1, 6, 9, 14, 7, 8, 2, 4, 11, 13, 5, 10, 3, 6, 9, 12, 7, 8};
  const auto code_at = [&](size_t i) {
    // What is left of a block of 256 by 24 is made of inner codes, all of them twice.
    const size_t column = i % kColumns;
    return column >= 240 && column < 256 ? 4 + column % 8 : kCodes[(column + i / kColumns) % kCodes.size()];
  };
  std::vector<float> x(kRows * kColumns);
  std::vector<float> coarse(x.size()), fine(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t code = code_at(i);
    coarse[i] = static_cast<float>(code / 4) * 2 - 3;
    fine[i] = coarse[i] + (static_cast<float>(code % 4) - 1.5f) * kShortlistFineStep;
    x[i] = coarse[i] + std::array{-0.85f, -0.35f, 0.35f, 0.85f}[code % 4];
  }
  Stored s(kRows, kColumns);
  ThreadPool pool(1);
  const ErrorStats stats = encode_shortlist(x.data(), DType::kF32, kRows, kColumns, s.span(), pool, "test");
  // Two groups of 16 rows, 2 blocks.
  ASSERT_EQ(s.coarse.size(), 4096u);
  ASSERT_EQ(s.fine.size(), kRows * 192u);
  ASSERT_EQ(s.scales.size(), 128u);
  EXPECT_EQ(stats.stored_bytes, s.coarse.size() + s.fine.size() + s.scales.size());
  for (size_t r = 0; r < 32; ++r) {
    for (size_t b = 0; b < 2; ++b) {
      const size_t block = r / 16 * 2 + b;
      BFloat16 scale;
      std::memcpy(&scale, s.scales.data() + 32 * block + 2 * (r % 16), 2);
      ASSERT_EQ(to_float(scale), r < kRows ? 1.0f : 0.0f) << r;
      if (r < kRows) {
        ASSERT_EQ(std::memcmp(s.fine.data() + r * 192 + 128 + 2 * b, &scale, 2), 0);
      }
      for (size_t j = 0; j < 256; ++j) {
        const size_t column = 256 * b + j;
        const bool there = r < kRows && column < kColumns;
        const int high = std::to_integer<int>(s.coarse[1024 * block + j % 64 / 4 * 64 + r % 16 * 4 + j % 4]) >> (2 * (j / 64)) & 3;
        const int low = r < kRows ? std::to_integer<int>(s.fine[r * 192 + b * 64 + j % 64]) >> (2 * (j / 64)) & 3 : 0;
        const size_t at = r * kColumns + column;
        ASSERT_EQ(4 * high + low, there ? static_cast<int>(code_at(at)) : 0) << r << " " << column;
      }
    }
  }
  std::vector<float> y(x.size());
  decode_shortlist(kRows, kColumns, s.span(), true, y);
  EXPECT_EQ(y, fine);
  EXPECT_NEAR(stats.relative_rms(), relative_error(x, fine), 1e-6);
  decode_shortlist(kRows, kColumns, s.span(), false, y);
  EXPECT_EQ(y, coarse);
}

TEST(Shortlist, IsAsGoodAsSoFewBitsCanBe) {
  constexpr int64_t kRows = 70, kColumns = 1000;
  const std::vector<float> x = normal(kRows * kColumns, 0.02f);
  ThreadPool one(1), two(2);
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<std::byte> typed(x.size() * dtype_size_bytes(type));
    convert_elements(x.data(), DType::kF32, typed.data(), type, kRows * kColumns);
    std::vector<float> original(x.size()), y(x.size());
    convert_elements(typed.data(), type, original.data(), DType::kF32, kRows * kColumns);
    Stored a(kRows, kColumns), b(kRows, kColumns);
    const ErrorStats stats = encode_shortlist(typed.data(), type, kRows, kColumns, a.span(), one, "test");
    encode_shortlist(typed.data(), type, kRows, kColumns, b.span(), two, "test");
    EXPECT_EQ(a.coarse, b.coarse);
    EXPECT_EQ(a.fine, b.fine);
    EXPECT_EQ(a.scales, b.scales);
    // The least that four evenly spaced values leave of a normal distribution is 0.345 (Max 1960); it is a little more for the sake
    // of the greatest of 256.
    decode_shortlist(kRows, kColumns, a.span(), false, y);
    EXPECT_NEAR(relative_error(original, y), 0.361, 0.005);
    decode_shortlist(kRows, kColumns, a.span(), true, y);
    EXPECT_NEAR(relative_error(original, y), 0.132, 0.005);
    EXPECT_NEAR(stats.relative_rms(), relative_error(original, y), 1e-6);
    // Some of the rows, from a group's first on.
    const ConstShortlistSpan whole = a.span();
    std::vector<float> some(22 * kColumns);
    decode_shortlist(22, kColumns, shortlist_rows(whole, kColumns, 48, 22), true, some);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), y.begin() + 48 * kColumns));
  }
}

TEST(Shortlist, StepsAreSoughtWhateverTheBlock) {
  ThreadPool pool(1);
  // Magnitudes 1 and 3 alone have a scale without error; a block of zeros is zeros.
  std::vector<float> x(512);
  for (size_t i = 0; i < 256; ++i) x[i] = (i % 7 == 0 ? 3.0f : 1.0f) * (i % 2 == 0 ? 0.25f : -0.25f);
  Stored s(1, 512);
  encode_shortlist(x.data(), DType::kF32, 1, 512, s.span(), pool, "test");
  std::vector<float> y(512);
  decode_shortlist(1, 512, s.span(), false, y);
  EXPECT_EQ(x, y);
}

TEST(Shortlist, NoValueIsFurtherOffThanItsScaleSays) {
  // What the head's choice of tokens stands on (engine/native/head.h): great values among small ones.
  ThreadPool pool(1);
  constexpr int64_t kRows = 40, kColumns = 512;
  std::mt19937 rng(8);
  std::vector<float> x(kRows * kColumns), y(x.size());
  for (float& v : x) v = std::student_t_distribution<float>(2)(rng);
  Stored s(kRows, kColumns);
  encode_shortlist(x.data(), DType::kF32, kRows, kColumns, s.span(), pool, "test");
  for (const bool fine : {false, true}) {
    decode_shortlist(kRows, kColumns, s.span(), fine, y);
    float most = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t row = i / kColumns, block = row / 16 * 2 + i % kColumns / 256;
      BFloat16 scale;
      std::memcpy(&scale, s.scales.data() + 32 * block + 2 * (row % 16), 2);
      most = std::max(most, std::fabs(x[i] - y[i]) / to_float(scale));
    }
    // Scales are rounded to 8 bits.
    EXPECT_LT(most, fine ? 1.6f : 2.6f);
    EXPECT_GT(most, fine ? 1.4f : 2.4f);
  }
}

TEST(Shortlist, RefusesWhatItCannotHold) {
  ThreadPool pool(1);
  const auto code_of = [&](std::vector<float> x, DType type = DType::kF32) {
    Stored s(2, 300);
    try {
      encode_shortlist(x.data(), type, 2, 300, s.span(), pool, "a head", 40);
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("a head"), std::string::npos) << e.what();
      return std::pair(e.code(), std::string(e.what()));
    }
    return std::pair(ErrorCode::kCancelled, std::string());
  };
  std::vector<float> x = normal(600);
  x[400] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(code_of(x).first, ErrorCode::kFormat);
  EXPECT_NE(code_of(x).second.find("row 41"), std::string::npos);
  x[400] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(code_of(x).first, ErrorCode::kFormat);
  EXPECT_EQ(code_of(std::vector<float>(600, 3e38f)).first, ErrorCode::kLimit);  // its squares are no floats
  EXPECT_EQ(code_of(normal(600), DType::kU8).first, ErrorCode::kUnsupported);
  EXPECT_THROW(shortlist_bytes(int64_t{1} << 60, 4096), Error);
  Stored s(2, 300);
  std::vector<float> y(600);
  EXPECT_THROW(decode_shortlist(2, 301, s.span(), true, y), Error);
  EXPECT_THROW(decode_shortlist(3, 300, s.span(), true, y), Error);
  y.pop_back();
  EXPECT_THROW(decode_shortlist(2, 300, s.span(), true, y), Error);
}

}  // namespace
}  // namespace qvl::quant
