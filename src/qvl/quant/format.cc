#include "qvl/quant/format.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <limits>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::quant {
namespace {

constexpr int64_t kMinBlock = 16;
constexpr int64_t kMaxBlock = 256;

bool is_float(DType type) {
  return type == DType::kF32 || type == DType::kBF16 || type == DType::kF16;
}

std::string type_name(DType type) {
  switch (type) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI8:
      return "i8";
    default:
      return std::string(dtype_name(type));
  }
}

[[noreturn]] void refuse(std::string_view what, std::string_view expected, const std::string& got) {
  fail(ErrorCode::kInvalidArgument, "weight format", what, expected, got);
}

void check_extent(std::string_view what, int64_t extent) {
  if (extent < 0) refuse(what, "0 or more", std::to_string(extent));
}

uint64_t product_bytes(int64_t rows, int64_t per_row) {
  int64_t result = 0;
  if (__builtin_mul_overflow(rows, per_row, &result) || result > (int64_t{1} << 62)) {
    fail(ErrorCode::kLimit, "weight format", "size of a matrix", "at most 2^62 bytes",
         std::to_string(rows) + " rows of " + std::to_string(per_row) + " bytes");
  }
  return static_cast<uint64_t>(result);
}

// Bytes of `count` values of `bits` bits, the last byte filled up.
int64_t packed_bytes(int64_t count, int bits) {
  return bits == 4 ? count / 2 + count % 2 : count;
}

}  // namespace

std::string Format::name() const {
  switch (kind) {
    case Kind::kFloat:
      return type_name(float_type);
    case Kind::kRow8:
      return "int8 row";
    case Kind::kBlock:
      break;
  }
  std::string text = "int" + std::to_string(bits) + " b" + std::to_string(block);
  if (zero_points) text += " zp";
  if (scale_type != DType::kF32) text += " " + type_name(scale_type) + "-scales";
  return text;
}

void Format::validate() const {
  if (kind == Kind::kFloat) {
    if (!is_float(float_type))
      refuse("element type", "F32, BF16 or F16", std::string(dtype_name(float_type)));
    if (bits != 0 || block != 0 || zero_points || scale_type != DType::kF32) {
      refuse("floating-point format", "no bits, block, zero points or scales", "some of them set");
    }
    return;
  }
  if (float_type != DType::kF32)
    refuse("integer format", "no float_type", std::string(dtype_name(float_type)));
  if (kind == Kind::kRow8) {
    if (bits != 8 || block != 0 || zero_points || scale_type != DType::kF32) {
      refuse("int8 row format", "8 bits, no block, no zero points, F32 scales", name());
    }
    return;
  }
  if (bits != 4 && bits != 8) refuse("bits", "4 or 8", std::to_string(bits));
  if (block < kMinBlock || block > kMaxBlock || !std::has_single_bit(static_cast<uint64_t>(block))) {
    refuse("block", "a power of two from 16 to 256", std::to_string(block));
  }
  if (!is_float(scale_type) && scale_type != DType::kI8)
    refuse("scale type", "F32, BF16, F16 or I8", std::string(dtype_name(scale_type)));
}

int64_t Format::block_count(int64_t columns) const {
  validate();
  check_extent("columns", columns);
  switch (kind) {
    case Kind::kFloat:
      return 0;
    case Kind::kRow8:
      return 1;
    case Kind::kBlock:
      break;
  }
  return columns / block + (columns % block != 0 ? 1 : 0);
}

uint64_t Format::data_bytes(int64_t rows, int64_t columns) const {
  const int64_t blocks = block_count(columns);
  check_extent("rows", rows);
  switch (kind) {
    case Kind::kFloat:
      return product_bytes(rows, static_cast<int64_t>(product_bytes(
                                     columns, static_cast<int64_t>(dtype_size_bytes(float_type)))));
    case Kind::kRow8:
      return product_bytes(rows, columns);
    case Kind::kBlock:
      break;
  }
  return product_bytes(rows, static_cast<int64_t>(product_bytes(blocks, block * bits / 8)));
}

int64_t Format::scale_count(int64_t columns) const {
  const int64_t blocks = block_count(columns);
  return blocks > 0 && scale_type == DType::kI8 ? blocks + 1 : blocks;
}

uint64_t Format::scale_bytes(int64_t rows, int64_t columns) const {
  const int64_t count = scale_count(columns);
  check_extent("rows", rows);
  return product_bytes(
      rows, static_cast<int64_t>(product_bytes(count, static_cast<int64_t>(dtype_size_bytes(scale_type)))));
}

uint64_t Format::zero_point_bytes(int64_t rows, int64_t columns) const {
  const int64_t blocks = block_count(columns);
  check_extent("rows", rows);
  return zero_points ? product_bytes(rows, packed_bytes(blocks, bits)) : 0;
}

double Format::bits_per_weight(int64_t rows, int64_t columns) const {
  const uint64_t bytes =
      data_bytes(rows, columns) + scale_bytes(rows, columns) + zero_point_bytes(rows, columns);
  if (rows == 0 || columns == 0) return 0;
  return 8.0 * static_cast<double>(bytes) / (static_cast<double>(rows) * static_cast<double>(columns));
}

int scale_exponent(float largest) {
  constexpr int kLeast = std::numeric_limits<float>::min_exponent - 1;  // factors are normal numbers
  if (largest == 0) return 0;
  int exponent = 0;
  // 127 = 0.9921875 * 2^7
  const float mantissa = std::frexp(largest, &exponent);
  return std::max(kLeast, exponent - 7 + (mantissa > 127.0f / 128 ? 1 : 0));
}

Format parse_format(std::string_view name) {
  const auto unknown = [&] {
    refuse("name",
           "f32, bf16, f16, 'int8 row', or int4|int8 with b16|b32|b64|b128|b256 and perhaps zp and "
           "bf16-scales|f16-scales|i8-scales",
           "'" + std::string(name) + "'");
  };
  for (DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (name == type_name(type)) return Format::floating(type);
  }
  if (name == "int8 row") return Format::row8();
  std::vector<std::string_view> words;
  for (std::string_view rest = name;;) {
    const size_t space = rest.find(' ');
    words.push_back(rest.substr(0, space));
    if (space == std::string_view::npos) break;
    rest.remove_prefix(space + 1);
  }
  Format format{.kind = Kind::kBlock};
  if (words[0] == "int4") {
    format.bits = 4;
  } else if (words[0] == "int8") {
    format.bits = 8;
  } else {
    unknown();
  }
  if (words.size() < 2 || words[1].size() < 2 || words[1][0] != 'b') unknown();
  const std::string_view digits = words[1].substr(1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), format.block);
  if (error != std::errc{} || end != digits.data() + digits.size()) unknown();
  size_t next = 2;
  if (next < words.size() && words[next] == "zp") {
    format.zero_points = true;
    ++next;
  }
  for (DType type : {DType::kBF16, DType::kF16, DType::kI8}) {
    if (next < words.size() && words[next] == type_name(type) + "-scales") {
      format.scale_type = type;
      ++next;
      break;
    }
  }
  if (next != words.size()) unknown();
  format.validate();
  if (format.name() != name) unknown();  // "int4 b032"
  return format;
}

}  // namespace qvl::quant
