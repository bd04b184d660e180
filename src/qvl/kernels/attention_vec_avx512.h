// The 512-bit vector that the row, tile and stream kernels of norms and attention are written over. Include
// after the target pragma of the file that instantiates them; nothing here is compiled otherwise.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "qvl/base/dtype.h"

#define QVL_INLINE static inline __attribute__((always_inline))

namespace qvl::kernels {

struct VecAvx512 {
  using F = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kTileRows =
      6;  // 6 x 4 accumulators, 4 operands and a broadcast fill 29 of 32 registers
  static constexpr int kTileVecs = 4;

  QVL_INLINE F zero() { return _mm512_setzero_ps(); }
  QVL_INLINE F set1(float v) { return _mm512_set1_ps(v); }
  QVL_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  QVL_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  QVL_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  QVL_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  QVL_INLINE F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  // The second operand when either is NaN.
  QVL_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  QVL_INLINE float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
  QVL_INLINE float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
  // Adds the integer in the low bits of n to p's exponent.
  QVL_INLINE F add_exponent(F p, F n) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
  }
  // a where lane < n, else b; 0 <= n <= 16.
  QVL_INLINE F first_lanes(F a, F b, int64_t n) { return _mm512_mask_blend_ps(mask(n), b, a); }

  QVL_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  QVL_INLINE F load(const BFloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  QVL_INLINE F load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // The first n lanes, the others zero.
  QVL_INLINE F load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  QVL_INLINE F load_n(const BFloat16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(mask(n), p)); }
  QVL_INLINE F load_n(const int8_t* p, int64_t n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask(n), p)));
  }
  QVL_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  QVL_INLINE void store(BFloat16* p, F v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
  // Rounded to nearest even; |v| < 128, NaN gives any code.
  QVL_INLINE void store(int8_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  QVL_INLINE void store_n(int8_t* p, F v, int64_t n) {
    _mm_mask_storeu_epi8(p, mask(n), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  QVL_INLINE void store_n(float* p, F v, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), v); }
  QVL_INLINE void store_n(BFloat16* p, F v, int64_t n) { _mm256_mask_storeu_epi16(p, mask(n), narrow(v)); }
  // v rounded to bfloat16 and back.
  QVL_INLINE F round_bf16(F v) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(round_bits(v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  // Elements 0,2,..,30 and 1,3,..,31 of 32 bfloat16.
  QVL_INLINE void load_even_odd(const BFloat16* p, F& even, F& odd) {
    const __m512i v = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  // Elements 0..15 and 16..31 of 32 codes.
  QVL_INLINE void load_two(const int8_t* p, F& a, F& b) {
    a = load(p);
    b = load(p + 16);
  }
  QVL_INLINE void load_two(const float* p, F& a, F& b) {
    a = load(p);
    b = load(p + 16);
  }
  // The inverse of load_even_odd with rounding.
  QVL_INLINE void store_even_odd(BFloat16* p, F even, F odd) {
    const __m512i low = _mm512_srli_epi32(round_bits(even), 16);
    const __m512i high = _mm512_and_si512(round_bits(odd), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    _mm512_storeu_si512(p, _mm512_or_si512(low, high));
  }

  static constexpr int kScoreSums = 16;
  static constexpr int kGatherPairs = 2;
  // out[i] = sum of the lanes of v[i], 16 vectors; out is aligned. A tree that adds while it transposes.
  QVL_INLINE void store_sums(float* out, const F* v) {
    F a[8], b[4], c[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // lanes (v[2i], v[2i+1]) x 2 in every quarter
      a[i] = add(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // v[4i .. 4i+3] in every quarter
      b[i] = add(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                 _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {  // quarters: v[8i ..], v[8i ..], v[8i+4 ..], v[8i+4 ..]
      c[i] = add(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                 _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
    }
    const F d = add(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
    _mm512_store_ps(out, d);
  }

  // In place: 16 rows of 16 become 16 columns.
  QVL_INLINE void transpose(F* r) {
    F t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    // r[4 g + c] holds, in 128-bit lane l, column 4 l + c of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      t[c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
      t[4 + c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
      t[8 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
      t[12 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      r[c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0x88);
      r[8 + c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0xdd);
      r[4 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0x88);
      r[12 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0xdd);
    }
  }

 private:
  QVL_INLINE __mmask16 mask(int64_t n) {
    return static_cast<__mmask16>((1u << n) - 1u);
  }
  QVL_INLINE F widen(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
  }
  // Nearest even in the upper half; NaN stays NaN and denormals are kept (unlike VCVTNEPS2BF16).
  QVL_INLINE __m512i round_bits(F v) {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x00400000));
  }
  QVL_INLINE __m256i narrow(F v) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bits(v), 16));
  }
};

}  // namespace qvl::kernels
