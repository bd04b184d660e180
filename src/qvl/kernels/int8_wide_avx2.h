// Tiles of 8-bit weights on AVX2 in groups of 128 columns (private to this room). Include after the target pragma.
//
// Once the sign has moved from the weight to x, VPMADDUBSW's sum of two products fits 16 bits (128 * 127 * 2); a sum of four
// does where the four magnitudes sum to at most 258 (int8_step_pairs_avx2.h).
//
// Group: [16] weight scales, 64 bytes of StepOrder, then the steps in that order, [16][4] values each.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_step_pairs_avx2.h"
#include "qvl/kernels/int8_vec_avx2.h"

namespace qvl::kernels::avx2 {

constexpr int kStepVectors = 2;
constexpr int kStepBytes = 32 * kStepVectors;
constexpr int64_t kOrderOffset = 64, kStepsOffset = kOrderOffset + sizeof(StepOrder);

// Of each two neighbouring weights of a step, the sum of magnitudes.
struct Magnitudes {
  Magnitudes() = default;
  explicit Magnitudes(const std::byte* step) {
    for (int v = 0; v < kStepVectors; ++v)
      of[v] = _mm256_maddubs_epi16(_mm256_abs_epi8(load_vector(step + 32 * v)), _mm256_set1_epi8(1));
  }
  __m256i of[kStepVectors];
};
QVL_VEC_INLINE bool fit_together(const Magnitudes& a, const Magnitudes& b) {
  __m256i most = _mm256_setzero_si256();
  for (int v = 0; v < kStepVectors; ++v) most = _mm256_max_epi16(most, _mm256_add_epi16(a.of[v], b.of[v]));
  const __m256i over = _mm256_cmpgt_epi16(most, _mm256_set1_epi16(258));  // 258 * 127 < 2^15
  return _mm256_testz_si256(over, over);
}

// dot[m][v] += sums of one group whose steps are paired; x is signed.
template <int kM>
QVL_VEC_INLINE void add_paired_group(const int8_t* x, int64_t x_stride, const std::byte* group,
                                     __m256i (&dot)[kM][kStepVectors]) {
  const StepOrder& order = step_order(group + kOrderOffset);
  const int pairs = order.pairs, singles = order.singles;
  const uint8_t* step = order.step;
  const std::byte* p = group + kStepsOffset;
  for (int i = 0; i < pairs; ++i, step += 2, p += 2 * kStepBytes) {
    const int8_t* const first = x + 4 * static_cast<int64_t>(step[0]);
    const int8_t* const second = x + 4 * static_cast<int64_t>(step[1]);
    __m256i magnitude[2 * kStepVectors];
#pragma GCC unroll 4
    for (int v = 0; v < 2 * kStepVectors; ++v) magnitude[v] = _mm256_abs_epi8(load_vector(p + 32 * v));
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const __m256i xs = repeat_four(first + m * x_stride), others = repeat_four(second + m * x_stride);
#pragma GCC unroll 2
      for (int v = 0; v < kStepVectors; ++v) {
        const __m256i a = _mm256_maddubs_epi16(magnitude[v], _mm256_sign_epi8(xs, load_vector(p + 32 * v)));
        const __m256i b = _mm256_maddubs_epi16(magnitude[kStepVectors + v],
                                               _mm256_sign_epi8(others, load_vector(p + kStepBytes + 32 * v)));
        dot[m][v] = _mm256_add_epi32(dot[m][v], widen_pairs(_mm256_add_epi16(a, b)));
        stay_in_order(dot[m][v]);
      }
    }
  }
  for (int i = 0; i < singles; ++i, ++step, p += kStepBytes) {
    add_step<kM>(x + 4 * static_cast<int64_t>(*step), x_stride, load_vector(p), load_vector(p + 32), dot);
  }
}

}  // namespace qvl::kernels::avx2
