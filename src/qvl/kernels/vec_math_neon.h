// Vector math for NEON kernels: exp, the activations, bfloat16 conversion, partial loads and stores, and the 4x4
// transpose. The formulas are those of vec_math_avx512.h; finish_test.cc holds them to the same bounds. Everything is
// ARMv8-A's base, so no function needs a target of its own.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "qvl/base/dtype.h"

namespace qvl::kernels::neon {

#define QVL_VEC_INLINE static inline __attribute__((always_inline))

// e^x. NaN stays NaN (minimum and maximum hand it on); below -104 gives 0, above 88.73 infinity.
QVL_VEC_INLINE float32x4_t exp_ps(float32x4_t x) {
  x = vmaxq_f32(x, vdupq_n_f32(-104.0f));
  x = vminq_f32(x, vdupq_n_f32(89.0f));
  const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504088896341f)));
  float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
  r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
  float32x4_t p = vdupq_n_f32(1.9875691500e-4f);
  p = vfmaq_f32(vdupq_n_f32(1.3981999507e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(8.3334519073e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(4.1665795894e-2f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.6666665459e-1f), p, r);
  p = vfmaq_f32(vdupq_n_f32(5.0000001201e-1f), p, r);
  p = vfmaq_f32(r, p, vmulq_f32(r, r));
  p = vaddq_f32(p, vdupq_n_f32(1.0f));
  // 2^n in two factors: n reaches from -150 (denormal results) to 128 (overflow), past one exponent field.
  const int32x4_t whole = vcvtnq_s32_f32(n);
  const int32x4_t first = vshrq_n_s32(whole, 1);
  const int32x4_t second = vsubq_s32(whole, first);
  const int32x4_t bias = vdupq_n_s32(127);
  p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(first, bias), 23)));
  return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(second, bias), 23)));
}

// x / (1 + e^-x)
QVL_VEC_INLINE float32x4_t silu_ps(float32x4_t x) {
  return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exp_ps(vnegq_f32(x))));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3).
QVL_VEC_INLINE float32x4_t gelu_tanh_ps(float32x4_t x) {
  const float32x4_t inner = vfmaq_f32(x, vmulq_f32(vdupq_n_f32(0.044715f), x), vmulq_f32(x, x));
  const float32x4_t e = exp_ps(vmulq_f32(vdupq_n_f32(-1.5957691216057308f), inner));
  return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), e));
}

// x * Phi(x) with Phi from erfc(z) = t e^(-z^2 + P(t)), t = 2 / (2 + z).
QVL_VEC_INLINE float32x4_t gelu_erf_ps(float32x4_t x) {
  const float32x4_t z = vmulq_f32(vabsq_f32(x), vdupq_n_f32(0.70710678118654752f));
  const float32x4_t one = vdupq_n_f32(1.0f), half = vdupq_n_f32(0.5f);
  const float32x4_t t = vdivq_f32(one, vfmaq_f32(one, z, half));
  float32x4_t p = vdupq_n_f32(0.17087277f);
  p = vfmaq_f32(vdupq_n_f32(-0.82215223f), p, t);
  p = vfmaq_f32(vdupq_n_f32(1.48851587f), p, t);
  p = vfmaq_f32(vdupq_n_f32(-1.13520398f), p, t);
  p = vfmaq_f32(vdupq_n_f32(0.27886807f), p, t);
  p = vfmaq_f32(vdupq_n_f32(-0.18628806f), p, t);
  p = vfmaq_f32(vdupq_n_f32(0.09678418f), p, t);
  p = vfmaq_f32(vdupq_n_f32(0.37409196f), p, t);
  p = vfmaq_f32(vdupq_n_f32(1.00002368f), p, t);
  p = vfmaq_f32(vdupq_n_f32(-1.26551223f), p, t);
  const float32x4_t e = exp_ps(vfmsq_f32(p, z, z));
  const float32x4_t half_erfc = vmulq_f32(vmulq_f32(t, half), e);
  const float32x4_t phi = vbslq_f32(vcgtzq_f32(x), vsubq_f32(one, half_erfc), half_erfc);
  return vmulq_f32(x, phi);
}

QVL_VEC_INLINE float32x4_t bf16_to_ps(uint16x4_t v) {
  return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
}

