// Bandwidth-bound linear kernel for AVX-512 BF16: four rows of bfloat16 weights stream through VDPBF16PS as
// they are, x is read as it is. See gemm_avx512bf16.cc for what the instruction does with denormals.
#include "qvl/kernels/linear_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

namespace qvl::kernels {
namespace {

constexpr int64_t kStep = 32;
constexpr int kMaxGroup = 4;
constexpr int kWeightRows = 4;
constexpr int64_t kPrefetchBytes = 1024;

inline __m512bh load(const BFloat16* p, int64_t count) {
  const __mmask32 mask = count >= kStep ? 0xffffffffu : (1u << count) - 1u;
  return (__m512bh)_mm512_maskz_loadu_epi16(mask, p);
}

template <int kM, int kN>
inline void block_avx512bf16(const BFloat16* x, int64_t x_stride, const BFloat16* w, int64_t k, float* c,
                             int64_t ldc) {
  __m512 acc[kM][kN];
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) acc[m][n] = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    __m512bh b[kN];
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) b[n] = load(w + n * k + i, count);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const __m512bh xm = load(x + m * x_stride + i, count);
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], b[n], xm);
    }
  };
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      _mm_prefetch(reinterpret_cast<const char*>(w + n * k + i) + kPrefetchBytes, _MM_HINT_T0);
    }
    step(i, kStep);
  }
  if (i < k) step(i, k - i);
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) c[m * ldc + n] = avx512::sum_ps(acc[m][n]);
  }
}

template <int kN>
inline void rows_avx512bf16(const BFloat16* x, int64_t x_stride, int64_t m, const BFloat16* w, int64_t k,
                            float* c, int64_t ldc) {
  int64_t r = 0;
  for (; r + kMaxGroup <= m; r += kMaxGroup) {
    block_avx512bf16<kMaxGroup, kN>(x + r * x_stride, x_stride, w, k, c + r * ldc, ldc);
  }
  const BFloat16* rest = x + r * x_stride;
  if (m - r == 3) block_avx512bf16<3, kN>(rest, x_stride, w, k, c + r * ldc, ldc);
  if (m - r == 2) block_avx512bf16<2, kN>(rest, x_stride, w, k, c + r * ldc, ldc);
  if (m - r == 1) block_avx512bf16<1, kN>(rest, x_stride, w, k, c + r * ldc, ldc);
}

void gemv_bf16_w_bf16_avx512bf16(const void* x, int64_t x_stride, int64_t m, const void* w, int64_t n,
                                 int64_t k, float* c, int64_t ldc) {
  const BFloat16* xb = static_cast<const BFloat16*>(x);
  const BFloat16* row = static_cast<const BFloat16*>(w);
  int64_t j = 0;
  for (; j + kWeightRows <= n; j += kWeightRows) {
    rows_avx512bf16<kWeightRows>(xb, x_stride, m, row + j * k, k, c + j, ldc);
  }
  for (; j < n; ++j) rows_avx512bf16<1>(xb, x_stride, m, row + j * k, k, c + j, ldc);
}

}  // namespace

void set_gemv_avx512bf16(LinearKernels& kernels) {
  kernels.gemv_bf16_bf16 = {nullptr, nullptr, gemv_bf16_w_bf16_avx512bf16};
}

}  // namespace qvl::kernels

#endif  // __x86_64__
