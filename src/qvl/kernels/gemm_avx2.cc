// Compute-bound linear kernels for AVX2 with FMA and F16C: float FMA on weights widened while they are
// packed.
//
// Panel: [k][16] float. Tile: 6 rows x 16 outputs = 12 accumulators, 2 registers of weights, 1 broadcast of
// x.
#include "qvl/kernels/linear_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

namespace qvl::kernels {
namespace {

using namespace avx2;

constexpr int kTileRows = 6;
constexpr int kVectors = 2;
constexpr int kPanelCols = 8 * kVectors;
constexpr int kPrefetchFloats = 256;
constexpr int64_t kPrefetchStep = 16;  // inputs between two rounds of asking for the next rows of x

size_t panel_bytes(int64_t k) {
  return sizeof(float) * kPanelCols * static_cast<size_t>(k);
}

template <typename T>
void pack_avx2(const void* w, int64_t ldw, int64_t cols, int64_t k, void* packed) {
  using Element = typename T::Element;
  for (int g = 0; g < kVectors; ++g) {
    float* dst = static_cast<float*>(packed) + 8 * g;
    const int64_t n = cols - 8 * g;
    if (n <= 0) {
      for (int64_t i = 0; i < k; ++i) _mm256_store_ps(dst + i * kPanelCols, _mm256_setzero_ps());
      continue;
    }
    const Element* src = static_cast<const Element*>(w) + 8 * g * ldw;
    for (int64_t i = 0; i < k; i += 8) {
      const int64_t count = k - i < 8 ? k - i : 8;
      __m256 rows[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        const Element* p = src + r * ldw + i;
        rows[r] = r >= n ? _mm256_setzero_ps() : count == 8 ? T::load(p) : T::load_n(p, count);
      }
      transpose_8x8(rows);
      float* out = dst + i * kPanelCols;
      if (count == 8) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) _mm256_store_ps(out + r * kPanelCols, rows[r]);
      } else {
        for (int r = 0; r < count; ++r) _mm256_store_ps(out + r * kPanelCols, rows[r]);
      }
    }
  }
}

void widen_bf16_avx2(const void* x, int64_t x_stride, int64_t rows, int64_t k, float* dst) {
  for (int64_t r = 0; r < rows; ++r) {
    const BFloat16* src = static_cast<const BFloat16*>(x) + r * x_stride;
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) _mm256_storeu_ps(dst + i, BF16::load(src + i));
    for (; i < k; ++i) dst[i] = to_float(src[i]);
    dst += k;
  }
}

template <int kRows>
void tile_rows_avx2(const TileArgs& t) {
  const float* a = static_cast<const float*>(t.a);
  const float* w = static_cast<const float*>(t.packed);
  const int64_t a_stride = t.a_stride;
  float* c = t.c;
  __m256 acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = t.accumulate ? _mm256_loadu_ps(c + r * kPanelCols + 8 * v) : _mm256_setzero_ps();
    }
  }
  for (int64_t begin = 0; begin < t.k; begin += kPrefetchStep) {
    for (int r = 0; r < t.next_rows; ++r) {
      _mm_prefetch(reinterpret_cast<const char*>(t.next_x + r * t.next_stride) + begin * t.next_element_bytes,
                   _MM_HINT_T1);
    }
    const int64_t end = begin + kPrefetchStep < t.k ? begin + kPrefetchStep : t.k;
    for (int64_t i = begin; i < end; ++i) {
      const __m256 b0 = _mm256_load_ps(w), b1 = _mm256_load_ps(w + 8);
      _mm_prefetch(reinterpret_cast<const char*>(w + kPrefetchFloats), _MM_HINT_T0);
      w += kPanelCols;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256 x = _mm256_broadcast_ss(a + r * a_stride + i);
        acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
        acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(c + r * kPanelCols + 8 * v, acc[r][v]);
  }
}

void tile_f32_avx2(const TileArgs& t) {
  switch (t.rows) {
    case 1:
      return tile_rows_avx2<1>(t);
    case 2:
      return tile_rows_avx2<2>(t);
    case 3:
      return tile_rows_avx2<3>(t);
    case 4:
      return tile_rows_avx2<4>(t);
    case 5:
      return tile_rows_avx2<5>(t);
    default:
      return tile_rows_avx2<6>(t);
  }
}

template <typename T>
GemmKernel gemm_f32acc_avx2(bool widen_x) {
  return {kTileRows,    kPanelCols, panel_bytes, pack_avx2<T>, widen_x ? widen_bf16_avx2 : nullptr,
          tile_f32_avx2};
}

}  // namespace

void set_gemm_avx2(LinearKernels& kernels) {
  kernels.gemm_f32_f32 = gemm_f32acc_avx2<F32>(false);
  kernels.gemm_f32_bf16 = gemm_f32acc_avx2<BF16>(false);
  kernels.gemm_f32_f16 = gemm_f32acc_avx2<F16>(false);
  kernels.gemm_bf16_bf16 = gemm_f32acc_avx2<BF16>(true);
}

const LinearKernels& linear_kernels_avx2() {
  static const LinearKernels kernels = [] {
    LinearKernels k;
    set_gemm_avx2(k);
    set_gemv_avx2(k);
    set_finish_avx2(k);
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
