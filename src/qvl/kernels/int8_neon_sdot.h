// The dot products of a D (int8_neon_simd.h) on processors that have SDOT. Include after the target pragma.
#pragma once

#include "qvl/kernels/int8_neon_simd.h"

namespace qvl::kernels {
namespace {
namespace int8_neon {

struct Sdot {
  QVL_VEC_INLINE int32x4_t dot(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }
  QVL_VEC_INLINE int32x4_t dot2(int32x4_t sum, int8x16_t a, int8x16_t b, int8x16_t c, int8x16_t d) {
    return vdotq_s32(vdotq_s32(sum, a, b), c, d);
  }
};

}  // namespace int8_neon
}  // namespace
}  // namespace qvl::kernels
