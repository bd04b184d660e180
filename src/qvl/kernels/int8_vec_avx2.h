// What GEMV and GEMM of integer weights share on AVX2 (private to this room). Include after the target pragma.
#pragma once

#include <immintrin.h>

#include "qvl/kernels/vec_math_avx2.h"

namespace qvl::kernels::avx2 {

// Sums of two 16-bit products to 32 bits.
QVL_VEC_INLINE __m256i widen_pairs(__m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// Bytes 0, 2, 4, ... in the lower half, 1, 3, 5, ... in the upper one.
QVL_VEC_INLINE __m256i split_even_odd(__m256i v) {
  const __m256i odd_and_even =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, odd_and_even), 0xd8);
}

// The sums of the first and of the second 16 of 32 signed bytes.
QVL_VEC_INLINE void sum_halves(__m256i v, int32_t (&sums)[2]) {
  // As unsigned bytes they are 128 more each.
  const __m256i flipped = _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(0x80)));
  alignas(32) int64_t eights[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(eights), _mm256_sad_epu8(flipped, _mm256_setzero_si256()));
  for (int h = 0; h < 2; ++h) sums[h] = static_cast<int32_t>(eights[2 * h] + eights[2 * h + 1] - 16 * 128);
}

// The compiler would compute all products first and add them then, which needs more registers than there are.
QVL_VEC_INLINE void stay_in_order(__m256i& sum) {
  asm volatile("" : "+x"(sum));
}

// Four bytes in every lane of 32 bits.
template <typename Byte>
QVL_VEC_INLINE __m256i repeat_four(const Byte* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof(four));
  return _mm256_set1_epi32(four);
}

// dot[m][v] += products of 4 columns of 8-bit weights, 8 outputs a vector; x signed. Every product of two is widened at
// once.
template <int kM>
QVL_VEC_INLINE void add_step(const int8_t* x, int64_t x_stride, __m256i w0, __m256i w1, __m256i (&dot)[kM][2]) {
  const __m256i w[2] = {w0, w1}, magnitude[2] = {_mm256_abs_epi8(w0), _mm256_abs_epi8(w1)};
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
    const __m256i xs = repeat_four(x + m * x_stride);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256i product = _mm256_maddubs_epi16(magnitude[v], _mm256_sign_epi8(xs, w[v]));
      dot[m][v] = _mm256_add_epi32(dot[m][v], widen_pairs(product));
      stay_in_order(dot[m][v]);
    }
  }
}

// Rows 0|4, 1|5, 2|6, 3|7 of four words each to words 0, 1, 2, 3 of all eight rows.
QVL_VEC_INLINE void transpose_words(__m256i (&r)[4]) {
  const __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
  const __m256i c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
  r[0] = _mm256_unpacklo_epi64(a, c);
  r[1] = _mm256_unpackhi_epi64(a, c);
  r[2] = _mm256_unpacklo_epi64(b, d);
  r[3] = _mm256_unpackhi_epi64(b, d);
}

}  // namespace qvl::kernels::avx2
