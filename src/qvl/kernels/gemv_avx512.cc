// Bandwidth-bound linear kernels for AVX-512 (F, BW, VL, DQ): weights stream through once, widened in
// registers.
//
// Four weight rows advance together; each output has two accumulators so that one row of x keeps the FMA
// units busy enough never to hold up the stream. 16-bit weights are taken 32 at a time as 16 pairs: the low
// halves are the even inputs, the high halves the odd ones, so bfloat16 widens by one shift and one mask. x
// is split the same way once.
#include "qvl/kernels/linear_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")

namespace qvl::kernels {
namespace {

using namespace avx512;

constexpr int64_t kStep = 32;  // inputs per iteration
// Rows of x that share one pass over four weight rows: 3 x 4 outputs x 2 accumulators.
constexpr int kMaxGroup = 3;
constexpr int kWeightRows = 4;
constexpr int64_t kPrefetchBytes = 1024;
template <typename W>
constexpr int64_t kPrefetchElements = kPrefetchBytes / static_cast<int64_t>(sizeof(typename W::Element));

int64_t prepared_floats(int64_t k) {
  return (k + kStep - 1) / kStep * kStep;
}

// Each 32 inputs as [16 even][16 odd], the last ones padded with zeros.
void prepare_f32_avx512(const void* x, int64_t k, float* dst) {
  const float* src = static_cast<const float*>(x);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t i = 0; i < k; i += kStep) {
    const int64_t left = k - i;
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(left < 16 ? left : 16), src + i);
    const __m512 b = _mm512_maskz_loadu_ps(first_lanes(left < 16   ? 0
                                                       : left < 32 ? left - 16
                                                                   : 16),
                                           src + i + 16);
    _mm512_storeu_ps(dst + i, _mm512_permutex2var_ps(a, even, b));
    _mm512_storeu_ps(dst + i + 16, _mm512_permutex2var_ps(a, odd, b));
  }
}

__mmask32 first_pairs(int64_t n) {
  return n >= 32 ? 0xffffffffu : (1u << n) - 1u;
}

void prepare_bf16_avx512(const void* x, int64_t k, float* dst) {
  const BFloat16* src = static_cast<const BFloat16*>(x);
  for (int64_t i = 0; i < k; i += kStep) {
    const __m512i v = _mm512_maskz_loadu_epi16(first_pairs(k - i), src + i);
    _mm512_storeu_si512(dst + i, _mm512_slli_epi32(v, 16));
    _mm512_storeu_si512(dst + i + 16, _mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
}

// Two vectors of 16 widened weights, in the order of the prepared x (or in plain order for F32 and F16).
struct WeightBF16 {
  using Element = BFloat16;
  static inline void load(const BFloat16* p, int64_t count, __m512& a, __m512& b) {
    const __m512i v =
        count >= kStep ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(first_pairs(count), p);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

struct WeightF16 {
  using Element = Float16;
  static inline void load(const Float16* p, int64_t count, __m512& a, __m512& b) {
    const __m512i v =
        count >= kStep ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(first_pairs(count), p);
    a = _mm512_cvtph_ps(_mm256_castps_si256(lower_half_ps(_mm512_castsi512_ps(v))));
    b = _mm512_cvtph_ps(_mm256_castps_si256(upper_half_ps(_mm512_castsi512_ps(v))));
  }
};

struct WeightF32 {
  using Element = float;
  static inline void load(const float* p, int64_t count, __m512& a, __m512& b) {
    if (count >= kStep) {
      a = _mm512_loadu_ps(p);
      b = _mm512_loadu_ps(p + 16);
    } else {
      a = _mm512_maskz_loadu_ps(first_lanes(count < 16 ? count : 16), p);
      b = _mm512_maskz_loadu_ps(first_lanes(count < 16 ? 0 : count - 16), p + 16);
    }
  }
};

// x in plain order, padded with zeros to a multiple of 32.
void prepare_plain_avx512(const void* x, int64_t k, float* dst) {
  const float* src = static_cast<const float*>(x);
  for (int64_t i = 0; i < k; i += 16) {
    _mm512_storeu_ps(dst + i, _mm512_maskz_loadu_ps(first_lanes(k - i < 16 ? k - i : 16), src + i));
  }
  if (k % kStep != 0 && k % kStep <= 16)
    _mm512_storeu_ps(dst + (k / kStep) * kStep + 16, _mm512_setzero_ps());
}

// c[m, n] for kM rows of x and kN rows of w.
template <typename W, int kM, int kN>
inline void block_avx512(const float* x, int64_t x_stride, const typename W::Element* w, int64_t k, float* c,
                         int64_t ldc) {
  __m512 acc[kM][kN][2];
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) acc[m][n][0] = acc[m][n][1] = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    __m512 b[kN][2];
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) W::load(w + n * k + i, count, b[n][0], b[n][1]);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const __m512 x0 = _mm512_loadu_ps(x + m * x_stride + i);
      const __m512 x1 = _mm512_loadu_ps(x + m * x_stride + i + 16);
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) {
        acc[m][n][0] = _mm512_fmadd_ps(x0, b[n][0], acc[m][n][0]);
        acc[m][n][1] = _mm512_fmadd_ps(x1, b[n][1], acc[m][n][1]);
      }
    }
  };
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      // Past the end of a row the next one to be read is that of the next group, not its neighbour's, which
      // is being read already.
      const int64_t ahead = i + kPrefetchElements<W> < k ? 0 : (kN - 1) * k;
      _mm_prefetch(reinterpret_cast<const char*>(w + n * k + i + kPrefetchElements<W> + ahead), _MM_HINT_T0);
    }
    step(i, kStep);
  }
  if (i < k) step(i, k - i);
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      c[m * ldc + n] = sum_ps(_mm512_add_ps(acc[m][n][0], acc[m][n][1]));
    }
  }
}

