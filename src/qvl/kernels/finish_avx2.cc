// The last step of linear layers for AVX2.
#include "qvl/kernels/linear_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

// After the vector.
#include "qvl/kernels/finish_simd.h"

namespace qvl::kernels {
namespace {

struct Vector {
  using F = __m256;
  using F32 = avx2::F32;
  using BF16 = avx2::BF16;
  static constexpr int64_t kWidth = 8;
  template <typename T>
  QVL_VEC_INLINE F load(const typename T::Element* p, int64_t n) {
    return n >= 8 ? T::load(p) : T::load_n(p, n);
  }
  template <typename T>
  QVL_VEC_INLINE void store(typename T::Element* p, F v, int64_t n) {
    if (n >= 8) {
      T::store(p, v);
    } else {
      T::store_n(p, v, n);
    }
  }
  QVL_VEC_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  QVL_VEC_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  QVL_VEC_INLINE F silu(F v) { return avx2::silu_ps(v); }
  QVL_VEC_INLINE F gelu_tanh(F v) { return avx2::gelu_tanh_ps(v); }
  QVL_VEC_INLINE F gelu_erf(F v) { return avx2::gelu_erf_ps(v); }
};

}  // namespace

void set_finish_avx2(LinearKernels& kernels) {
  simd::set_finish<Vector>(kernels);
}

}  // namespace qvl::kernels

#endif  // __x86_64__
