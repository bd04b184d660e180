// Bandwidth-bound linear kernels for NEON: weights stream through once, widened in registers. x is widened and padded
// with zeros once a call.
#include "qvl/kernels/linear_neon.h"

#if defined(__aarch64__)

#include <cstring>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_neon.h"

namespace qvl::kernels {
namespace {

using namespace neon;

constexpr int kVectors = 4;
constexpr int64_t kStep = 4 * kVectors;  // inputs per iteration
constexpr int64_t kPrefetchBytes = 1024;

int64_t prepared_floats(int64_t k) {
  return (k + kStep - 1) / kStep * kStep;
}

template <typename T>
void prepare_neon(const void* x, int64_t k, float* dst) {
  const typename T::Element* src = static_cast<const typename T::Element*>(x);
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) vst1q_f32(dst + i, T::load(src + i));
  if (i < k) {
    vst1q_f32(dst + i, T::load_n(src + i, k - i));
    i += 4;
  }
  for (; i < prepared_floats(k); i += 4) vst1q_f32(dst + i, vdupq_n_f32(0.0f));
}

// Four vectors of 4 widened weights; `p` has 16 elements.
template <typename T>
QVL_VEC_INLINE void load_weights(const typename T::Element* p, float32x4_t* v) {
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) v[i] = T::load(p + 4 * i);
}

// c[m, n] for kM rows of x and kN rows of w.
template <typename T, int kM, int kN>
inline void block_neon(const float* x, int64_t x_stride, const typename T::Element* w, int64_t k, float* c,
                       int64_t ldc) {
  using Element = typename T::Element;
  float32x4_t acc[kM][kN][kVectors];
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[m][n][v] = vdupq_n_f32(0.0f);
    }
  }
  const auto step = [&](int64_t i, const Element* base, int64_t row_stride) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      float32x4_t b[kVectors];
      load_weights<T>(base + n * row_stride, b);
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          acc[m][n][v] = vfmaq_f32(acc[m][n][v], vld1q_f32(x + m * x_stride + i + 4 * v), b[v]);
        }
      }
    }
  };
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      __builtin_prefetch(reinterpret_cast<const char*>(w + n * k + i) + kPrefetchBytes);
    }
    step(i, w + i, k);
  }
  if (i < k) {
    Element rest[kN][kStep];
    std::memset(rest, 0, sizeof(rest));
    for (int n = 0; n < kN; ++n) {
      std::memcpy(rest[n], w + n * k + i, static_cast<size_t>(k - i) * sizeof(Element));
    }
    step(i, rest[0], kStep);
  }
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      const float32x4_t* a = acc[m][n];
      c[m * ldc + n] = vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3])));
    }
  }
}

template <typename T>
void gemv_f32acc_neon(const void* x, int64_t x_stride, int64_t m, const void* w, int64_t n, int64_t k, float* c,
                      int64_t ldc) {
  const float* xf = static_cast<const float*>(x);
  const typename T::Element* rows = static_cast<const typename T::Element*>(w);
  int64_t j = 0;
  if (m == 1) {
    for (; j + 4 <= n; j += 4) block_neon<T, 1, 4>(xf, x_stride, rows + j * k, k, c + j, ldc);
  } else {
    for (; j + 2 <= n; j += 2) {
      int64_t r = 0;
      for (; r + 2 <= m; r += 2) {
        block_neon<T, 2, 2>(xf + r * x_stride, x_stride, rows + j * k, k, c + r * ldc + j, ldc);
      }
      if (r < m) block_neon<T, 1, 2>(xf + r * x_stride, x_stride, rows + j * k, k, c + r * ldc + j, ldc);
    }
  }
  for (; j < n; ++j) {
    for (int64_t r = 0; r < m; ++r) {
      block_neon<T, 1, 1>(xf + r * x_stride, x_stride, rows + j * k, k, c + r * ldc + j, ldc);
    }
  }
}

}  // namespace

void set_gemv_neon(LinearKernels& kernels) {
  kernels.gemv_f32_f32 = {prepared_floats, prepare_neon<F32>, gemv_f32acc_neon<F32>};
  kernels.gemv_f32_bf16 = {prepared_floats, prepare_neon<F32>, gemv_f32acc_neon<BF16>};
  kernels.gemv_f32_f16 = {prepared_floats, prepare_neon<F32>, gemv_f32acc_neon<F16>};
  kernels.gemv_bf16_bf16 = {prepared_floats, prepare_neon<BF16>, gemv_f32acc_neon<BF16>};
}

}  // namespace qvl::kernels

#endif  // __aarch64__
