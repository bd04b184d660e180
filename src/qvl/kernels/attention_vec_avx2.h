// The 256-bit vector that the row, tile and stream kernels of norms and attention are written over. Include
// after the target pragma of the file that instantiates them; nothing here is compiled otherwise.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "qvl/base/dtype.h"

#define QVL_INLINE static inline __attribute__((always_inline))

namespace qvl::kernels {

struct VecAvx2 {
  using F = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kTileRows =
      6;  // 6 x 2 accumulators, 2 operands and a broadcast fill 15 of 16 registers
  static constexpr int kTileVecs = 2;

  QVL_INLINE F zero() { return _mm256_setzero_ps(); }
  QVL_INLINE F set1(float v) { return _mm256_set1_ps(v); }
  QVL_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  QVL_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  QVL_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  QVL_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  QVL_INLINE F fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  // The second operand when either is NaN.
  QVL_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  QVL_INLINE float reduce_add(F a) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
  }
  QVL_INLINE float reduce_max(F a) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
  }
  // Adds the integer in the low bits of n to p's exponent.
  QVL_INLINE F add_exponent(F p, F n) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
  }
  // a where lane < n, else b; 0 <= n <= 8.
  QVL_INLINE F first_lanes(F a, F b, int64_t n) {
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask(n)));
  }

  QVL_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  QVL_INLINE F load(const BFloat16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  QVL_INLINE F load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // The first n lanes, the others zero.
  QVL_INLINE F load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  QVL_INLINE F load_n(const BFloat16* p, int64_t n) {
    alignas(16) BFloat16 copy[8] = {};
    std::memcpy(copy, p, static_cast<size_t>(n) * sizeof(BFloat16));
    return load(copy);
  }
  QVL_INLINE F load_n(const int8_t* p, int64_t n) {
    int8_t copy[8] = {};
    std::memcpy(copy, p, static_cast<size_t>(n));
    return load(copy);
  }
  QVL_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  QVL_INLINE void store(BFloat16* p, F v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v)); }
  // Rounded to nearest even; |v| < 128, NaN gives any code.
  QVL_INLINE void store(int8_t* p, F v) {
    const __m256i i = _mm256_cvtps_epi32(v);
    const __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(w, w));
  }
  QVL_INLINE void store_n(int8_t* p, F v, int64_t n) {
    int8_t copy[8];
    store(copy, v);
    std::memcpy(p, copy, static_cast<size_t>(n));
  }
  QVL_INLINE void store_n(float* p, F v, int64_t n) { _mm256_maskstore_ps(p, mask(n), v); }
  QVL_INLINE void store_n(BFloat16* p, F v, int64_t n) {
    alignas(16) BFloat16 copy[8];
    store(copy, v);
    std::memcpy(p, copy, static_cast<size_t>(n) * sizeof(BFloat16));
  }
  // v rounded to bfloat16 and back.
  QVL_INLINE F round_bf16(F v) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(round_bits(v), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  // Elements 0,2,..,14 and 1,3,..,15 of 16 bfloat16.
  QVL_INLINE void load_even_odd(const BFloat16* p, F& even, F& odd) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  // Elements 0..7 and 8..15 of 16 codes.
  QVL_INLINE void load_two(const int8_t* p, F& a, F& b) {
    a = load(p);
    b = load(p + 8);
  }
  QVL_INLINE void load_two(const float* p, F& a, F& b) {
    a = load(p);
    b = load(p + 8);
  }
  // The inverse of load_even_odd with rounding.
  QVL_INLINE void store_even_odd(BFloat16* p, F even, F odd) {
    const __m256i low = _mm256_srli_epi32(round_bits(even), 16);
    const __m256i high = _mm256_and_si256(round_bits(odd), _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_or_si256(low, high));
  }

  static constexpr int kScoreSums = 8;
  static constexpr int kGatherPairs = 1;
  // out[i] = sum of the lanes of v[i], 8 vectors; out is aligned.
  QVL_INLINE void store_sums(float* out, const F* v) {
    const __m256 a = _mm256_hadd_ps(v[0], v[1]), b = _mm256_hadd_ps(v[2], v[3]);
    const __m256 c = _mm256_hadd_ps(v[4], v[5]), d = _mm256_hadd_ps(v[6], v[7]);
    const __m256 ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d);
    _mm256_store_ps(
        out, _mm256_add_ps(_mm256_permute2f128_ps(ab, cd, 0x20), _mm256_permute2f128_ps(ab, cd, 0x31)));
  }

  // In place: 8 rows of 8 become 8 columns.
  QVL_INLINE void transpose(F* r) {
    F t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }

 private:
  QVL_INLINE __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  QVL_INLINE F widen(__m128i v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  }
  // Nearest even in the upper half; NaN stays NaN and denormals are kept.
  QVL_INLINE __m256i round_bits(F v) {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    return _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
  }
  QVL_INLINE __m128i narrow(F v) {
    const __m256i high = _mm256_srli_epi32(round_bits(v), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
};

}  // namespace qvl::kernels
