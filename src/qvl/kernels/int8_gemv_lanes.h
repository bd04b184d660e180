// What the integer GEMVs with a row of weights a lane share, those of AVX2 and VNNI (private to this room): steps, how they
// meet groups, the order of rows and the choice by format. `Isa` has kOutputs, of weights, and kRows, of x, in one pass, whether
// kOutputs rows of weights that lie side by side are a panel or others (kSideBySide), and
//   sums<kBits, kZero, kGroups>(x, x_stride, rows, w, panel, out): out[rows, kOutputs] = sums of up to kRows rows of x, x_stride
//   bytes apart, with a panel that begins with the first row of w; kZero: zero points are stored.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"

namespace qvl::kernels::gemv_lanes {

constexpr int64_t kStepBytes = 16;  // of each row of weights
constexpr int64_t kWords = kStepBytes / 4;

// kOutputs rows of weights.
struct Panel {
  int64_t apart = 1;   // rows from each to the next
  bool first = true;   // nobody has read or asked for them before
  bool more = false;   // as many lie behind them and are next
};

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
  const int64_t passes = (m + Isa::kRows - 1) / Isa::kRows, pass = (m + passes - 1) / passes;  // of about as many rows
  // The outputs of a panel that begins with row j of w.
  const auto outputs = [&](int64_t j, Panel panel) {
    const Int8Weight from = w.rows_from(j);
    const bool codes = w.scale_type == DType::kI8;
    alignas(64) float factors[Isa::kOutputs];
    if (codes) int8_row_factors(from, panel.apart, Isa::kOutputs, factors);
    for (int64_t r = 0; r < m; r += pass) {
      const int64_t rows = std::min(pass, m - r);
      alignas(64) float sums[Isa::kRows * Isa::kOutputs];
      Isa::template sums<kBits, kZero, kGroups>(x + r * x_stride, x_stride, rows, from, panel, sums);
      for (int64_t i = 0; i < rows; ++i) {
        float* from_row = sums + i * Isa::kOutputs;
        for (int64_t o = 0; codes && o < Isa::kOutputs; ++o) from_row[o] *= factors[o];
        float* to = c + (r + i) * ldc + j;
        if (panel.apart == 1) std::memcpy(to, from_row, sizeof(float) * Isa::kOutputs);
        for (int64_t o = 0; panel.apart != 1 && o < Isa::kOutputs; ++o) to[o * panel.apart] = from_row[o];
      }
      panel.first = panel.more = false;
    }
  };
  const int64_t panels = n / Isa::kOutputs;
  for (int64_t i = 0; i < panels; ++i) {
    if constexpr (Isa::kSideBySide) {
      outputs(i * Isa::kOutputs, {.apart = 1, .first = i == 0, .more = i + 1 < panels});
    } else {
      // A stream an output, each in address order: memory serves streams of different pages faster than one.
      outputs(i, {.apart = panels});
    }
  }
  if (panels > 0 && n % Isa::kOutputs != 0) {
    outputs(n - Isa::kOutputs, {});  // some of them again: the same bits
  } else if (panels == 0) {
    for (int64_t j = 0; j < n; ++j) outputs(j, {.apart = 0});  // one row in all lanes
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