template <typename W, int kN>
inline void rows_avx512(const float* x, int64_t x_stride, int64_t m, const typename W::Element* w, int64_t k,
                        float* c, int64_t ldc) {
  int64_t r = 0;
  for (; r + kMaxGroup <= m; r += kMaxGroup) {
    block_avx512<W, kMaxGroup, kN>(x + r * x_stride, x_stride, w, k, c + r * ldc, ldc);
  }
  if (m - r == 2) block_avx512<W, 2, kN>(x + r * x_stride, x_stride, w, k, c + r * ldc, ldc);
  if (m - r == 1) block_avx512<W, 1, kN>(x + r * x_stride, x_stride, w, k, c + r * ldc, ldc);
}

template <typename W>
void gemv_f32acc_avx512(const void* x, int64_t x_stride, int64_t m, const void* w, int64_t n, int64_t k,
                        float* c, int64_t ldc) {
  const float* xf = static_cast<const float*>(x);
  const typename W::Element* row = static_cast<const typename W::Element*>(w);
  int64_t j = 0;
  for (; j + kWeightRows <= n; j += kWeightRows) {
    rows_avx512<W, kWeightRows>(xf, x_stride, m, row + j * k, k, c + j, ldc);
  }
  for (; j < n; ++j) rows_avx512<W, 1>(xf, x_stride, m, row + j * k, k, c + j, ldc);
}

}  // namespace

void set_gemv_avx512(LinearKernels& kernels) {
  kernels.gemv_f32_f32 = {prepared_floats, prepare_plain_avx512, gemv_f32acc_avx512<WeightF32>};
  kernels.gemv_f32_bf16 = {prepared_floats, prepare_f32_avx512, gemv_f32acc_avx512<WeightBF16>};
  kernels.gemv_f32_f16 = {prepared_floats, prepare_plain_avx512, gemv_f32acc_avx512<WeightF16>};
  kernels.gemv_bf16_bf16 = {prepared_floats, prepare_bf16_avx512, gemv_f32acc_avx512<WeightBF16>};
}

}  // namespace qvl::kernels

#endif  // __x86_64__
