// One value, scale or zero point of an integer weight: for the scalar kernels and for the parts of the others that are
// not in their inner loops (private to this room).
#pragma once

#include <bit>
#include <cstring>
#include <limits>

#include "qvl/kernels/int8_kernels.h"

namespace qvl::kernels {

// The scale of a group of 8-bit codes whose largest magnitude has these bits, and what its values are multiplied with; 0 where
// all of them become 0. A group with an infinity or a NaN gets the scale NaN, so that it is not lost.
inline float int8_inverse_scale(uint32_t absmax_bits, int64_t group, float& scale) {
  constexpr float kSmallest = 1e-36f;  // below, what values are multiplied with overflows
  const float absmax = std::bit_cast<float>(absmax_bits);
  if (absmax_bits >= 0x7f800000u) {
    scale = std::numeric_limits<float>::quiet_NaN();
    return 0.0f;
  }
  const bool power = group <= kInt8PowerGroup;
  if (absmax < kSmallest) {
    scale = power ? 1.0f : 0.0f;
    return 0.0f;
  }
  if (!power) {
    scale = absmax / 127.0f;
    return 127.0f / absmax;
  }
  // A mantissa beyond that of 127 needs the next power of two; divided by 2^6, since 127 lies between that and 2^7.
  constexpr uint32_t kCarry = std::bit_cast<uint32_t>(128.0f) - std::bit_cast<uint32_t>(127.0f) - 1;
  constexpr uint32_t kExponent = 0x7f800000u, kExponentOne = 1u << 23, kExponentBias = 127;
  const uint32_t bits = ((absmax_bits + kCarry) & kExponent) - 6 * kExponentOne;
  scale = std::bit_cast<float>(bits);
  return std::bit_cast<float>(2 * kExponentBias * kExponentOne - bits);
}

// The same for codes of 7 bits: the range from the least to the greatest value, 0 among them, is 127 steps.
inline float int7_inverse_scale(uint32_t absmax_bits, float least, float greatest, float& scale) {
  const float within = int8_inverse_scale(absmax_bits, kInt8Pad, scale);
  if (within == 0) return 0.0f;
  // The range of finite values need not be finite as a float.
  const double range = static_cast<double>(greatest) - static_cast<double>(least);
  scale = static_cast<float>(range / 127.0);
  return static_cast<float>(127.0 / range);
}

// What codes of scales of a row are multiplied with: 2^e.
inline float int8_row_factor(const Int8Weight& w, int64_t row) {
  constexpr int kBias = 127, kMantissaBits = 23;
  const int exponent = static_cast<int8_t>(w.scales[row * w.scale_stride - 1]);
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + kBias) << kMantissaBits);
}

// Of `count` rows, each `apart` rows behind the one before.
inline void int8_row_factors(const Int8Weight& w, int64_t apart, int64_t count, float* out) {
  for (int64_t n = 0; n < count; ++n) out[n] = int8_row_factor(w, n * apart);
}

inline float int8_scale(const Int8Weight& w, int64_t row, int64_t block) {
  const std::byte* p = w.scales + row * w.scale_stride;
  if (w.scale_type == DType::kI8) return static_cast<float>(static_cast<int8_t>(p[block])) * int8_row_factor(w, row);
  if (w.scale_type == DType::kF32) {
    float v;
    std::memcpy(&v, p + block * 4, sizeof(v));
    return v;
  }
  uint16_t bits;
  std::memcpy(&bits, p + block * 2, sizeof(bits));
  return w.scale_type == DType::kBF16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}

inline int int8_zero_point(const Int8Weight& w, int64_t row, int64_t block) {
  if (w.zero_points == nullptr) return w.bits == 4 ? 8 : 128;
  const std::byte* p = w.zero_points + row * w.zero_stride;
  if (w.bits == 8) return std::to_integer<int>(p[block]);
  return std::to_integer<int>(p[block / 2]) >> (block % 2 * 4) & 15;
}

// What is stored, q, in column k of the row at `p`.
inline int int8_code(const Int8Weight& w, const std::byte* p, int64_t k) {
  if (w.bits == 4) return std::to_integer<int>(p[k / 2]) >> (k % 2 * 4) & 15;
  return std::to_integer<int>(p[k]);
}

// q - zero point.
inline int int8_value(const Int8Weight& w, int64_t row, int64_t k) {
  return int8_code(w, w.data + row * w.data_stride, k) - int8_zero_point(w, row, k / w.block);
}

}  // namespace qvl::kernels
