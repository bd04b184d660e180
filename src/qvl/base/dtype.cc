#include "qvl/base/dtype.h"

#include <array>
#include <cstring>
#include <utility>

#include "qvl/base/error.h"

namespace qvl {
namespace {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  size_t size_bytes;
};

constexpr std::array<DTypeRow, 13> kDTypes{{{DType::kF64, "F64", 8},
                                            {DType::kF32, "F32", 4},
                                            {DType::kF16, "F16", 2},
                                            {DType::kBF16, "BF16", 2},
                                            {DType::kI64, "I64", 8},
                                            {DType::kI32, "I32", 4},
                                            {DType::kI16, "I16", 2},
                                            {DType::kI8, "I8", 1},
                                            {DType::kU64, "U64", 8},
                                            {DType::kU32, "U32", 4},
                                            {DType::kU16, "U16", 2},
                                            {DType::kU8, "U8", 1},
                                            {DType::kBool, "BOOL", 1}}};

const DTypeRow& row(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)];
}

template <typename Src, typename Dst>
void convert(const void* src, void* dst, int64_t count) {
  const Src* in = static_cast<const Src*>(src);
  Dst* out = static_cast<Dst*>(dst);
  for (int64_t i = 0; i < count; ++i) {
    float v;
    if constexpr (std::is_same_v<Src, float>) {
      v = in[i];
    } else {
      v = to_float(in[i]);
    }
    if constexpr (std::is_same_v<Dst, float>) {
      out[i] = v;
    } else if constexpr (std::is_same_v<Dst, BFloat16>) {
      out[i] = to_bfloat16(v);
    } else {
      out[i] = to_float16(v);
    }
  }
}

template <typename Src>
void convert_from(const void* src, void* dst, DType dst_dtype, int64_t count) {
  switch (dst_dtype) {
    case DType::kF32:
      return convert<Src, float>(src, dst, count);
    case DType::kBF16:
      return convert<Src, BFloat16>(src, dst, count);
    case DType::kF16:
      return convert<Src, Float16>(src, dst, count);
    default:
      fail(ErrorCode::kUnsupported, "convert", "target type", "F32, BF16 or F16", dtype_name(dst_dtype));
  }
}

}  // namespace

size_t dtype_size_bytes(DType dtype) {
  return row(dtype).size_bytes;
}

std::string_view dtype_name(DType dtype) {
  return row(dtype).name;
}

DType parse_dtype(std::string_view name, std::string_view where) {
  for (const DTypeRow& r : kDTypes) {
    if (r.name == name) return r.dtype;
  }
  fail(ErrorCode::kUnsupported, where, "element type", "F64, F32, F16, BF16, an integer type or BOOL", name);
}

int64_t element_count(const Shape& shape) {
  constexpr int64_t kMax = int64_t{1} << 62;
  int64_t n = 1;
  for (int64_t d : shape) {
    if (d < 0 || (d > 0 && n > kMax / d))
      fail(ErrorCode::kLimit, "shape", "impossible shape " + shape_string(shape));
    n *= d;
  }
  return n;
}

std::string shape_string(const Shape& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) s += ", ";
    s += std::to_string(shape[i]);
  }
  return s + "]";
}

float to_float(Float16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t exponent = (v.bits >> 10) & 0x1fu;
  const uint32_t mantissa = v.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float32
    const float m = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(m) | sign);
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

Float16 to_float16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t abs = u & 0x7fffffffu;
  if (abs > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (abs >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (abs < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa, the FPU rounds to nearest even
    const float shifted = std::bit_cast<float>(abs) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = abs + 0xfffu + ((abs >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

void convert_elements(const void* src, DType src_dtype, void* dst, DType dst_dtype, int64_t count) {
  if (src_dtype == dst_dtype) {
    if (src != dst) std::memcpy(dst, src, static_cast<size_t>(count) * dtype_size_bytes(src_dtype));
    return;
  }
  switch (src_dtype) {
    case DType::kF32:
      return convert_from<float>(src, dst, dst_dtype, count);
    case DType::kBF16:
      return convert_from<BFloat16>(src, dst, dst_dtype, count);
    case DType::kF16:
      return convert_from<Float16>(src, dst, dst_dtype, count);
    default:
      fail(ErrorCode::kUnsupported, "convert", "source type", "F32, BF16 or F16", dtype_name(src_dtype));
  }
}

}  // namespace qvl
