// The last step of linear layers for AVX2: bias, activation, residual, rounding; SwiGLU's product; row sums.
#include "qvl/kernels/linear_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

namespace qvl::kernels {
namespace {

using namespace avx2;

template <typename T>
QVL_VEC_INLINE __m256 load(const typename T::Element* p, int64_t n) {
  return n >= 8 ? T::load(p) : T::load_n(p, n);
}

template <typename T>
QVL_VEC_INLINE void store(typename T::Element* p, __m256 v, int64_t n) {
  if (n >= 8) {
    T::store(p, v);
  } else {
    T::store_n(p, v, n);
  }
}

template <Activation kActivation>
QVL_VEC_INLINE __m256 activate(__m256 v) {
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh_ps(v);
  if constexpr (kActivation == Activation::kGeluErf) return gelu_erf_ps(v);
  return v;
}

template <typename T, Activation kActivation>
void finish_rows(const FinishArgs& f) {
  using Element = typename T::Element;
  for (int64_t r = 0; r < f.rows; ++r) {
    Element* y = static_cast<Element*>(f.y) + r * f.y_stride;
    const Element* residual =
        f.residual == nullptr ? nullptr : static_cast<const Element*>(f.residual) + r * f.residual_stride;
    for (int64_t j = 0; j < f.cols; j += 8) {
      const int64_t n = f.cols - j;
      __m256 v = load<F32>(f.c + r * f.ldc + j, n);
      if (f.bias != nullptr) v = _mm256_add_ps(v, load<F32>(f.bias + j, n));
      if constexpr (kActivation != Activation::kNone) v = activate<kActivation>(T::round(v));
      if (residual != nullptr) v = _mm256_add_ps(T::round(v), load<T>(residual + j, n));
      store<T>(y + j, v, n);
    }
  }
}

template <typename T>
void finish_avx2(const FinishArgs& f) {
  switch (f.activation) {
    case Activation::kNone:
      return finish_rows<T, Activation::kNone>(f);
    case Activation::kGeluTanh:
      return finish_rows<T, Activation::kGeluTanh>(f);
    case Activation::kGeluErf:
      return finish_rows<T, Activation::kGeluErf>(f);
  }
}

template <typename T>
void finish_swiglu_avx2(const FinishArgs& f) {
  using Element = typename T::Element;
  for (int64_t r = 0; r < f.rows; ++r) {
    Element* y = static_cast<Element*>(f.y) + r * f.y_stride;
    for (int64_t j = 0; j < f.cols; j += 8) {
      const int64_t n = f.cols - j;
      const __m256 gate = T::round(load<F32>(f.c + r * f.ldc + j, n));
      const __m256 up = T::round(load<F32>(f.c2 + r * f.ldc + j, n));
      store<T>(y + j, _mm256_mul_ps(T::round(silu_ps(gate)), up), n);
    }
  }
}

template <typename T>
void add_avx2(void* dst, const void* src, int64_t n) {
  using Element = typename T::Element;
  Element* d = static_cast<Element*>(dst);
  const Element* s = static_cast<const Element*>(src);
  for (int64_t i = 0; i < n; i += 8) {
    store<T>(d + i, _mm256_add_ps(load<T>(d + i, n - i), load<T>(s + i, n - i)), n - i);
  }
}

}  // namespace

void set_finish_avx2(LinearKernels& kernels) {
  kernels.finish_f32 = finish_avx2<F32>;
  kernels.finish_bf16 = finish_avx2<BF16>;
  kernels.finish_swiglu_f32 = finish_swiglu_avx2<F32>;
  kernels.finish_swiglu_bf16 = finish_swiglu_avx2<BF16>;
  kernels.add_f32 = add_avx2<F32>;
  kernels.add_bf16 = add_avx2<BF16>;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
