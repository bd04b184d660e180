// Integer linear kernels for NEON with dot products: SDOT sums four products of signed bytes in each lane.
#include "qvl/kernels/int8_kernels.h"

#if defined(__aarch64__)

// Standard headers before the target: a linker might keep this file's copy of their functions for everyone.
#include <arm_neon.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "qvl/kernels/int8_gemv_loop.h"
#include "qvl/kernels/int8_weight.h"
#include "qvl/kernels/vec_math_neon.h"

#pragma GCC target("arch=armv8.2-a+dotprod")

#include "qvl/kernels/int8_neon_sdot.h"

namespace qvl::kernels {
namespace {

struct Dot : int8_neon::Sdot {
  static constexpr int kUnit = 4, kTileRows = 4, kVectors = 4;

  template <int kWord>
  QVL_VEC_INLINE int32x4_t dot_word(int32x4_t sum, int8x16_t w, int8x16_t x) {
    return vdotq_laneq_s32(sum, w, x, kWord);
  }
  template <int kM>
  QVL_VEC_INLINE void group(const uint8_t* x, int64_t x_stride, const std::byte* values, int64_t columns,
                            int32x4_t (&sums)[kM][kVectors]) {
    int8_neon::group_of_words<Dot, kM>(x, x_stride, values, columns, sums);
  }
};

}  // namespace

const Int8Kernels& int8_kernels_neon_dotprod() {
  static const Int8Kernels kernels = int8_neon::kernels<Dot>();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __aarch64__
