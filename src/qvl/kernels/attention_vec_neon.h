// The 128-bit NEON vector that the row, tile and stream kernels of norms and attention are written over.
#pragma once

#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_neon.h"

#define QVL_INLINE static inline __attribute__((always_inline))

namespace qvl::kernels {

struct VecNeon {
  using F = float32x4_t;
  static constexpr int kWidth = 4;
  // 4 x 4 accumulators, 4 operands and a broadcast; a group's rows share one vector, so there are no more of them.
  static constexpr int kTileRows = 4;
  static constexpr int kTileVecs = 4;

  QVL_INLINE F zero() { return vdupq_n_f32(0.0f); }
  QVL_INLINE F set1(float v) { return vdupq_n_f32(v); }
  QVL_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
  QVL_INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
  QVL_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
  QVL_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  QVL_INLINE F fms(F a, F b, F c) { return vfmaq_f32(vnegq_f32(c), a, b); }
  // NaN when either is (x86 gives the second operand).
  QVL_INLINE F max(F a, F b) { return vmaxq_f32(a, b); }
  QVL_INLINE float reduce_add(F a) { return vaddvq_f32(a); }
  QVL_INLINE float reduce_max(F a) { return vmaxvq_f32(a); }
  // Adds the integer in the low bits of n to p's exponent.
  QVL_INLINE F add_exponent(F p, F n) {
    return vreinterpretq_f32_s32(
        vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vreinterpretq_s32_f32(n), 23)));
  }
  // a where lane < n, else b; 0 <= n <= 4.
  QVL_INLINE F first_lanes(F a, F b, int64_t n) {
    constexpr int32_t kLane[4] = {0, 1, 2, 3};
    return vbslq_f32(vcgtq_s32(vdupq_n_s32(static_cast<int32_t>(n)), vld1q_s32(kLane)), a, b);
  }

  QVL_INLINE F load(const float* p) { return neon::F32::load(p); }
  QVL_INLINE F load(const BFloat16* p) { return neon::BF16::load(p); }
  QVL_INLINE F load(const int8_t* p) { return load_n(p, 4); }
  // The first n lanes, the others zero.
  QVL_INLINE F load_n(const float* p, int64_t n) { return neon::F32::load_n(p, n); }
  QVL_INLINE F load_n(const BFloat16* p, int64_t n) { return neon::BF16::load_n(p, n); }
  QVL_INLINE F load_n(const int8_t* p, int64_t n) {
    int8_t copy[8] = {};
    std::memcpy(copy, p, static_cast<size_t>(n));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(copy)))));
  }
  QVL_INLINE void store(float* p, F v) { neon::F32::store(p, v); }
  QVL_INLINE void store(BFloat16* p, F v) { neon::BF16::store(p, v); }
  // Rounded to nearest even; |v| < 128, NaN gives any code.
  QVL_INLINE void store(int8_t* p, F v) { store_n(p, v, 4); }
  QVL_INLINE void store_n(int8_t* p, F v, int64_t n) {
    const int16x4_t w = vqmovn_s32(vcvtnq_s32_f32(v));
    int8_t copy[8];
    vst1_s8(copy, vqmovn_s16(vcombine_s16(w, w)));
    std::memcpy(p, copy, static_cast<size_t>(n));
  }
  QVL_INLINE void store_n(float* p, F v, int64_t n) { neon::F32::store_n(p, v, n); }
  QVL_INLINE void store_n(BFloat16* p, F v, int64_t n) { neon::BF16::store_n(p, v, n); }
  // v rounded to bfloat16 and back.
  QVL_INLINE F round_bf16(F v) { return neon::round_to_bf16_ps(v); }

  // Elements 0,2,4,6 and 1,3,5,7 of 8 bfloat16.
  QVL_INLINE void load_even_odd(const BFloat16* p, F& even, F& odd) {
    const uint32x4_t v = vreinterpretq_u32_u16(vld1q_u16(&p->bits));
    even = vreinterpretq_f32_u32(vshlq_n_u32(v, 16));
    odd = vreinterpretq_f32_u32(vandq_u32(v, vdupq_n_u32(0xffff0000u)));
  }
  // Elements 0..3 and 4..7 of 8 codes.
  QVL_INLINE void load_two(const int8_t* p, F& a, F& b) {
    const int16x8_t v = vmovl_s8(vld1_s8(p));
    a = vcvtq_f32_s32(vmovl_s16(vget_low_s16(v)));
    b = vcvtq_f32_s32(vmovl_high_s16(v));
  }
  QVL_INLINE void load_two(const float* p, F& a, F& b) {
    a = load(p);
    b = load(p + 4);
  }
  // The inverse of load_even_odd with rounding.
  QVL_INLINE void store_even_odd(BFloat16* p, F even, F odd) {
    const uint32x4_t low = vshrq_n_u32(neon::round_bf16_bits(even), 16);
    const uint32x4_t high = vandq_u32(neon::round_bf16_bits(odd), vdupq_n_u32(0xffff0000u));
    vst1q_u16(&p->bits, vreinterpretq_u16_u32(vorrq_u32(low, high)));
  }

  static constexpr int kScoreSums = 16;
  static constexpr int kGatherPairs = 2;
  // out[i] = sum of the lanes of v[i], 16 vectors.
  QVL_INLINE void store_sums(float* out, const F* v) {
#pragma GCC unroll 4
    for (int i = 0; i < kScoreSums; i += 4) {
      vst1q_f32(out + i, vpaddq_f32(vpaddq_f32(v[i], v[i + 1]), vpaddq_f32(v[i + 2], v[i + 3])));
    }
  }

  // In place: 4 rows of 4 become 4 columns.
  QVL_INLINE void transpose(F* r) { neon::transpose_4x4(r); }
};

}  // namespace qvl::kernels