// Nearest even, NaN stays NaN: the same bits as to_bfloat16(), in the upper halves.
QVL_VEC_INLINE uint32x4_t round_bf16_bits(float32x4_t v) {
  const uint32x4_t u = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x00400000));
  return vbslq_u32(vceqq_f32(v, v), rounded, quiet);
}

QVL_VEC_INLINE uint16x4_t ps_to_bf16(float32x4_t v) {
  return vshrn_n_u32(round_bf16_bits(v), 16);
}

// v rounded to bfloat16 and back.
QVL_VEC_INLINE float32x4_t round_to_bf16_ps(float32x4_t v) {
  return vreinterpretq_f32_u32(vandq_u32(round_bf16_bits(v), vdupq_n_u32(0xffff0000u)));
}

// The first n of 4 elements, the others zero; 0 <= n <= 4. Nothing past them is touched.
QVL_VEC_INLINE uint16x4_t load_n_u16(const void* p, int64_t n) {
  uint16_t buffer[4] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return vld1_u16(buffer);
}

QVL_VEC_INLINE void store_n_u16(void* p, uint16x4_t v, int64_t n) {
  uint16_t buffer[4];
  vst1_u16(buffer, v);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(uint16_t));
}

// Element types by name: load and store all 4 lanes or the first n.
struct F32 {
  using Element = float;
  QVL_VEC_INLINE float32x4_t load(const float* p) { return vld1q_f32(p); }
  QVL_VEC_INLINE float32x4_t load_n(const float* p, int64_t n) {
    float buffer[4] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
    return vld1q_f32(buffer);
  }
  QVL_VEC_INLINE void store(float* p, float32x4_t v) { vst1q_f32(p, v); }
  QVL_VEC_INLINE void store_n(float* p, float32x4_t v, int64_t n) {
    float buffer[4];
    vst1q_f32(buffer, v);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(float));
  }
  QVL_VEC_INLINE float32x4_t round(float32x4_t v) { return v; }
};

struct BF16 {
  using Element = BFloat16;
  QVL_VEC_INLINE float32x4_t load(const BFloat16* p) { return bf16_to_ps(vld1_u16(&p->bits)); }
  QVL_VEC_INLINE float32x4_t load_n(const BFloat16* p, int64_t n) { return bf16_to_ps(load_n_u16(p, n)); }
  QVL_VEC_INLINE void store(BFloat16* p, float32x4_t v) { vst1_u16(&p->bits, ps_to_bf16(v)); }
  QVL_VEC_INLINE void store_n(BFloat16* p, float32x4_t v, int64_t n) { store_n_u16(p, ps_to_bf16(v), n); }
  QVL_VEC_INLINE float32x4_t round(float32x4_t v) { return round_to_bf16_ps(v); }
};

struct F16 {
  using Element = Float16;
  QVL_VEC_INLINE float32x4_t widen(uint16x4_t v) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }
  QVL_VEC_INLINE float32x4_t load(const Float16* p) { return widen(vld1_u16(&p->bits)); }
  QVL_VEC_INLINE float32x4_t load_n(const Float16* p, int64_t n) { return widen(load_n_u16(p, n)); }
};

// Integers as floats.
struct I8 {
  using Element = int8_t;
  QVL_VEC_INLINE float32x4_t load_n(const int8_t* p, int64_t n) {
    int8_t bytes[8] = {};
    std::memcpy(bytes, p, static_cast<size_t>(n));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes)))));
  }
};

// In place: 4 rows of 4 become 4 columns.
QVL_VEC_INLINE void transpose_4x4(float32x4_t* r) {
  const float32x4_t t0 = vtrn1q_f32(r[0], r[1]), t1 = vtrn2q_f32(r[0], r[1]);
  const float32x4_t t2 = vtrn1q_f32(r[2], r[3]), t3 = vtrn2q_f32(r[2], r[3]);
  const auto low = [](float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  };
  const auto high = [](float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  };
  r[0] = low(t0, t2);
  r[1] = low(t1, t3);
  r[2] = high(t0, t2);
  r[3] = high(t1, t3);
}

}  // namespace qvl::kernels::neon

#endif  // __aarch64__
