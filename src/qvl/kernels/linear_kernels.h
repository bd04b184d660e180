// The building blocks of `linear` and `linear_swiglu` for one instruction set: weight packing, register
// tiles, row streaming and the last step (bias, activation, residual, rounding). The loops over matrices and
// threads are the same for every instruction set and live in linear.cc; see there for how the pieces are put
// together.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qvl/kernels/ops.h"

namespace qvl::kernels {

// c[rows, panel_cols] (row stride panel_cols) = a[rows, k] . panel, or += when `accumulate`.
struct TileArgs {
  const void* a;
  int64_t a_stride;  // elements of a
  int rows;          // 1..tile_rows
  const void* packed;
  int64_t k;
  bool accumulate;
  float* c;
  // Rows of x that are read soon, for the tile to ask for from memory meanwhile: next_rows (0: none) rows of
  // k elements of next_element_bytes, next_stride bytes apart.
  const std::byte* next_x;
  int64_t next_stride;
  int64_t next_element_bytes;
  int next_rows;
};

// Compute-bound product of many rows. The weight is repacked one panel (`panel_cols` outputs, a block of K)
// at a time so that a panel stays in the second-level cache while every row of x passes by.
//
// Every output is one sum over K in one fixed order, whatever the number of rows in the tile and however K is
// cut into blocks (at multiples of 32).
struct GemmKernel {
  int tile_rows = 0;   // most rows one tile() call takes
  int panel_cols = 0;  // outputs per packed panel

  // Bytes of one packed panel of k inputs.
  size_t (*panel_bytes)(int64_t k) = nullptr;

  // Packs w[cols, k] (row stride ldw elements, 1 <= cols <= panel_cols) into one panel; missing columns
  // become 0. `packed` is 64-byte aligned.
  void (*pack)(const void* w, int64_t ldw, int64_t cols, int64_t k, void* packed) = nullptr;

  // Widens `rows` rows of x into dst[rows, k] as float; null when tile() reads x as it is.
  void (*widen)(const void* x, int64_t x_stride, int64_t rows, int64_t k, float* dst) = nullptr;

  void (*tile)(const TileArgs& args) = nullptr;
};

// Bandwidth-bound product of 1 <= m <= 16 rows: weights are read in address order, once. Each output's order
// of summation depends on k alone.
struct GemvKernel {
  // Rewrites one row of x into dst, `prepared_floats(k)` floats, once per call; null when run() reads x as it
  // is.
  int64_t (*prepared_floats)(int64_t k) = nullptr;
  void (*prepare)(const void* x, int64_t k, float* dst) = nullptr;

  // c[m, n] (row stride ldc) = x[m, k] . w[n, k]^T; x's stride in elements of x (prepared: in floats).
  void (*run)(const void* x, int64_t x_stride, int64_t m, const void* w, int64_t n, int64_t k, float* c,
              int64_t ldc) = nullptr;
};

// What happens to a block of float sums. bf16 forms round where spec B stores a bfloat16: after bias, after
// the activation, after the residual.
struct FinishArgs {
  const float* c;   // [rows, cols]
  int64_t ldc;      // elements
  const float* c2;  // swiglu: sums of `up`, same layout; else null
  int64_t rows;
  int64_t cols;
  const float* bias;  // [cols] or null
  Activation activation;
  const void* residual;  // [rows, cols] of y's type or null; may be y
  int64_t residual_stride;
  void* y;
  int64_t y_stride;
};
using FinishKernel = void (*)(const FinishArgs& args);

// dst[i] += src[i] for n contiguous elements; bf16: one rounding.
using AddKernel = void (*)(void* dst, const void* src, int64_t n);

// Named x_w: activation type, weight type.
struct LinearKernels {
  GemmKernel gemm_f32_f32;
  GemmKernel gemm_f32_bf16;
  GemmKernel gemm_f32_f16;
  GemmKernel gemm_bf16_bf16;
  GemvKernel gemv_f32_f32;
  GemvKernel gemv_f32_bf16;
  GemvKernel gemv_f32_f16;
  GemvKernel gemv_bf16_bf16;
  FinishKernel finish_f32 = nullptr;
  FinishKernel finish_bf16 = nullptr;
  FinishKernel finish_swiglu_f32 = nullptr;
  FinishKernel finish_swiglu_bf16 = nullptr;
  AddKernel add_f32 = nullptr;
  AddKernel add_bf16 = nullptr;
};

// Filled once; valid for the life of the process. Those of a family of processors may be called on any of it,
// what they point to only where cpu_features() says so.
const LinearKernels& linear_kernels_scalar();
#if defined(__x86_64__)
const LinearKernels& linear_kernels_avx2();
const LinearKernels& linear_kernels_avx512();
const LinearKernels& linear_kernels_avx512bf16();
#elif defined(__aarch64__)
const LinearKernels& linear_kernels_neon();
#endif

}  // namespace qvl::kernels
