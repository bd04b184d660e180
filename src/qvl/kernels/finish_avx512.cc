// The last step of linear layers for AVX-512.
#include "qvl/kernels/linear_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "qvl/base/dtype.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")

// After the vector.
#include "qvl/kernels/finish_simd.h"

namespace qvl::kernels {
namespace {

struct Vector {
  using F = __m512;
  using F32 = avx512::F32;
  using BF16 = avx512::BF16;
  static constexpr int64_t kWidth = 16;
  template <typename T>
  QVL_VEC_INLINE F load(const typename T::Element* p, int64_t n) {
    return T::load(p, lanes(n));
  }
  template <typename T>
  QVL_VEC_INLINE void store(typename T::Element* p, F v, int64_t n) {
    T::store(p, lanes(n), v);
  }
  QVL_VEC_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  QVL_VEC_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  QVL_VEC_INLINE F silu(F v) { return avx512::silu_ps(v); }
  QVL_VEC_INLINE F gelu_tanh(F v) { return avx512::gelu_tanh_ps(v); }
  QVL_VEC_INLINE F gelu_erf(F v) { return avx512::gelu_erf_ps(v); }

 private:
  QVL_VEC_INLINE __mmask16 lanes(int64_t n) { return avx512::first_lanes(n < 16 ? n : 16); }
};

}  // namespace

void set_finish_avx512(LinearKernels& kernels) {
  simd::set_finish<Vector>(kernels);
}

}  // namespace qvl::kernels

#endif  // __x86_64__
