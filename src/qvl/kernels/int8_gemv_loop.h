// What the integer GEMV of every vector instruction set shares: the order of rows and the choice by format (private to
// this room). `Isa` has F32, BF16 and F16 and
//   rows<Scale, kBits, kZero, kN>(x, w, apart, c): c[n * apart] = sums of one row of x with kN rows of w that
//   lie `apart` rows apart; Scale is the scales' type, kZero: zero points are stored.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/kernels/int8_kernels.h"

namespace qvl::kernels {

constexpr int kInt8WeightRows = 4;

// The rows are read as kInt8WeightRows streams, each in address order: memory serves streams of different pages faster
// than one.
template <typename Isa, typename Scale, int kBits, bool kZero>
void int8_gemv_all(const std::byte* x, int64_t x_stride, int64_t m, Int8Weight w, int64_t n, float* c, int64_t ldc) {
  const int64_t apart = n / kInt8WeightRows;
  for (int64_t j = 0; j < apart; ++j) {
    for (int64_t r = 0; r < m; ++r) {
      Isa::template rows<Scale, kBits, kZero, kInt8WeightRows>(x + r * x_stride, w, apart, c + r * ldc + j);
    }
    w = w.rows_from(1);
  }
  w = w.rows_from((kInt8WeightRows - 1) * apart);
  for (int64_t j = kInt8WeightRows * apart; j < n; ++j) {
    for (int64_t r = 0; r < m; ++r) {
      Isa::template rows<Scale, kBits, kZero, 1>(x + r * x_stride, w, 1, c + r * ldc + j);
    }
    w = w.rows_from(1);
  }
}

template <typename Isa, typename Scale>
void int8_gemv_scale(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c,
                     int64_t ldc) {
  if (w.bits == 8) {
    int8_gemv_all<Isa, Scale, 8, false>(x, x_stride, m, w, n, c, ldc);
  } else if (w.zero_points != nullptr) {
    int8_gemv_all<Isa, Scale, 4, true>(x, x_stride, m, w, n, c, ldc);
  } else {
    int8_gemv_all<Isa, Scale, 4, false>(x, x_stride, m, w, n, c, ldc);
  }
}

// Int8GemvKernel::run.
template <typename Isa>
void int8_gemv(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c,
               int64_t ldc) {
  if (w.scale_type == DType::kF32) int8_gemv_scale<Isa, typename Isa::F32>(x, x_stride, m, w, n, c, ldc);
  if (w.scale_type == DType::kBF16) int8_gemv_scale<Isa, typename Isa::BF16>(x, x_stride, m, w, n, c, ldc);
  if (w.scale_type == DType::kF16) int8_gemv_scale<Isa, typename Isa::F16>(x, x_stride, m, w, n, c, ldc);
}

}  // namespace qvl::kernels
