// Shortlist kernels for NEON with dot products.
#include "qvl/kernels/shortlist_kernels.h"

#if defined(__aarch64__)

// Standard headers before the target: a linker might keep this file's copy of their functions for everyone.
#include <arm_neon.h>

#include <cstring>

#include "qvl/kernels/vec_math_neon.h"

#pragma GCC target("arch=armv8.2-a+dotprod")

#include "qvl/kernels/shortlist_neon.h"

namespace qvl::kernels {
namespace {

struct Dot {
  using Sum = int32x4_t;
  QVL_INLINE Sum zero() { return vdupq_n_s32(0); }
  QVL_INLINE Sum add(Sum sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }
  QVL_INLINE int32x4_t words(Sum sum) { return sum; }
};

}  // namespace

const ShortlistKernels& shortlist_kernels_neon_dotprod() {
  return simd::shortlist_kernels<VecNeon, ShortlistNeonBlocks<Dot>>();
}

}  // namespace qvl::kernels

#endif  // __aarch64__
