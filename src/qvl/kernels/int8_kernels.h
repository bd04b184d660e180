// The building blocks of linear layers over integer weights (quant/format.h) with activations in int8, for one
// instruction set. The loops over matrices and threads live in linear_int8.cc (spec 6.4, 10).
//
// Arithmetic, the same for every instruction set. A row of x is cut into groups of int8_group(format) columns,
// never wider than a weight's block; q = round_half_even(x * (127 / absmax)), scale = absmax / 127. In groups of up to
// kInt8PowerGroup columns the scale is the least power of two that is not below absmax / 127 (1 where all q are 0), and q =
// round_half_even(x / scale): narrow groups have many scales, and products by powers of two are cheap (VNNI). With 7 bits
// (Int8Weight::x_bits), whatever the group, absmax is replaced by the range from the least to the greatest value of the group, 0
// among them: q still lies in -127..127, the largest q of a group at most 128 above the smallest. Products of one group are
// summed in int32, exactly; groups are summed in float32. Only the order of the float sums is a kernel's own, and it depends on
// the number of columns alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qvl/base/dtype.h"

namespace qvl::kernels {

// Columns of prepared rows are padded with zeros to a multiple of this: the widest group, and what a vector of
// 4-bit weights holds.
inline constexpr int64_t kInt8Pad = 128;
inline int64_t int8_padded(int64_t k) {
  return (k + kInt8Pad - 1) / kInt8Pad * kInt8Pad;
}

// Widest group whose scale of x is a power of two.
inline constexpr int64_t kInt8PowerGroup = 32;

// Some rows of an integer weight, the pointers at the first of them.
struct Int8Weight {
  const std::byte* data = nullptr;
  int64_t data_stride = 0;  // bytes a row
  const std::byte* scales = nullptr;         // of the first block; with I8 the row's exponent is the byte before
  int64_t scale_stride = 0;                  // bytes a row
  const std::byte* zero_points = nullptr;    // as quant/format.h; null: 8 or 128
  int64_t zero_stride = 0;                   // bytes a row
  DType scale_type = DType::kF32;            // F32, BF16, F16, or I8: codes (quant/format.h)
  int bits = 4;                              // 4 or 8
  int64_t block = 0;                         // columns that share a scale: a power of two from 16
  int64_t k = 0;                             // columns
  int x_bits = 8;                            // of the codes of x: 8 or 7

  Int8Weight rows_from(int64_t row) const {
    Int8Weight w = *this;
    w.data += row * data_stride;
    w.scales += row * scale_stride;
    if (zero_points != nullptr) w.zero_points += row * zero_stride;
    return w;
  }
  int64_t blocks() const { return (k + block - 1) / block; }
  // Columns of x that share a scale.
  int64_t group() const { return block < kInt8Pad ? block : kInt8Pad; }
  // Whether scales of x are powers of two or NaN.
  bool power_scales() const { return x_bits == 8 && block <= kInt8PowerGroup; }
};

// Few rows: weights are read in address order, once.
struct Int8GemvKernel {
  // One row of x as `run` wants it for weights of this format, from q [padded k] and its scales [padded k / group].
  size_t (*prepared_bytes)(const Int8Weight& w) = nullptr;
  void (*prepare)(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) = nullptr;
  // c[m, n] (row stride ldc) = x[m, k] . w[n, k]^T; prepared rows x_stride bytes apart.
  void (*run)(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c,
              int64_t ldc) = nullptr;
  // Its sums have the bits of the GEMM kernel's and it is the faster of the two up to so many rows; 0: they have not.
  int64_t rows_as_gemm = 0;
};

// The same bits for few rows of x, faster, for weights that it fits; `fits` is null where there is no such kernel.
struct Int8FewRowsKernel {
  bool (*fits)(const Int8Weight& w) = nullptr;
  int64_t max_rows = 0;   // of x
  Int8GemvKernel kernel;
};

// c[rows, panel_cols] = x . panel, or += when `accumulate`.
struct Int8TileArgs {
  const uint8_t* x;  // q + 128, or q if `wide` and the kernel wants it so; at the panel's first column
  int64_t x_stride;  // bytes
  const float* x_scales;
  int64_t x_scale_stride;  // elements
  int rows;                // 1..tile_rows
  const std::byte* packed;
  int64_t groups;
  int64_t group;
  bool wide;         // 8-bit weights: products of two do not fit 16 bits
  bool zero_points;  // stored ones: magnitudes of 4-bit weights up to 15 rather than 8
  bool accumulate;
  bool power_scales;  // x_scales are powers of two or NaN
  float* c;
  const int32_t* x_least = nullptr;  // as x_scales, in steps of x_scale_stride; where x is q - least (Int8SevenBitKernel)
};

// Many rows: weights are unpacked once per panel (`panel_cols` outputs, some groups of columns).
struct Int8GemmKernel {
  int tile_rows = 0;
  int panel_cols = 0;
  bool signed_when_wide = false;  // x of 8-bit weights as q rather than q + 128
  size_t (*panel_bytes)(int64_t depth, int64_t group) = nullptr;
  // Unpacks columns [begin, begin + depth) of rows [0, cols) of w, begin a multiple of kInt8Pad, depth one of the
  // group; missing outputs and columns become 0. `packed` is 64-byte aligned.
  void (*pack)(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) = nullptr;
  void (*tile)(const Int8TileArgs& args) = nullptr;
};

// The same bits for x of 7 bits, faster, for weights that it fits; `fits` is null where there is no such kernel. Its tiles
// take x as q - least code of the group: 0..128, whose products with two weights of 8 bits add up in 16 bits.
struct Int8SevenBitKernel {
  bool (*fits)(const Int8Weight& w) = nullptr;
  // q [padded k] of one row to q - least[padded k / kInt8Pad]: groups are that wide.
  void (*shift)(int8_t* q, int64_t padded_k, int32_t* least) = nullptr;
  Int8GemmKernel kernel;
};

struct Int8Kernels {
  // q [k padded with zeros to kInt8Pad] of `bits` bits, 8 or 7, and scales [padded k / group] of k values of x.
  void (*quantize_f32)(const void* x, int64_t k, int64_t group, int bits, int8_t* q, float* scales) = nullptr;
  void (*quantize_bf16)(const void* x, int64_t k, int64_t group, int bits, int8_t* q, float* scales) = nullptr;
  Int8GemvKernel gemv;
  Int8GemmKernel gemm;
  Int8FewRowsKernel few_rows;
  Int8SevenBitKernel gemm_seven;
};

const Int8Kernels& int8_kernels_scalar();
#if defined(__x86_64__)
const Int8GemvKernel& int8_gemv_avx2();
const Int8FewRowsKernel& int8_few_rows_avx2();
const Int8SevenBitKernel& int8_seven_avx2();
const Int8Kernels& int8_kernels_avx2();
const Int8GemvKernel& int8_gemv_avx512vnni();
const Int8FewRowsKernel& int8_few_rows_avx512vnni();
const Int8Kernels& int8_kernels_avx512vnni();
#elif defined(__aarch64__)
const Int8Kernels& int8_kernels_neon();
const Int8Kernels& int8_kernels_neon_dotprod();
const Int8Kernels& int8_kernels_neon_i8mm();
#endif

}  // namespace qvl::kernels
