// The last step of linear layers for AVX-512: bias, activation, residual, rounding; SwiGLU's product; row
// sums.
#include "qvl/kernels/linear_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")

namespace qvl::kernels {
namespace {

using namespace avx512;

template <Activation kActivation>
inline __m512 activate(__m512 v) {
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh_ps(v);
  if constexpr (kActivation == Activation::kGeluErf) return gelu_erf_ps(v);
  return v;
}

// Lanes of the vector that starts at column j of `cols`.
inline __mmask16 lanes(int64_t j, int64_t cols) {
  return first_lanes(cols - j < 16 ? cols - j : 16);
}

template <typename T, Activation kActivation>
void finish_rows(const FinishArgs& f) {
  using Element = typename T::Element;
  for (int64_t r = 0; r < f.rows; ++r) {
    Element* y = static_cast<Element*>(f.y) + r * f.y_stride;
    const Element* residual =
        f.residual == nullptr ? nullptr : static_cast<const Element*>(f.residual) + r * f.residual_stride;
    for (int64_t j = 0; j < f.cols; j += 16) {
      const __mmask16 mask = lanes(j, f.cols);
      __m512 v = _mm512_maskz_loadu_ps(mask, f.c + r * f.ldc + j);
      if (f.bias != nullptr) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, f.bias + j));
      if constexpr (kActivation != Activation::kNone) v = activate<kActivation>(T::round(v));
      if (residual != nullptr) v = _mm512_add_ps(T::round(v), T::load(residual + j, mask));
      T::store(y + j, mask, v);
    }
  }
}

template <typename T>
void finish_avx512(const FinishArgs& f) {
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
void finish_swiglu_avx512(const FinishArgs& f) {
  using Element = typename T::Element;
  for (int64_t r = 0; r < f.rows; ++r) {
    Element* y = static_cast<Element*>(f.y) + r * f.y_stride;
    for (int64_t j = 0; j < f.cols; j += 16) {
      const __mmask16 mask = lanes(j, f.cols);
      const __m512 gate = T::round(_mm512_maskz_loadu_ps(mask, f.c + r * f.ldc + j));
      const __m512 up = T::round(_mm512_maskz_loadu_ps(mask, f.c2 + r * f.ldc + j));
      T::store(y + j, mask, _mm512_mul_ps(T::round(silu_ps(gate)), up));
    }
  }
}

template <typename T>
void add_avx512(void* dst, const void* src, int64_t n) {
  using Element = typename T::Element;
  Element* d = static_cast<Element*>(dst);
  const Element* s = static_cast<const Element*>(src);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = lanes(i, n);
    T::store(d + i, mask, _mm512_add_ps(T::load(d + i, mask), T::load(s + i, mask)));
  }
}

}  // namespace

void set_finish_avx512(LinearKernels& kernels) {
  kernels.finish_f32 = finish_avx512<F32>;
  kernels.finish_bf16 = finish_avx512<BF16>;
  kernels.finish_swiglu_f32 = finish_swiglu_avx512<F32>;
  kernels.finish_swiglu_bf16 = finish_swiglu_avx512<BF16>;
  kernels.add_f32 = add_avx512<F32>;
  kernels.add_bf16 = add_avx512<BF16>;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
