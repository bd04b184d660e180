// Integer linear kernels for NEON without dot products: products of bytes in 16 bits, summed in pairs.
#include "qvl/kernels/int8_kernels.h"

#if defined(__aarch64__)

#include "qvl/kernels/int8_neon_simd.h"

namespace qvl::kernels {
namespace {

struct Multiply {
  static constexpr int kUnit = 4, kTileRows = 4, kVectors = 4;

  QVL_VEC_INLINE int32x4_t dot(int32x4_t sum, int8x16_t a, int8x16_t b) {
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(vmull_high_s8(a, b))));
  }
  // Two products fit 16 bits: x is never -128, so they are 2 * 128 * 127 at most.
  QVL_VEC_INLINE int32x4_t dot2(int32x4_t sum, int8x16_t a, int8x16_t b, int8x16_t c, int8x16_t d) {
    const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vget_low_s8(c), vget_low_s8(d));
    const int16x8_t high = vmlal_high_s8(vmull_high_s8(a, b), c, d);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
  template <int kWord>
  QVL_VEC_INLINE int32x4_t dot_word(int32x4_t sum, int8x16_t w, int8x16_t x) {
    return dot(sum, w, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), kWord)));
  }
  template <int kM>
  QVL_VEC_INLINE void group(const uint8_t* x, int64_t x_stride, const std::byte* values, int64_t columns,
                            int32x4_t (&sums)[kM][kVectors]) {
    int8_neon::group_of_words<Multiply, kM>(x, x_stride, values, columns, sums);
  }
};

}  // namespace

const Int8Kernels& int8_kernels_neon() {
  static const Int8Kernels kernels = int8_neon::kernels<Multiply>();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __aarch64__
