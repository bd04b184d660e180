// Compute-bound linear kernels for AVX-512 (F, BW, VL, DQ): float FMA on weights widened while they are
// packed.
//
// Panel: [k][64] float, the outputs of one k side by side. Tile: 6 rows x 64 outputs = 24 accumulators, 4
// registers of weights, 1 broadcast element of x: 24 FMA for 10 loads. x is read where it lies: 6 rows never
// crowd one set of the first-level cache, whatever their distance.
#include "qvl/kernels/linear_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")

namespace qvl::kernels {
namespace {

using namespace avx512;

constexpr int kTileRows = 6;
constexpr int kVectors = 4;
constexpr int kPanelCols = 16 * kVectors;
// The panel comes from the second-level cache in one straight stream; this far ahead hides its latency.
constexpr int kPrefetchFloats = 512;
constexpr int64_t kPrefetchStep = 16;  // inputs between two rounds of asking for the next rows of x

size_t panel_bytes(int64_t k) {
  return sizeof(float) * kPanelCols * static_cast<size_t>(k);
}

template <typename Load>
void pack_avx512(const void* w, int64_t ldw, int64_t cols, int64_t k, void* packed) {
  using Element = typename Load::Element;
  for (int g = 0; g < kVectors; ++g) {
    float* dst = static_cast<float*>(packed) + 16 * g;
    const int64_t n = cols - 16 * g;
    if (n <= 0) {
      for (int64_t i = 0; i < k; ++i) _mm512_store_ps(dst + i * kPanelCols, _mm512_setzero_ps());
      continue;
    }
    const bool whole_group = n >= 16;
    const Element* src = static_cast<const Element*>(w) + 16 * g * ldw;
    for (int64_t i = 0; i < k; i += 16) {
      const int64_t count = k - i < 16 ? k - i : 16;
      const __mmask16 mask = first_lanes(count);
      __m512 rows[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        rows[r] = whole_group || r < n ? Load::load(src + r * ldw + i, mask) : _mm512_setzero_ps();
      }
      transpose_16x16(rows);
      float* out = dst + i * kPanelCols;
      if (count == 16) {
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) _mm512_store_ps(out + r * kPanelCols, rows[r]);
      } else {
        for (int r = 0; r < count; ++r) _mm512_store_ps(out + r * kPanelCols, rows[r]);
      }
    }
  }
}

void widen_bf16_avx512(const void* x, int64_t x_stride, int64_t rows, int64_t k, float* dst) {
  for (int64_t r = 0; r < rows; ++r) {
    const BFloat16* src = static_cast<const BFloat16*>(x) + r * x_stride;
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
      _mm512_storeu_ps(dst + i, bf16_to_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i))));
    }
    for (; i < k; ++i) dst[i] = to_float(src[i]);
    dst += k;
  }
}

template <int kRows>
void tile_rows_avx512(const TileArgs& t) {
  const float* a = static_cast<const float*>(t.a);
  const float* w = static_cast<const float*>(t.packed);
  const int64_t a_stride = t.a_stride;
  float* c = t.c;
  __m512 acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = t.accumulate ? _mm512_loadu_ps(c + r * kPanelCols + 16 * v) : _mm512_setzero_ps();
    }
  }
  for (int64_t begin = 0; begin < t.k; begin += kPrefetchStep) {
    for (int r = 0; r < t.next_rows; ++r) {
      // Into the second level: the first is full. At 16-bit elements half of these ask for a line twice.
      _mm_prefetch(reinterpret_cast<const char*>(t.next_x + r * t.next_stride) + begin * t.next_element_bytes,
                   _MM_HINT_T1);
    }
    const int64_t end = begin + kPrefetchStep < t.k ? begin + kPrefetchStep : t.k;
    for (int64_t i = begin; i < end; ++i) {
      __m512 b[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        b[v] = _mm512_load_ps(w + 16 * v);
        _mm_prefetch(reinterpret_cast<const char*>(w + 16 * v + kPrefetchFloats), _MM_HINT_T0);
      }
      w += kPanelCols;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512 x = _mm512_set1_ps(a[r * a_stride + i]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_fmadd_ps(x, b[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + r * kPanelCols + 16 * v, acc[r][v]);
  }
}

void tile_f32_avx512(const TileArgs& t) {
  switch (t.rows) {
    case 1:
      return tile_rows_avx512<1>(t);
    case 2:
      return tile_rows_avx512<2>(t);
    case 3:
      return tile_rows_avx512<3>(t);
    case 4:
      return tile_rows_avx512<4>(t);
    case 5:
      return tile_rows_avx512<5>(t);
    default:
      return tile_rows_avx512<6>(t);
  }
}

template <typename Load>
GemmKernel gemm_f32acc_avx512(bool widen_x) {
  return {kTileRows,      kPanelCols, panel_bytes, pack_avx512<Load>, widen_x ? widen_bf16_avx512 : nullptr,
          tile_f32_avx512};
}

}  // namespace

void set_gemm_avx512(LinearKernels& kernels) {
  kernels.gemm_f32_f32 = gemm_f32acc_avx512<F32>(false);
  kernels.gemm_f32_bf16 = gemm_f32acc_avx512<BF16>(false);
  kernels.gemm_f32_f16 = gemm_f32acc_avx512<F16>(false);
  kernels.gemm_bf16_bf16 = gemm_f32acc_avx512<BF16>(true);
}

const LinearKernels& linear_kernels_avx512() {
  static const LinearKernels kernels = [] {
    LinearKernels k;
    set_gemm_avx512(k);
    set_gemv_avx512(k);
    set_finish_avx512(k);
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
