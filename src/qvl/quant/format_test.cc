// Names, validation and sizes of the weight formats.
#include "qvl/quant/format.h"

#include <gtest/gtest.h>

#include <set>

#include "qvl/base/error.h"

namespace qvl::quant {
namespace {

TEST(Format, NamesReadBack) {
  std::set<std::string> names;
  std::vector<Format> formats = {Format::floating(DType::kF32), Format::floating(DType::kBF16),
                                 Format::floating(DType::kF16), Format::row8()};
  for (int bits : {4, 8}) {
    for (int64_t block : {16, 32, 64, 128, 256}) {
      for (bool zero_points : {false, true}) {
        for (DType scale : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
          formats.push_back(Format::blocks(bits, block, zero_points, scale));
        }
      }
    }
  }
  for (const Format& f : formats) {
    EXPECT_NO_THROW(f.validate());
    EXPECT_EQ(parse_format(f.name()), f) << f.name();
    EXPECT_TRUE(names.insert(f.name()).second) << f.name();
  }
  EXPECT_EQ(Format::blocks(4, 128, true).name(), "int4 b128 zp");
  EXPECT_EQ(Format::blocks(8, 32, false, DType::kBF16).name(), "int8 b32 bf16-scales");
}

TEST(Format, BadNamesAreRefused) {
  for (const char* name : {"",
                           " ",
                           "f64",
                           "F32",
                           "int4",
                           "int4 ",
                           "int4 b",
                           "int4 b0",
                           "int4 b24",
                           "int4 b8",
                           "int4 b512",
                           "int4 b032",
                           "int4 b32 ",
                           "int4  b32",
                           "int4 b32 zp zp",
                           "int4 b32 f32-scales",
                           "int4 b32 bf16-scales zp",
                           "int2 b32",
                           "int8 rows",
                           "int4 b-32",
                           "int4 b99999999999999999999",
                           "bf16 zp",
                           "int4 b32x"}) {
    try {
      parse_format(name);
      ADD_FAILURE() << "accepted '" << name << "'";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument) << name;
      EXPECT_NE(std::string(e.what()).find("expected"), std::string::npos) << e.what();
    }
  }
}

TEST(Format, CombinationsThatDoNotExist) {
  const std::vector<Format> bad = {
      Format::floating(DType::kI8),
      Format::blocks(2, 32),
      Format::blocks(4, 48),
      Format::blocks(4, 8),
      Format::blocks(4, 512),
      Format::blocks(4, 32, false, DType::kU8),
      {.kind = Kind::kRow8, .bits = 8, .scale_type = DType::kI8},
      {.kind = Kind::kRow8, .bits = 4},
      {.kind = Kind::kRow8, .bits = 8, .block = 32},
      {.kind = Kind::kRow8, .bits = 8, .scale_type = DType::kBF16},
      {.kind = Kind::kFloat, .float_type = DType::kF32, .bits = 4},
      {.kind = Kind::kBlock, .float_type = DType::kBF16, .bits = 4, .block = 32},
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_THROW(bad[i].validate(), Error) << i;
    EXPECT_THROW(bad[i].data_bytes(1, 1), Error) << i;
  }
}

// K = 100 is no multiple of 32: 4 blocks, of which the last is padded; 5 blocks of zero points need 3 bytes.
TEST(Format, Sizes) {
  const Format int4 = parse_format("int4 b32 zp");
  EXPECT_EQ(int4.block_count(100), 4);
  EXPECT_EQ(int4.data_bytes(7, 100), 7u * 4 * 16);
  EXPECT_EQ(int4.scale_bytes(7, 100), 7u * 4 * 4);
  EXPECT_EQ(int4.zero_point_bytes(7, 100), 7u * 2);
  EXPECT_EQ(int4.zero_point_bytes(7, 160), 7u * 3);
  EXPECT_EQ(int4.block_count(0), 0);
  const Format int8 = parse_format("int8 b16 zp f16-scales");
  EXPECT_EQ(int8.data_bytes(3, 33), 3u * 3 * 16);
  EXPECT_EQ(int8.scale_bytes(3, 33), 3u * 3 * 2);
  EXPECT_EQ(int8.zero_point_bytes(3, 33), 3u * 3);
  EXPECT_EQ(Format::row8().data_bytes(5, 33), 165u);
  EXPECT_EQ(Format::row8().scale_bytes(5, 33), 20u);
  EXPECT_EQ(Format::floating(DType::kBF16).data_bytes(5, 33), 330u);
  EXPECT_EQ(Format::floating(DType::kBF16).scale_bytes(5, 33), 0u);
  EXPECT_DOUBLE_EQ(parse_format("int4 b32").bits_per_weight(64, 2560), 5.0);
  EXPECT_DOUBLE_EQ(parse_format("int4 b32 bf16-scales").bits_per_weight(64, 2560), 4.5);
  EXPECT_EQ(parse_format("int4 b32 i8-scales").scale_bytes(7, 100), 7u * (1 + 4));
  EXPECT_EQ(parse_format("int4 b32 i8-scales").scale_count(100), 5);
  EXPECT_EQ(int4.scale_count(100), 4);
  EXPECT_EQ(Format::floating(DType::kBF16).scale_count(100), 0);
  EXPECT_DOUBLE_EQ(parse_format("int4 b32 i8-scales").bits_per_weight(64, 2560), 4.25 + 8.0 / 2560);
  EXPECT_DOUBLE_EQ(parse_format("int4 b128 zp").bits_per_weight(64, 2560), 4.25 + 4.0 / 128);
  EXPECT_DOUBLE_EQ(Format::floating(DType::kF32).bits_per_weight(3, 5), 32.0);
  EXPECT_DOUBLE_EQ(Format::row8().bits_per_weight(0, 5), 0.0);
}

TEST(Format, SizesThatCannotBe) {
  const Format f = parse_format("int4 b32");
  EXPECT_THROW(f.data_bytes(-1, 32), Error);
  EXPECT_THROW(f.data_bytes(1, -32), Error);
  try {
    f.scale_bytes(int64_t{1} << 40, int64_t{1} << 40);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kLimit);
  }
}

}  // namespace
}  // namespace qvl::quant
