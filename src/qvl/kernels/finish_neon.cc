// The last step of linear layers for NEON.
#include "qvl/kernels/linear_neon.h"

#if defined(__aarch64__)

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_neon.h"

// After the vector.
#include "qvl/kernels/finish_simd.h"

namespace qvl::kernels {
namespace {

struct Vector {
  using F = float32x4_t;
  using F32 = neon::F32;
  using BF16 = neon::BF16;
  static constexpr int64_t kWidth = 4;
  template <typename T>
  QVL_VEC_INLINE F load(const typename T::Element* p, int64_t n) {
    return n >= 4 ? T::load(p) : T::load_n(p, n);
  }
  template <typename T>
  QVL_VEC_INLINE void store(typename T::Element* p, F v, int64_t n) {
    if (n >= 4) {
      T::store(p, v);
    } else {
      T::store_n(p, v, n);
    }
  }
  QVL_VEC_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
  QVL_VEC_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
  QVL_VEC_INLINE F silu(F v) { return neon::silu_ps(v); }
  QVL_VEC_INLINE F gelu_tanh(F v) { return neon::gelu_tanh_ps(v); }
  QVL_VEC_INLINE F gelu_erf(F v) { return neon::gelu_erf_ps(v); }
};

}  // namespace

void set_finish_neon(LinearKernels& kernels) {
  simd::set_finish<Vector>(kernels);
}

}  // namespace qvl::kernels

#endif  // __aarch64__
