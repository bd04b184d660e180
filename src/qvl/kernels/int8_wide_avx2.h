// Tiles of 8-bit weights on AVX2 in groups of 128 columns (private to this room). Include after the target pragma.
//
// Once the sign has moved from the weight to x, VPMADDUBSW's sum of two products fits 16 bits (128 * 127 * 2), a sum of four
// need not, so each has to be widened by VPMADDWD, and multiplications are what a processor starts fewest of. But few weights
// of a row are anywhere near its largest: nearly all sums of four do fit, since the four magnitudes sum to at most 258. So
// the steps of a group, 4 columns of 16 outputs each, are paired once, when they are packed: two steps whose products fit
// together take 3 multiplications, others 2 each. Sums stay exact either way.
//
// Group: [16] weight scales, 64 bytes of StepOrder, then the steps in that order, [16][4] values each.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_vec_avx2.h"

namespace qvl::kernels::avx2 {

constexpr int kWideSteps = kInt8Pad / 4;
constexpr int kStepVectors = 2;
constexpr int kStepBytes = 32 * kStepVectors;

struct StepOrder {
  uint8_t pairs;    // of steps whose products fit together, first
  uint8_t singles;  // the other steps
  uint8_t unused[30];
  uint8_t step[kWideSteps];  // which columns, 4 * step from the first of the group
};
static_assert(sizeof(StepOrder) == 64);
constexpr int64_t kOrderOffset = 64, kStepsOffset = kOrderOffset + sizeof(StepOrder);

QVL_VEC_INLINE __m256i load_vector(const std::byte* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

// Of each two neighbouring weights of a step, the sum of magnitudes.
struct Magnitudes {
  __m256i of[kStepVectors];
};
QVL_VEC_INLINE Magnitudes magnitudes(const std::byte* step) {
  Magnitudes m;
  for (int v = 0; v < kStepVectors; ++v)
    m.of[v] = _mm256_maddubs_epi16(_mm256_abs_epi8(load_vector(step + 32 * v)), _mm256_set1_epi8(1));
  return m;
}
QVL_VEC_INLINE bool fit_together(const Magnitudes& a, const Magnitudes& b) {
  __m256i most = _mm256_setzero_si256();
  for (int v = 0; v < kStepVectors; ++v) most = _mm256_max_epi16(most, _mm256_add_epi16(a.of[v], b.of[v]));
  const __m256i over = _mm256_cmpgt_epi16(most, _mm256_set1_epi16(258));  // 258 * 127 < 2^15
  return _mm256_testz_si256(over, over);
}

// Pairs the steps of a group, which stand in the order of their columns, and writes the order.
inline void pair_steps(std::byte* group) {
  std::byte* const steps = group + kStepsOffset;
  alignas(32) std::byte as_packed[kWideSteps * kStepBytes];
  std::memcpy(as_packed, steps, sizeof(as_packed));

  constexpr int kTries = 4;  // waiting steps that a step is tried with, the latest first
  int waiting[kWideSteps], paired[kWideSteps];
  Magnitudes of_waiting[kWideSteps];
  int waiting_count = 0, paired_count = 0;
  for (int s = 0; s < kWideSteps; ++s) {
    const Magnitudes mine = magnitudes(as_packed + s * kStepBytes);
    const int last_try = waiting_count > kTries ? waiting_count - kTries : 0;
    int other = waiting_count - 1;
    while (other >= last_try && !fit_together(of_waiting[other], mine)) --other;
    if (other < last_try) {
      of_waiting[waiting_count] = mine;
      waiting[waiting_count++] = s;
      continue;
    }
    paired[paired_count++] = waiting[other];
    paired[paired_count++] = s;
    for (--waiting_count; other < waiting_count; ++other) {
      waiting[other] = waiting[other + 1];
      of_waiting[other] = of_waiting[other + 1];
    }
  }

  StepOrder order{};
  order.pairs = static_cast<uint8_t>(paired_count / 2);
  order.singles = static_cast<uint8_t>(waiting_count);
  for (int i = 0; i < kWideSteps; ++i) {
    const int from = i < paired_count ? paired[i] : waiting[i - paired_count];
    order.step[i] = static_cast<uint8_t>(from);
    std::memcpy(steps + i * kStepBytes, as_packed + from * kStepBytes, kStepBytes);
  }
  std::memcpy(group + kOrderOffset, &order, sizeof(order));
}

// dot[m][v] += sums of one group whose steps are paired; x is signed.
template <int kM>
QVL_VEC_INLINE void add_paired_group(const int8_t* x, int64_t x_stride, const std::byte* group,
                                     __m256i (&dot)[kM][kStepVectors]) {
  const std::byte* const order = group + kOrderOffset;
  const int pairs = static_cast<int>(order[offsetof(StepOrder, pairs)]);
  const int singles = static_cast<int>(order[offsetof(StepOrder, singles)]);
  const std::byte* step = order + offsetof(StepOrder, step);
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
