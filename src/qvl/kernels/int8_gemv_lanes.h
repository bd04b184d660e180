// What the integer GEMVs with a row of weights a lane share, those of AVX2 and VNNI (private to this room): steps, how they
// meet groups, the order of rows and the choice by format. `Isa` has kOutputs, its lanes, and
//   sums<kBits, kZero, kGroups>(x, x_stride, rows, w, apart, out): out[rows, kOutputs] = sums of up to kMaxRows rows of x, x_stride
//   bytes apart, with the kOutputs rows of w that lie `apart` rows apart; kZero: zero points are stored.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "qvl/kernels/int8_kernels.h"

namespace qvl::kernels::gemv_lanes {

constexpr int64_t kStepBytes = 16;  // of each row of weights
constexpr int64_t kWords = kStepBytes / 4;
constexpr int64_t kMaxRows = 16;  // of x in one pass

// How steps and groups meet: two groups of 16 columns a step of 4-bit weights, one, or several steps a group.
enum class Groups { kHalf, kOne, kSteps };

template <int kBits>
constexpr int64_t kColumns = kStepBytes * 8 / kBits;  // of a step

// Inlined, so that no linker keeps one instruction set's copy for the others; what follows has its own for each Isa.
template <int kBits>
__attribute__((always_inline)) inline int64_t steps(int64_t k) {
  return (k + kColumns<kBits> - 1) / kColumns<kBits>;
}

template <typename Isa, int kBits, bool kZero, Groups kGroups>
void run_format(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  // The outputs of rows j, j + apart, ... of w.
  const auto outputs = [&](int64_t j, int64_t apart) {
    const Int8Weight from = w.rows_from(j);
    for (int64_t r = 0; r < m; r += kMaxRows) {
      const int64_t rows = std::min(kMaxRows, m - r);
      alignas(64) float sums[kMaxRows * Isa::kOutputs];
      Isa::template sums<kBits, kZero, kGroups>(x + r * x_stride, x_stride, rows, from, apart, sums);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t lane = 0; lane < Isa::kOutputs; ++lane) c[(r + i) * ldc + j + lane * apart] = sums[i * Isa::kOutputs + lane];
      }
    }
  };
  // A stream a lane, each in address order: memory serves streams of different pages faster than one.
  const int64_t apart = n / Isa::kOutputs;
  for (int64_t j = 0; j < apart; ++j) outputs(j, apart);
  if (n >= Isa::kOutputs && n % Isa::kOutputs != 0) {
    outputs(n - Isa::kOutputs, 1);  // some of them again: the same bits
  } else if (n < Isa::kOutputs) {
    for (int64_t j = 0; j < n; ++j) outputs(j, 0);  // one row in all lanes
  }
}

template <typename Isa, int kBits, bool kZero>
void run_bits(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  const int64_t group = w.group();
  if (group == kColumns<kBits>) return run_format<Isa, kBits, kZero, Groups::kOne>(x, x_stride, m, w, n, c, ldc);
  if constexpr (kBits == 4) {
    if (group == 16) return run_format<Isa, kBits, kZero, Groups::kHalf>(x, x_stride, m, w, n, c, ldc);
  }
  run_format<Isa, kBits, kZero, Groups::kSteps>(x, x_stride, m, w, n, c, ldc);
}

// Int8GemvKernel::run.
template <typename Isa>
void run(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  if (w.bits == 8) {
    run_bits<Isa, 8, false>(x, x_stride, m, w, n, c, ldc);
  } else if (w.zero_points != nullptr) {
    run_bits<Isa, 4, true>(x, x_stride, m, w, n, c, ldc);
  } else {
    run_bits<Isa, 4, false>(x, x_stride, m, w, n, c, ldc);
  }
}

}  // namespace qvl::kernels::gemv_lanes
