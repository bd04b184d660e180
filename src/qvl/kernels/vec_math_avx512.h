// Vector math for kernels compiled for AVX-512 (F, BW, VL, DQ): exp, the activations, bfloat16 conversion and
// the 16x16 transpose. Include after the standard headers; the functions carry their own target.
//
// Errors against double (finish_test.cc): exp 2 ulp over the whole range, results below 2^-126 gradual;
// sigmoid-based activations 4 ulp near the origin, growing with the rounding of the exponent's argument.
#pragma once

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "qvl/base/dtype.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")

namespace qvl::kernels::avx512 {

#define QVL_VEC_INLINE static inline __attribute__((always_inline))

// e^x. NaN stays NaN; below -104 gives 0, above 88.73 infinity.
QVL_VEC_INLINE __m512 exp_ps(__m512 x) {
  // Second operand first: min and max hand on their second operand when either is NaN.
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // x - n ln 2 in two steps; the first part of ln 2 has few enough bits to make n * hi exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  // e^r on [-ln2/2, ln2/2], Cephes' minimax coefficients.
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
  p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// x / (1 + e^-x)
QVL_VEC_INLINE __m512 silu_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x));
  return _mm512_div_ps(x, _mm512_add_ps(one, e));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3): no cancellation for negative x.
QVL_VEC_INLINE __m512 gelu_tanh_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(0.044715f), x), _mm512_mul_ps(x, x), x);
  const __m512 e = exp_ps(_mm512_mul_ps(_mm512_set1_ps(-1.5957691216057308f), inner));
  return _mm512_div_ps(x, _mm512_add_ps(one, e));
}

// x * Phi(x) with Phi from erfc(z) = t e^(-z^2 + P(t)), t = 2 / (2 + z): the Chebyshev fit of Numerical
// Recipes (erfcc), relative error 1.2e-7 for all z >= 0.
QVL_VEC_INLINE __m512 gelu_erf_ps(__m512 x) {
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678118654752f));
  const __m512 t =
      _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(z, _mm512_set1_ps(0.5f), _mm512_set1_ps(1.0f)));
  __m512 p = _mm512_set1_ps(0.17087277f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.82215223f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.48851587f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.13520398f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.27886807f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.18628806f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.09678418f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.37409196f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.00002368f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.26551223f));
  const __m512 e = exp_ps(_mm512_fnmadd_ps(z, z, p));
  const __m512 half_erfc = _mm512_mul_ps(_mm512_mul_ps(t, _mm512_set1_ps(0.5f)), e);
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  const __m512 phi = _mm512_mask_sub_ps(half_erfc, positive, _mm512_set1_ps(1.0f), half_erfc);
  return _mm512_mul_ps(x, phi);
}

QVL_VEC_INLINE __m512 bf16_to_ps(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

// Nearest even, NaN stays NaN, denormals kept (unlike VCVTNEPS2BF16): the same bits as to_bfloat16().
QVL_VEC_INLINE __m512i round_bf16_bits(__m512 v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x00400000));
}

QVL_VEC_INLINE __m256i ps_to_bf16(__m512 v) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16_bits(v), 16));
}

// v rounded to bfloat16 and back.
QVL_VEC_INLINE __m512 round_to_bf16_ps(__m512 v) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(round_bf16_bits(v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// Mask of the first n of 16 lanes, 0 <= n <= 16.
QVL_VEC_INLINE __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}

// Element types by name: the lanes of a mask, zeros elsewhere; what is not in the mask is not touched.
struct F32 {
  using Element = float;
  QVL_VEC_INLINE __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
  QVL_VEC_INLINE void store(float* p, __mmask16 mask, __m512 v) { _mm512_mask_storeu_ps(p, mask, v); }
  QVL_VEC_INLINE __m512 round(__m512 v) { return v; }
};

struct BF16 {
  using Element = BFloat16;
  QVL_VEC_INLINE __m512 load(const BFloat16* p, __mmask16 mask) {
    return bf16_to_ps(_mm256_maskz_loadu_epi16(mask, p));
  }
  QVL_VEC_INLINE void store(BFloat16* p, __mmask16 mask, __m512 v) {
    _mm256_mask_storeu_epi16(p, mask, ps_to_bf16(v));
  }
  QVL_VEC_INLINE __m512 round(__m512 v) { return round_to_bf16_ps(v); }
};

struct F16 {
  using Element = Float16;
  QVL_VEC_INLINE __m512 load(const Float16* p, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
  }
};

// Integers as floats.
struct I8 {
  using Element = int8_t;
  QVL_VEC_INLINE __m512 load(const int8_t* p, __mmask16 mask) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, p)));
  }
};

// Lanes 0..7 and 8..15. The zero-masking form: GCC 12 warns about its own plain one (GCC bug 105593).
QVL_VEC_INLINE __m256 lower_half_ps(__m512 v) {
  return _mm512_maskz_extractf32x8_ps(0xff, v, 0);
}
QVL_VEC_INLINE __m256 upper_half_ps(__m512 v) {
  return _mm512_maskz_extractf32x8_ps(0xff, v, 1);
}

// The sum of all lanes, by halves.
QVL_VEC_INLINE float sum_ps(__m512 v) {
  const __m256 h = _mm256_add_ps(lower_half_ps(v), upper_half_ps(v));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

// rows[i] lane j <-> rows[j] lane i.
QVL_VEC_INLINE void transpose_16x16(__m512 (&rows)[16]) {
  __m512 t[16];
  // Within each 128-bit lane: 4x4 blocks, by pairs of rows and then pairs of pairs.
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    rows[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    rows[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    rows[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    rows[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  // rows[4 g + j], lane l: column 4 l + j of row group g. A 4x4 transpose of whole lanes for each j.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 ab_low = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0x88);
    const __m512 ab_high = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0xdd);
    const __m512 cd_low = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0x88);
    const __m512 cd_high = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0xdd);
    t[j] = _mm512_shuffle_f32x4(ab_low, cd_low, 0x88);
    t[4 + j] = _mm512_shuffle_f32x4(ab_high, cd_high, 0x88);
    t[8 + j] = _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd);
    t[12 + j] = _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = t[i];
}

}  // namespace qvl::kernels::avx512

#pragma GCC pop_options

#endif  // __x86_64__
