// What the integer GEMVs of NEON share: the order of rows and the choice by format (private to this room).
// `Isa` has F32, BF16, F16 and I8 and
//   rows<Scale, kBits, kZero, kM, kN>(x, x_stride, w, apart, c, ldc): c[m * ldc + n * apart] = sums of kM rows of x,
//   x_stride bytes apart, with kN rows of w that lie `apart` rows apart; Scale is the scales' type, kZero: zero points
//   are stored. The sums of a row do not depend on kM.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/kernels/int8_kernels.h"

namespace qvl::kernels {

constexpr int kInt8WeightRows = 4;
// Rows of x that share one unpacking of the weights.
constexpr int kInt8MaxGroup = 4;

// The last rows of x, kM or fewer of them.
template <typename Isa, typename Scale, int kBits, bool kZero, int kM>
void int8_gemv_group(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t apart, float* c,
                     int64_t ldc) {
  if constexpr (kM > 1) {
    if (m < kM) {
      return int8_gemv_group<Isa, Scale, kBits, kZero, kM - 1>(x, x_stride, m, w, apart, c, ldc);
    }
  }
  Isa::template rows<Scale, kBits, kZero, kM, kInt8WeightRows>(x, x_stride, w, apart, c, ldc);
}

// The rows are read as kInt8WeightRows streams, each in address order: memory serves streams of different pages faster
// than one.
template <typename Isa, typename Scale, int kBits, bool kZero>
void int8_gemv_all(const std::byte* x, int64_t x_stride, int64_t m, Int8Weight w, int64_t n, float* c, int64_t ldc) {
  const int64_t apart = n / kInt8WeightRows;
  for (int64_t j = 0; j < apart; ++j) {
    for (int64_t r = 0; r < m; r += kInt8MaxGroup) {
      int8_gemv_group<Isa, Scale, kBits, kZero, kInt8MaxGroup>(x + r * x_stride, x_stride, m - r, w, apart,
                                                               c + r * ldc + j, ldc);
    }
    w = w.rows_from(1);
  }
  w = w.rows_from((kInt8WeightRows - 1) * apart);
  for (int64_t j = kInt8WeightRows * apart; j < n; ++j) {
    for (int64_t r = 0; r < m; ++r) {
      Isa::template rows<Scale, kBits, kZero, 1, 1>(x + r * x_stride, x_stride, w, 1, c + r * ldc + j, ldc);
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
  if (w.scale_type == DType::kI8) int8_gemv_scale<Isa, typename Isa::I8>(x, x_stride, m, w, n, c, ldc);
}

}  // namespace qvl::kernels
