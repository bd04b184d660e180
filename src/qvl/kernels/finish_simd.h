// The last step of linear layers over a vector: bias, activation, residual, rounding; SwiGLU's product; row sums (private
// to this room; spec 5.4, 6.4). Include after the target pragma and the math of the instruction set; everything is a
// template, so that each instruction set gets functions of its own.
//
// V:
//   F, a vector of kWidth floats; F32 and BF16, element types with round(F) (vec_math_*.h)
//   load<T>(p, n), store<T>(p, v, n): the first min(n, kWidth) elements, n > 0; lanes beyond them are 0
//   add, mul, silu, gelu_tanh, gelu_erf
#pragma once

#include <cstdint>

#include "qvl/kernels/linear_kernels.h"

namespace qvl::kernels::simd {

template <typename V>
struct Finish {
  using F = typename V::F;

  template <Activation kActivation>
  static inline __attribute__((always_inline)) F activate(F v) {
    if constexpr (kActivation == Activation::kGeluTanh) return V::gelu_tanh(v);
    if constexpr (kActivation == Activation::kGeluErf) return V::gelu_erf(v);
    return v;
  }

  template <typename T, Activation kActivation>
  static void rows(const FinishArgs& f) {
    using Element = typename T::Element;
    for (int64_t r = 0; r < f.rows; ++r) {
      Element* y = static_cast<Element*>(f.y) + r * f.y_stride;
      const Element* residual =
          f.residual == nullptr ? nullptr : static_cast<const Element*>(f.residual) + r * f.residual_stride;
      for (int64_t j = 0; j < f.cols; j += V::kWidth) {
        const int64_t n = f.cols - j;
        F v = V::template load<typename V::F32>(f.c + r * f.ldc + j, n);
        if (f.bias != nullptr) v = V::add(v, V::template load<typename V::F32>(f.bias + j, n));
        if constexpr (kActivation != Activation::kNone) v = activate<kActivation>(T::round(v));
        if (residual != nullptr) v = V::add(T::round(v), V::template load<T>(residual + j, n));
        V::template store<T>(y + j, v, n);
      }
    }
  }

  template <typename T>
  static void finish(const FinishArgs& f) {
    switch (f.activation) {
      case Activation::kNone:
        return rows<T, Activation::kNone>(f);
      case Activation::kGeluTanh:
        return rows<T, Activation::kGeluTanh>(f);
      case Activation::kGeluErf:
        return rows<T, Activation::kGeluErf>(f);
    }
  }

  template <typename T>
  static void swiglu(const FinishArgs& f) {
    using Element = typename T::Element;
    for (int64_t r = 0; r < f.rows; ++r) {
      Element* y = static_cast<Element*>(f.y) + r * f.y_stride;
      for (int64_t j = 0; j < f.cols; j += V::kWidth) {
        const int64_t n = f.cols - j;
        const F gate = T::round(V::template load<typename V::F32>(f.c + r * f.ldc + j, n));
        const F up = T::round(V::template load<typename V::F32>(f.c2 + r * f.ldc + j, n));
        V::template store<T>(y + j, V::mul(T::round(V::silu(gate)), up), n);
      }
    }
  }

  template <typename T>
  static void add(void* dst, const void* src, int64_t n) {
    using Element = typename T::Element;
    Element* d = static_cast<Element*>(dst);
    const Element* s = static_cast<const Element*>(src);
    for (int64_t i = 0; i < n; i += V::kWidth) {
      V::template store<T>(d + i, V::add(V::template load<T>(d + i, n - i), V::template load<T>(s + i, n - i)), n - i);
    }
  }
};

template <typename V>
void set_finish(LinearKernels& kernels) {
  using F32 = typename V::F32;
  using BF16 = typename V::BF16;
  kernels.finish_f32 = Finish<V>::template finish<F32>;
  kernels.finish_bf16 = Finish<V>::template finish<BF16>;
  kernels.finish_swiglu_f32 = Finish<V>::template swiglu<F32>;
  kernels.finish_swiglu_bf16 = Finish<V>::template swiglu<BF16>;
  kernels.add_f32 = Finish<V>::template add<F32>;
  kernels.add_bf16 = Finish<V>::template add<BF16>;
}

}  // namespace qvl::kernels::simd
