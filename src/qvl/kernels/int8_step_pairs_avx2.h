// Which steps of a group of 8-bit weights have products that add up in 16 bits (private to this room). Include after the
// target pragma.
//
// VPMADDUBSW adds two products in 16 bits; VPMADDWD must widen those sums before they overflow, and multiplications are what
// a processor starts fewest of. Few weights of a row are anywhere near its largest, so that nearly all sums of four products
// fit too. So the steps of a group, 4 columns of some outputs each, are paired once, when they are packed: two steps whose
// products fit together take 3 multiplications, others 2 each. Sums stay exact either way.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "qvl/kernels/int8_kernels.h"

namespace qvl::kernels::avx2 {

constexpr int kWideSteps = kInt8Pad / 4;

struct StepOrder {
  uint8_t pairs;    // of steps whose products fit together, first
  uint8_t singles;  // the other steps
  uint8_t unused[30];
  uint8_t step[kWideSteps];  // which columns, 4 * step from the first of the group
};
static_assert(sizeof(StepOrder) == 64);

QVL_VEC_INLINE __m256i load_vector(const std::byte* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

// What pair_steps() left there.
QVL_VEC_INLINE const StepOrder& step_order(const std::byte* at) {
  return *reinterpret_cast<const StepOrder*>(at);
}

// Pairs the steps of a group, kBytes each, which stand in the order of their columns, and writes the order. What two steps
// are judged by: Sums(step), fit_together(Sums, Sums).
template <typename Sums, int kBytes>
inline void pair_steps(std::byte* steps, std::byte* order_at) {
  alignas(32) std::byte as_packed[kWideSteps * kBytes];
  std::memcpy(as_packed, steps, sizeof(as_packed));

  constexpr int kTries = 4;  // waiting steps that a step is tried with, the latest first
  int waiting[kWideSteps], paired[kWideSteps];
  Sums of_waiting[kWideSteps];
  int waiting_count = 0, paired_count = 0;
  for (int s = 0; s < kWideSteps; ++s) {
    const Sums mine(as_packed + s * kBytes);
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
    std::memcpy(steps + i * kBytes, as_packed + from * kBytes, kBytes);
  }
  std::memcpy(order_at, &order, sizeof(order));
}

}  // namespace qvl::kernels::avx2
