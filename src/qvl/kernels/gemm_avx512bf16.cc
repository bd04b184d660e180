// Linear kernels for AVX-512 BF16: the bfloat16 dot product of pairs (VDPBF16PS) on bfloat16 weights as they
// are. Everything else is the AVX-512 table's. Its products are exact in float; it flushes denormal inputs
// and results to zero (magnitudes below 2^-126), which no model's values come near.
//
// Panel: [k/2][64] pairs, half the bytes of the widened one. Tile: 6 rows x 64 outputs, as for AVX-512.
#include "qvl/kernels/linear_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

namespace qvl::kernels {
namespace {

using namespace avx512;

constexpr int kTileRows = 6;
constexpr int kVectors = 4;
constexpr int kPanelCols = 16 * kVectors;
constexpr int kPrefetchPairs = 512;

int64_t pairs_of(int64_t k) {
  return (k + 1) / 2;
}
size_t panel_bytes(int64_t k) {
  return sizeof(uint32_t) * kPanelCols * static_cast<size_t>(pairs_of(k));
}
__mmask32 first_halves(int64_t n) {
  return n >= 32 ? 0xffffffffu : (1u << n) - 1u;
}

// The second element of the last pair is 0 when k is odd.
void pack_bf16_avx512bf16(const void* w, int64_t ldw, int64_t cols, int64_t k, void* packed) {
  const int64_t pairs = pairs_of(k);
  for (int g = 0; g < kVectors; ++g) {
    uint32_t* dst = static_cast<uint32_t*>(packed) + 16 * g;
    const int64_t n = cols - 16 * g;
    if (n <= 0) {
      for (int64_t i = 0; i < pairs; ++i) _mm512_store_si512(dst + i * kPanelCols, _mm512_setzero_si512());
      continue;
    }
    const BFloat16* src = static_cast<const BFloat16*>(w) + 16 * g * ldw;
    for (int64_t i = 0; i < pairs; i += 16) {
      const __mmask32 mask = first_halves(k - 2 * i);
      __m512 rows[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        rows[r] = r < n ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, src + r * ldw + 2 * i))
                        : _mm512_setzero_ps();
      }
      transpose_16x16(rows);
      const int64_t count = pairs - i < 16 ? pairs - i : 16;
      uint32_t* out = dst + i * kPanelCols;
      if (count == 16) {
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) _mm512_store_ps(out + r * kPanelCols, rows[r]);
      } else {
        for (int r = 0; r < count; ++r) _mm512_store_ps(out + r * kPanelCols, rows[r]);
      }
    }
  }
}

inline __m512bh load_pairs(const uint32_t* p) {
  return (__m512bh)_mm512_load_si512(p);
}

template <int kRows>
inline void accumulate_pairs(__m512 (&acc)[kRows][kVectors], const uint32_t* w, const uint32_t (&x)[kRows]) {
  __m512bh b[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) b[v] = load_pairs(w + 16 * v);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m512bh xr = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r]));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], b[v], xr);
  }
}

template <int kRows>
void tile_rows_avx512bf16(const TileArgs& t) {
  const BFloat16* a = static_cast<const BFloat16*>(t.a);
  const uint32_t* w = static_cast<const uint32_t*>(t.packed);
  float* c = t.c;
  __m512 acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = t.accumulate ? _mm512_loadu_ps(c + r * kPanelCols + 16 * v) : _mm512_setzero_ps();
    }
  }
  uint32_t x[kRows];
  for (int64_t i = 0; i + 2 <= t.k; i += 2) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) std::memcpy(&x[r], a + r * t.a_stride + i, sizeof(uint32_t));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      _mm_prefetch(reinterpret_cast<const char*>(w + 16 * v + kPrefetchPairs), _MM_HINT_T0);
    }
    accumulate_pairs<kRows>(acc, w, x);
    w += kPanelCols;
  }
  if (t.k % 2 != 0) {
    for (int r = 0; r < kRows; ++r) x[r] = a[r * t.a_stride + t.k - 1].bits;
    accumulate_pairs<kRows>(acc, w, x);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + r * kPanelCols + 16 * v, acc[r][v]);
  }
}

void tile_bf16_avx512bf16(const TileArgs& t) {
  switch (t.rows) {
    case 1:
      return tile_rows_avx512bf16<1>(t);
    case 2:
      return tile_rows_avx512bf16<2>(t);
    case 3:
      return tile_rows_avx512bf16<3>(t);
    case 4:
      return tile_rows_avx512bf16<4>(t);
    case 5:
      return tile_rows_avx512bf16<5>(t);
    default:
      return tile_rows_avx512bf16<6>(t);
  }
}

}  // namespace

void set_gemm_avx512bf16(LinearKernels& kernels) {
  kernels.gemm_bf16_bf16 = {kTileRows, kPanelCols,          panel_bytes, pack_bf16_avx512bf16,
                            nullptr,   tile_bf16_avx512bf16};
}

const LinearKernels& linear_kernels_avx512bf16() {
  static const LinearKernels kernels = [] {
    LinearKernels k = linear_kernels_avx512();
    set_gemm_avx512bf16(k);
    set_gemv_avx512bf16(k);
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
