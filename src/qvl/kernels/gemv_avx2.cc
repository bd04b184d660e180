// Bandwidth-bound linear kernels for AVX2 with FMA and F16C: weights stream through once, widened in
// registers. The scheme is that of gemv_avx512.cc with 8 lanes: bfloat16 weights are taken 16 at a time as 8
// pairs, low halves the even inputs, high halves the odd ones, and x is split the same way once.
#include "qvl/kernels/linear_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

namespace qvl::kernels {
namespace {

using namespace avx2;

constexpr int64_t kStep = 16;  // inputs per iteration

int64_t prepared_floats(int64_t k) {
  return (k + kStep - 1) / kStep * kStep;
}

// Each 16 inputs as [8 even][8 odd], the last ones padded with zeros.
template <typename T>
void prepare_pairs_avx2(const void* x, int64_t k, float* dst) {
  const typename T::Element* src = static_cast<const typename T::Element*>(x);
  for (int64_t i = 0; i < k; i += kStep) {
    const int64_t left = k - i;
    const __m256 a = left >= 8 ? T::load(src + i) : T::load_n(src + i, left);
    const __m256 b = left >= 16 ? T::load(src + i + 8)
                     : left > 8 ? T::load_n(src + i + 8, left - 8)
                                : _mm256_setzero_ps();
    // By 128-bit lane: a0 a2 b0 b2 | a4 a6 b4 b6, then lanes of 64 bits in order 0 2 1 3.
    const __m256 even = _mm256_shuffle_ps(a, b, 0x88), odd = _mm256_shuffle_ps(a, b, 0xdd);
    _mm256_storeu_ps(dst + i, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8)));
    _mm256_storeu_ps(dst + i + 8, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8)));
  }
}

// x in plain order, padded with zeros to a multiple of 16.
void prepare_plain_avx2(const void* x, int64_t k, float* dst) {
  const size_t bytes = static_cast<size_t>(k) * sizeof(float);
  std::memcpy(dst, x, bytes);
  std::memset(dst + k, 0, static_cast<size_t>(prepared_floats(k)) * sizeof(float) - bytes);
}

// Two vectors of 8 widened weights in the order of the prepared x; `p` has 16 elements.
struct WeightBF16 {
  using Element = BFloat16;
  QVL_VEC_INLINE void load(const BFloat16* p, __m256& a, __m256& b) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    a = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    b = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

struct WeightF16 {
  using Element = Float16;
  QVL_VEC_INLINE void load(const Float16* p, __m256& a, __m256& b) {
    a = F16::load(p);
    b = F16::load(p + 8);
  }
};

struct WeightF32 {
  using Element = float;
  QVL_VEC_INLINE void load(const float* p, __m256& a, __m256& b) {
    a = _mm256_loadu_ps(p);
    b = _mm256_loadu_ps(p + 8);
  }
};

// Which of the passes over the same rows of w this is.
struct Pass {
  int64_t index, count;
};

// c[m, n] for kM rows of x and kN rows of w.
template <typename W, int kM, int kN>
inline void block_avx2(const float* x, int64_t x_stride, const typename W::Element* w, int64_t k, float* c,
                       int64_t ldc, Pass pass = {0, 1}) {
  using Element = typename W::Element;
  __m256 acc[kM][kN][2];
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) acc[m][n][0] = acc[m][n][1] = _mm256_setzero_ps();
  }
  const auto step = [&](int64_t i, const Element* base, int64_t row_stride) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      __m256 b0, b1;
      W::load(base + n * row_stride, b0, b1);
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        acc[m][n][0] = _mm256_fmadd_ps(_mm256_loadu_ps(x + m * x_stride + i), b0, acc[m][n][0]);
        acc[m][n][1] = _mm256_fmadd_ps(_mm256_loadu_ps(x + m * x_stride + i + 8), b1, acc[m][n][1]);
      }
    }
  };
  // The passes over these rows share in asking for the rows that come next: memory must not rest while all but the first
  // read what is in the cache.
  const int64_t row_bytes = k * static_cast<int64_t>(sizeof(Element));
  const char* ahead = reinterpret_cast<const char*>(w + kN * k) + row_bytes * pass.index / pass.count;
  const int64_t ahead_step = kStep * static_cast<int64_t>(sizeof(Element)) / pass.count;
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) _mm_prefetch(ahead + n * row_bytes, _MM_HINT_T0);
    ahead += ahead_step;
    step(i, w + i, k);
  }
  if (i < k) {
    Element rest[kN][kStep];
    std::memset(rest, 0, sizeof(rest));
    for (int n = 0; n < kN; ++n)
      std::memcpy(rest[n], w + n * k + i, static_cast<size_t>(k - i) * sizeof(Element));
    step(i, rest[0], kStep);
  }
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) c[m * ldc + n] = sum_ps(_mm256_add_ps(acc[m][n][0], acc[m][n][1]));
  }
}

template <typename W>
void gemv_f32acc_avx2(const void* x, int64_t x_stride, int64_t m, const void* w, int64_t n, int64_t k,
                      float* c, int64_t ldc) {
  const float* xf = static_cast<const float*>(x);
  const typename W::Element* rows = static_cast<const typename W::Element*>(w);
  int64_t j = 0;
  if (m == 1) {
    for (; j + 4 <= n; j += 4) block_avx2<W, 1, 4>(xf, x_stride, rows + j * k, k, c + j, ldc);
  } else {
    for (; j + 2 <= n; j += 2) {
      const int64_t passes = (m + 1) / 2;
      int64_t r = 0;
      for (; r + 2 <= m; r += 2) {
        block_avx2<W, 2, 2>(xf + r * x_stride, x_stride, rows + j * k, k, c + r * ldc + j, ldc, {r / 2, passes});
      }
      if (r < m) {
        block_avx2<W, 1, 2>(xf + r * x_stride, x_stride, rows + j * k, k, c + r * ldc + j, ldc, {r / 2, passes});
      }
    }
  }
  for (; j < n; ++j) {
    for (int64_t r = 0; r < m; ++r) {
      block_avx2<W, 1, 1>(xf + r * x_stride, x_stride, rows + j * k, k, c + r * ldc + j, ldc);
    }
  }
}

}  // namespace

void set_gemv_avx2(LinearKernels& kernels) {
  kernels.gemv_f32_f32 = {prepared_floats, prepare_plain_avx2, gemv_f32acc_avx2<WeightF32>};
  kernels.gemv_f32_bf16 = {prepared_floats, prepare_pairs_avx2<F32>, gemv_f32acc_avx2<WeightBF16>};
  kernels.gemv_f32_f16 = {prepared_floats, prepare_plain_avx2, gemv_f32acc_avx2<WeightF16>};
  kernels.gemv_bf16_bf16 = {prepared_floats, prepare_pairs_avx2<BF16>, gemv_f32acc_avx2<WeightBF16>};
}

}  // namespace qvl::kernels

#endif  // __x86_64__
