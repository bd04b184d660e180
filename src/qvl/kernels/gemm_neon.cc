// Compute-bound linear kernels for NEON: float FMA on weights widened while they are packed.
//
// Panel: [k][8] float. Tile: 8 rows x 8 outputs = 16 accumulators, 2 registers of weights, 8 of x, which hold four
// inputs each: FMA takes one lane of them.
#include "qvl/kernels/linear_neon.h"

#if defined(__aarch64__)

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_neon.h"

namespace qvl::kernels {
namespace {

using namespace neon;

constexpr int kTileRows = 8;
constexpr int kVectors = 2;
constexpr int kPanelCols = 4 * kVectors;
constexpr int64_t kPrefetchStep = 16;  // inputs between two rounds of asking for the next rows of x

size_t panel_bytes(int64_t k) {
  return sizeof(float) * kPanelCols * static_cast<size_t>(k);
}

template <typename T>
void pack_neon(const void* w, int64_t ldw, int64_t cols, int64_t k, void* packed) {
  using Element = typename T::Element;
  for (int g = 0; g < kVectors; ++g) {
    float* dst = static_cast<float*>(packed) + 4 * g;
    const int64_t n = cols - 4 * g;
    const Element* src = static_cast<const Element*>(w) + 4 * g * ldw;
    for (int64_t i = 0; i < k; i += 4) {
      const int64_t count = k - i < 4 ? k - i : 4;
      float32x4_t rows[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Element* p = src + r * ldw + i;
        rows[r] = r >= n ? vdupq_n_f32(0.0f) : count == 4 ? T::load(p) : T::load_n(p, count);
      }
      transpose_4x4(rows);
      for (int r = 0; r < count; ++r) vst1q_f32(dst + (i + r) * kPanelCols, rows[r]);
    }
  }
}

void widen_bf16_neon(const void* x, int64_t x_stride, int64_t rows, int64_t k, float* dst) {
  for (int64_t r = 0; r < rows; ++r) {
    const BFloat16* src = static_cast<const BFloat16*>(x) + r * x_stride;
    int64_t i = 0;
    for (; i + 4 <= k; i += 4) vst1q_f32(dst + i, BF16::load(src + i));
    for (; i < k; ++i) dst[i] = to_float(src[i]);
    dst += k;
  }
}

template <int kRows>
struct Tile {
  float32x4_t acc[kRows][kVectors];

  // One input, lane kLane of x.
  template <int kLane>
  __attribute__((always_inline)) void step(const float32x4_t* x, const float* w) {
    const float32x4_t b0 = vld1q_f32(w + kLane * kPanelCols), b1 = vld1q_f32(w + kLane * kPanelCols + 4);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      acc[r][0] = vfmaq_laneq_f32(acc[r][0], b0, x[r], kLane);
      acc[r][1] = vfmaq_laneq_f32(acc[r][1], b1, x[r], kLane);
    }
  }
};

template <int kRows>
void tile_rows_neon(const TileArgs& t) {
  const float* a = static_cast<const float*>(t.a);
  const float* w = static_cast<const float*>(t.packed);
  const int64_t a_stride = t.a_stride;
  float* c = t.c;
  Tile<kRows> tile;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      tile.acc[r][v] = t.accumulate ? vld1q_f32(c + r * kPanelCols + 4 * v) : vdupq_n_f32(0.0f);
    }
  }
  int64_t i = 0;
  for (; i + 4 <= t.k; i += 4, w += 4 * kPanelCols) {
    if (i % kPrefetchStep == 0) {
      for (int r = 0; r < t.next_rows; ++r) {
        __builtin_prefetch(t.next_x + r * t.next_stride + i * t.next_element_bytes, 0, 2);
      }
    }
    float32x4_t x[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) x[r] = vld1q_f32(a + r * a_stride + i);
    tile.template step<0>(x, w);
    tile.template step<1>(x, w);
    tile.template step<2>(x, w);
    tile.template step<3>(x, w);
  }
  for (; i < t.k; ++i, w += kPanelCols) {
    float32x4_t x[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) x[r] = vdupq_n_f32(a[r * a_stride + i]);
    tile.template step<0>(x, w);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) vst1q_f32(c + r * kPanelCols + 4 * v, tile.acc[r][v]);
  }
}

void tile_f32_neon(const TileArgs& t) {
  switch (t.rows) {
    case 1:
      return tile_rows_neon<1>(t);
    case 2:
      return tile_rows_neon<2>(t);
    case 3:
      return tile_rows_neon<3>(t);
    case 4:
      return tile_rows_neon<4>(t);
    case 5:
      return tile_rows_neon<5>(t);
    case 6:
      return tile_rows_neon<6>(t);
    case 7:
      return tile_rows_neon<7>(t);
    default:
      return tile_rows_neon<8>(t);
  }
}

template <typename T>
GemmKernel gemm_f32acc_neon(bool widen_x) {
  return {kTileRows, kPanelCols, panel_bytes, pack_neon<T>, widen_x ? widen_bf16_neon : nullptr, tile_f32_neon};
}

}  // namespace

void set_gemm_neon(LinearKernels& kernels) {
  kernels.gemm_f32_f32 = gemm_f32acc_neon<F32>(false);
  kernels.gemm_f32_bf16 = gemm_f32acc_neon<BF16>(false);
  kernels.gemm_f32_f16 = gemm_f32acc_neon<F16>(false);
  kernels.gemm_bf16_bf16 = gemm_f32acc_neon<BF16>(true);
}

const LinearKernels& linear_kernels_neon() {
  static const LinearKernels kernels = [] {
    LinearKernels k;
    set_gemm_neon(k);
    set_gemv_neon(k);
    set_finish_neon(k);
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __aarch64__
