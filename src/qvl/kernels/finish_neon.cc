// The last step of linear layers for NEON: bias, activation, residual, rounding; SwiGLU's product; row sums.
#include "qvl/kernels/linear_neon.h"

#if defined(__aarch64__)

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_neon.h"

namespace qvl::kernels {
namespace {

using namespace neon;

template <typename T>
QVL_VEC_INLINE float32x4_t load(const typename T::Element* p, int64_t n) {
  return n >= 4 ? T::load(p) : T::load_n(p, n);
}

template <typename T>
QVL_VEC_INLINE void store(typename T::Element* p, float32x4_t v, int64_t n) {
  if (n >= 4) {
    T::store(p, v);
  } else {
    T::store_n(p, v, n);
  }
}

template <Activation kActivation>
QVL_VEC_INLINE float32x4_t activate(float32x4_t v) {
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
    for (int64_t j = 0; j < f.cols; j += 4) {
      const int64_t n = f.cols - j;
      float32x4_t v = load<F32>(f.c + r * f.ldc + j, n);
      if (f.bias != nullptr) v = vaddq_f32(v, load<F32>(f.bias + j, n));
      if constexpr (kActivation != Activation::kNone) v = activate<kActivation>(T::round(v));
      if (residual != nullptr) v = vaddq_f32(T::round(v), load<T>(residual + j, n));
      store<T>(y + j, v, n);
    }
  }
}

template <typename T>
void finish_neon(const FinishArgs& f) {
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
void finish_swiglu_neon(const FinishArgs& f) {
  using Element = typename T::Element;
  for (int64_t r = 0; r < f.rows; ++r) {
    Element* y = static_cast<Element*>(f.y) + r * f.y_stride;
    for (int64_t j = 0; j < f.cols; j += 4) {
      const int64_t n = f.cols - j;
      const float32x4_t gate = T::round(load<F32>(f.c + r * f.ldc + j, n));
      const float32x4_t up = T::round(load<F32>(f.c2 + r * f.ldc + j, n));
      store<T>(y + j, vmulq_f32(T::round(silu_ps(gate)), up), n);
    }
  }
}

template <typename T>
void add_neon(void* dst, const void* src, int64_t n) {
  using Element = typename T::Element;
  Element* d = static_cast<Element*>(dst);
  const Element* s = static_cast<const Element*>(src);
  for (int64_t i = 0; i < n; i += 4) {
    store<T>(d + i, vaddq_f32(load<T>(d + i, n - i), load<T>(s + i, n - i)), n - i);
  }
}

}  // namespace

void set_finish_neon(LinearKernels& kernels) {
  kernels.finish_f32 = finish_neon<F32>;
  kernels.finish_bf16 = finish_neon<BF16>;
  kernels.finish_swiglu_f32 = finish_swiglu_neon<F32>;
  kernels.finish_swiglu_bf16 = finish_swiglu_neon<BF16>;
  kernels.add_f32 = add_neon<F32>;
  kernels.add_bf16 = add_neon<BF16>;
}

}  // namespace qvl::kernels

#endif  // __aarch64__
