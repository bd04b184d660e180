// Shortlist kernels for NEON without dot products.
#include "qvl/kernels/shortlist_kernels.h"

#if defined(__aarch64__)

#include "qvl/kernels/shortlist_neon.h"

namespace qvl::kernels {
namespace {

// 16 bits hold a lane's products of a block: 64 of at most 3 * 127.
struct Multiply {
  struct Sum {
    int16x8_t low, high;
  };
  QVL_INLINE Sum zero() { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
  QVL_INLINE Sum add(Sum sum, int8x16_t a, int8x16_t b) {
    return {vmlal_s8(sum.low, vget_low_s8(a), vget_low_s8(b)), vmlal_high_s8(sum.high, a, b)};
  }
  QVL_INLINE int32x4_t words(Sum sum) { return vpaddq_s32(vpaddlq_s16(sum.low), vpaddlq_s16(sum.high)); }
};

}  // namespace

const ShortlistKernels& shortlist_kernels_neon() {
  return simd::shortlist_kernels<VecNeon, ShortlistNeonBlocks<Multiply>>();
}

}  // namespace qvl::kernels

#endif  // __aarch64__
