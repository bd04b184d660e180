// The bits of the formats: written out by hand, and there and back for every shape that is awkward.
#include "qvl/quant/block_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "qvl/base/error.h"

namespace qvl::quant {
namespace {

Codes random_codes(const Format& format, int64_t rows, int64_t columns, uint32_t seed) {
  std::mt19937 rng(seed);
  const int64_t blocks = format.block_count(columns);
  Codes codes;
  for (int64_t i = 0; i < rows * columns; ++i) {
    const int v = static_cast<int>(rng() % (format.kind == Kind::kRow8 ? 255 : 1u << format.bits));
    codes.q.push_back(static_cast<int16_t>(format.kind == Kind::kRow8 ? v + 1 : v));
  }
  for (int64_t i = 0; i < rows * blocks; ++i) {
    // Few bits of mantissa: every scale type holds it.
    codes.scales.push_back(static_cast<float>(static_cast<int>(rng() % 255) - 127) / 1024.0f);
    if (format.zero_points) codes.zero_points.push_back(static_cast<int16_t>(rng() % (1u << format.bits)));
  }
  return codes;
}

TEST(BlockCodec, BitsWrittenOut) {
  // One row, 18 columns, blocks of 16: the second block holds two values and padding.
  const Format format = parse_format("int4 b16 zp");
  Codes codes;
  for (int k = 0; k < 18; ++k) codes.q.push_back(static_cast<int16_t>((k * 5 + 1) % 16));
  codes.scales = {0.5f, -2.0f};
  codes.zero_points = {3, 12};
  QuantizedMatrix m(format, 1, 18);
  pack(format, 1, 18, codes, m.span());
  const auto byte = [](std::span<const std::byte> s, size_t i) { return std::to_integer<int>(s[i]); };
  const ConstQuantizedSpan bits = m.span();
  ASSERT_EQ(bits.data.size(), 16u);
  EXPECT_EQ(byte(bits.data, 0), 0x61);  // k = 0 is 1 in the low nibble, k = 1 is 6 in the high one
  EXPECT_EQ(byte(bits.data, 8), 0x61);  // k = 16, 17
  for (size_t i = 9; i < 16; ++i) EXPECT_EQ(byte(bits.data, i), 0xcc) << i;  // padding is the zero point
  ASSERT_EQ(bits.zero_points.size(), 1u);
  EXPECT_EQ(byte(bits.zero_points, 0), 0xc3);
  std::vector<float> w(18);
  dequantize(format, 1, 18, bits, w);
  EXPECT_EQ(w[0], -1.0f);   // (1 - 3) * 0.5
  EXPECT_EQ(w[1], 1.5f);    // (6 - 3) * 0.5
  EXPECT_EQ(w[16], 22.0f);  // (1 - 12) * -2
}

TEST(BlockCodec, ConstantZeroPoints) {
  std::vector<float> w(16);
  for (const auto& [name, zero] : {std::pair{"int4 b16", 8}, {"int8 b16", 128}, {"int8 row", 128}}) {
    const Format format = parse_format(name);
    EXPECT_EQ(default_zero_point(format), zero);
    Codes codes;
    codes.q.assign(16, static_cast<int16_t>(zero + 2));
    codes.scales = {0.25f};
    QuantizedMatrix m(format, 1, 16);
    pack(format, 1, 16, codes, m.span());
    dequantize(format, 1, 16, std::as_const(m).span(), w);
    for (float v : w) EXPECT_EQ(v, 0.5f) << name;
  }
}

TEST(BlockCodec, CodedScalesWrittenOut) {
  const Format format = parse_format("int8 b16 i8-scales");
  Codes codes;
  codes.q.assign(2 * 48, 130);
  codes.scales = {3.0f, -0.375f, 0.0f, 0.0f, 0.0f, 0.0f};
  QuantizedMatrix m(format, 2, 48);
  pack(format, 2, 48, codes, m.span());
  std::vector<int> bytes;
  for (const std::byte b : m.span().scales) bytes.push_back(static_cast<int8_t>(b));
  EXPECT_EQ(bytes, (std::vector<int>{-5, 96, -12, 0, 0, 0, 0, 0}));  // 96 / 32, -12 / 32; a row of zeros
  std::vector<float> scales(6), w(2 * 48);
  read_scales(format, 2, 48, std::as_const(m).span().scales, scales);
  EXPECT_EQ(scales, codes.scales);
  dequantize(format, 2, 48, std::as_const(m).span(), w);
  EXPECT_EQ(w[0], 6.0f);
  EXPECT_EQ(w[16], -0.75f);
  EXPECT_EQ(w[48], 0.0f);

  codes.scales[1] = 3.0f / 128;  // finer than the greatest of the row allows
  EXPECT_THROW(pack(format, 2, 48, codes, m.span()), Error);
  codes.scales[1] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(pack(format, 2, 48, codes, m.span()), Error);
}

TEST(BlockCodec, ExponentsOfScalesAreTheLeast) {
  EXPECT_EQ(scale_exponent(0.0f), 0);
  for (const int power : {-100, -7, 0, 1, 100}) {
    EXPECT_EQ(scale_exponent(std::ldexp(127.0f, power)), power);
    EXPECT_EQ(scale_exponent(std::nextafter(std::ldexp(127.0f, power), INFINITY)), power + 1);
    EXPECT_EQ(scale_exponent(std::ldexp(128.0f, power)), power + 1);
  }
  EXPECT_EQ(scale_exponent(1e-44f), -126);
  EXPECT_EQ(scale_exponent(std::numeric_limits<float>::max()), 122);
}

TEST(BlockCodec, ThereAndBack) {
  for (const char* name : {"int4 b16", "int4 b32 zp", "int4 b64 zp bf16-scales", "int4 b256",
                           "int8 b16 zp f16-scales", "int8 b32", "int8 b128 zp", "int4 b32 i8-scales", "int8 b16 zp i8-scales", "int8 row"}) {
    const Format format = parse_format(name);
    for (int64_t columns :
         {1, 15, 16, 17, 31, 33, 96, 100, 160, 257}) {  // 1 to 17 blocks, odd counts among them
      for (int64_t rows : {1, 3}) {
        const Codes codes = random_codes(format, rows, columns, static_cast<uint32_t>(columns));
        QuantizedMatrix m(format, rows, columns);
        // Every byte must be written: what was there before must not show through.
        for (std::span<std::byte> part : {m.span().data, m.span().scales, m.span().zero_points}) {
          std::fill(part.begin(), part.end(), std::byte{0xa5});
        }
        pack(format, rows, columns, codes, m.span());
        const Codes back = unpack(format, rows, columns, std::as_const(m).span());
        EXPECT_EQ(back.q, codes.q) << name << " " << columns;
        EXPECT_EQ(back.scales, codes.scales) << name << " " << columns;
        EXPECT_EQ(back.zero_points, codes.zero_points) << name << " " << columns;
        if (format.zero_points && format.bits == 4 && format.block_count(columns) % 2 == 1) {
          EXPECT_EQ(std::to_integer<int>(m.span().zero_points.back()) >> 4, 0) << "spare nibble";
        }
      }
    }
  }
}

TEST(BlockCodec, RowsOfAMatrixAreRowsOfItsParts) {
  const Format format = parse_format("int4 b32 zp");
  const Codes all = random_codes(format, 5, 90, 1);  // 3 blocks
  QuantizedMatrix whole(format, 5, 90);
  pack(format, 5, 90, all, whole.span());
  const Codes part = unpack(format, 2, 90, row_span(format, 5, 90, whole.span(), 3, 2));
  EXPECT_TRUE(std::equal(part.q.begin(), part.q.end(), all.q.begin() + 3 * 90));
  EXPECT_TRUE(std::equal(part.zero_points.begin(), part.zero_points.end(), all.zero_points.begin() + 3 * 3));
  EXPECT_THROW(row_span(format, 5, 90, whole.span(), 4, 2), Error);
  EXPECT_THROW(row_span(format, 5, 90, whole.span(), -1, 2), Error);
}

TEST(BlockCodec, WrongSizesAndValuesAreRefused) {
  const Format format = parse_format("int4 b32 zp f16-scales");
  QuantizedMatrix m(format, 2, 40);
  const Codes good = random_codes(format, 2, 40, 3);
  const auto refused = [&](const Codes& codes, ErrorCode code) {
    try {
      pack(format, 2, 40, codes, m.span());
      return false;
    } catch (const Error& e) {
      return e.code() == code;
    }
  };
  Codes bad = good;
  bad.q[7] = 16;
  EXPECT_TRUE(refused(bad, ErrorCode::kInvalidArgument));
  bad = good;
  bad.q.pop_back();
  EXPECT_TRUE(refused(bad, ErrorCode::kMismatch));
  bad = good;
  bad.zero_points[0] = -1;
  EXPECT_TRUE(refused(bad, ErrorCode::kInvalidArgument));
  bad = good;
  bad.scales[1] = 1.0f + 0x1p-20f;  // not a float16
  EXPECT_TRUE(refused(bad, ErrorCode::kInvalidArgument));
  bad.scales[1] = 1e6f;
  EXPECT_TRUE(refused(bad, ErrorCode::kInvalidArgument));
  bad.scales[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(refused(bad, ErrorCode::kInvalidArgument));
  EXPECT_THROW(unpack(format, 2, 80, std::as_const(m).span()), Error);
  std::vector<float> small(79);
  EXPECT_THROW(dequantize(format, 2, 40, std::as_const(m).span(), small), Error);
  EXPECT_THROW(QuantizedMatrix(Format::floating(DType::kF32), 2, 2), Error);
}

}  // namespace
}  // namespace qvl::quant
