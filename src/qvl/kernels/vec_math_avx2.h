// Vector math for kernels compiled for AVX2 with FMA and F16C: exp, the activations, bfloat16 conversion,
// partial loads and stores, and the 8x8 transpose. Include after the standard headers; the functions carry
// their own target. The formulas are those of vec_math_avx512.h; finish_test.cc holds them to the same
// bounds.
#pragma once

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "qvl/base/dtype.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace qvl::kernels::avx2 {

#define QVL_VEC_INLINE static inline __attribute__((always_inline))

// e^x. NaN stays NaN; below -104 gives 0, above 88.73 infinity.
QVL_VEC_INLINE __m256 exp_ps(__m256 x) {
  // Second operand first: min and max hand on their second operand when either is NaN.
  x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
  p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
  // 2^n in two factors: n reaches from -150 (denormal results) to 128 (overflow), past one exponent field.
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i first = _mm256_srai_epi32(whole, 1);
  const __m256i second = _mm256_sub_epi32(whole, first);
  const __m256i bias = _mm256_set1_epi32(127);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23)));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23)));
}

// x / (1 + e^-x)
QVL_VEC_INLINE __m256 silu_ps(__m256 x) {
  const __m256 e = exp_ps(_mm256_sub_ps(_mm256_setzero_ps(), x));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3).
QVL_VEC_INLINE __m256 gelu_tanh_ps(__m256 x) {
  const __m256 inner = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(0.044715f), x), _mm256_mul_ps(x, x), x);
  const __m256 e = exp_ps(_mm256_mul_ps(_mm256_set1_ps(-1.5957691216057308f), inner));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

// x * Phi(x) with Phi from erfc(z) = t e^(-z^2 + P(t)), t = 2 / (2 + z).
QVL_VEC_INLINE __m256 gelu_erf_ps(__m256 x) {
  const __m256 absolute = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  const __m256 z = _mm256_mul_ps(absolute, _mm256_set1_ps(0.70710678118654752f));
  const __m256 one = _mm256_set1_ps(1.0f), half = _mm256_set1_ps(0.5f);
  const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(z, half, one));
  __m256 p = _mm256_set1_ps(0.17087277f);
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.82215223f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(1.48851587f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-1.13520398f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.27886807f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.18628806f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.09678418f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.37409196f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(1.00002368f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-1.26551223f));
  const __m256 e = exp_ps(_mm256_fnmadd_ps(z, z, p));
  const __m256 half_erfc = _mm256_mul_ps(_mm256_mul_ps(t, half), e);
  const __m256 positive = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ);
  const __m256 phi = _mm256_blendv_ps(half_erfc, _mm256_sub_ps(one, half_erfc), positive);
  return _mm256_mul_ps(x, phi);
}

QVL_VEC_INLINE __m256 bf16_to_ps(__m128i v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

// Nearest even, NaN stays NaN: the same bits as to_bfloat16(), in the upper halves.
QVL_VEC_INLINE __m256i round_bf16_bits(__m256 v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}

QVL_VEC_INLINE __m128i ps_to_bf16(__m256 v) {
  const __m256i high = _mm256_srli_epi32(round_bf16_bits(v), 16);
  const __m256i packed = _mm256_packus_epi32(high, high);  // by 128-bit lane: 0..3 0..3 | 4..7 4..7
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

// v rounded to bfloat16 and back.
QVL_VEC_INLINE __m256 round_to_bf16_ps(__m256 v) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(round_bf16_bits(v), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

// The first n of 8 elements, the others zero; 0 <= n <= 8. Nothing past them is touched.
QVL_VEC_INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

QVL_VEC_INLINE __m128i load_n_u16(const void* p, int64_t n) {
  alignas(16) uint16_t buffer[8] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}

QVL_VEC_INLINE void store_n_u16(void* p, __m128i v, int64_t n) {
  alignas(16) uint16_t buffer[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), v);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(uint16_t));
}

// Element types by name: load and store all 8 lanes or the first n.
struct F32 {
  using Element = float;
  QVL_VEC_INLINE __m256 load(const float* p) { return _mm256_loadu_ps(p); }
  QVL_VEC_INLINE __m256 load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
  QVL_VEC_INLINE void store(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
  QVL_VEC_INLINE void store_n(float* p, __m256 v, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
  QVL_VEC_INLINE __m256 round(__m256 v) { return v; }
};

struct BF16 {
  using Element = BFloat16;
  QVL_VEC_INLINE __m256 load(const BFloat16* p) {
    return bf16_to_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  QVL_VEC_INLINE __m256 load_n(const BFloat16* p, int64_t n) { return bf16_to_ps(load_n_u16(p, n)); }
  QVL_VEC_INLINE void store(BFloat16* p, __m256 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), ps_to_bf16(v));
  }
  QVL_VEC_INLINE void store_n(BFloat16* p, __m256 v, int64_t n) { store_n_u16(p, ps_to_bf16(v), n); }
  QVL_VEC_INLINE __m256 round(__m256 v) { return round_to_bf16_ps(v); }
};

struct F16 {
  using Element = Float16;
  QVL_VEC_INLINE __m256 load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  QVL_VEC_INLINE __m256 load_n(const Float16* p, int64_t n) { return _mm256_cvtph_ps(load_n_u16(p, n)); }
};

// Integers as floats.
struct I8 {
  using Element = int8_t;
  QVL_VEC_INLINE __m256 widen(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)); }
  QVL_VEC_INLINE __m256 load(const int8_t* p) { return widen(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  QVL_VEC_INLINE __m256 load_n(const int8_t* p, int64_t n) {
    int64_t bytes = 0;
    std::memcpy(&bytes, p, static_cast<size_t>(n));
    return widen(_mm_cvtsi64_si128(bytes));
  }
};

// The sum of all lanes, by halves.
QVL_VEC_INLINE float sum_ps(__m256 v) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

// rows[i] lane j <-> rows[j] lane i.
QVL_VEC_INLINE void transpose_8x8(__m256 (&rows)[8]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
  }
}

}  // namespace qvl::kernels::avx2

#pragma GCC pop_options

#endif  // __x86_64__
