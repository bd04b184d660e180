// Element types and shapes, and the exact conversions between float32, bfloat16 and float16.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qvl {

enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU64, kU32, kU16, kU8, kBool };

size_t dtype_size_bytes(DType dtype);
// The safetensors spelling: "F32", "BF16", "I64", "BOOL", ...
std::string_view dtype_name(DType dtype);
// Inverse of dtype_name; throws kUnsupported for anything else, naming `where`.
DType parse_dtype(std::string_view name, std::string_view where);

// Row-major extents, outermost first. A scalar is the empty shape.
using Shape = std::vector<int64_t>;

// Product of the extents; throws kLimit if negative or above 2^62.
int64_t element_count(const Shape& shape);
// "[2, 3]"
std::string shape_string(const Shape& shape);

// bfloat16: the upper half of a float32. Arithmetic happens in float32; storing rounds to nearest even.
struct BFloat16 {
  uint16_t bits;
};
static_assert(sizeof(BFloat16) == 2);

// IEEE binary16.
struct Float16 {
  uint16_t bits;
};
static_assert(sizeof(Float16) == 2);

inline float to_float(BFloat16 v) {
  return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16);
}

// Round to nearest even; NaN stays NaN (quiet).
inline BFloat16 to_bfloat16(float v) {
  uint32_t u = std::bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x0040u)};
  u += 0x7fffu + ((u >> 16) & 1u);
  return {static_cast<uint16_t>(u >> 16)};
}

float to_float(Float16 v);
Float16 to_float16(float v);

// v rounded to bfloat16 and back.
inline float round_to_bf16(float v) {
  return to_float(to_bfloat16(v));
}

// Converts `count` elements between F32, BF16 and F16 (any pair); other types throw kUnsupported.
// The buffers must not overlap unless both types and addresses are equal.
void convert_elements(const void* src, DType src_dtype, void* dst, DType dst_dtype, int64_t count);

}  // namespace qvl
