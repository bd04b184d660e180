// Integer linear kernels for NEON with matrix products: SMMLA multiplies two rows of eight signed bytes by two others
// into 2 x 2 sums. Tiles take it; the GEMV, whose rows of x are few, takes SDOT.
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

#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")

#include "qvl/kernels/int8_neon_sdot.h"

namespace qvl::kernels {
namespace {

// 8 rows x 8 outputs = 4 x 4 accumulators of 2 x 2, 4 operands of x.
struct Matrix8 : int8_neon::Sdot {
  static constexpr int kUnit = 8, kTileRows = 8, kVectors = 2;

  template <int kM>
  QVL_VEC_INLINE void group(const uint8_t* x, int64_t x_stride, const std::byte* values, int64_t columns,
                            int32x4_t (&sums)[kM][kVectors]) {
    constexpr int kRowPairs = (kM + 1) / 2, kOutputPairs = 2 * kVectors;
    int32x4_t acc[kRowPairs][kOutputPairs];
#pragma GCC unroll 4
    for (int r = 0; r < kRowPairs; ++r) {
#pragma GCC unroll 4
      for (int o = 0; o < kOutputPairs; ++o) acc[r][o] = vdupq_n_s32(0);
    }
    const int8_t* w = reinterpret_cast<const int8_t*>(values);
    for (int64_t i = 0; i < columns; i += 16) {
      int64x2_t first[kRowPairs], second[kRowPairs];
#pragma GCC unroll 4
      for (int r = 0; r < kRowPairs; ++r) {
        // A last row without a neighbour is its own.
        const int64x2_t a = vreinterpretq_s64_s8(int8_neon::load_x(x + 2 * r * x_stride + i));
        const int64x2_t b =
            2 * r + 1 < kM ? vreinterpretq_s64_s8(int8_neon::load_x(x + (2 * r + 1) * x_stride + i)) : a;
        first[r] = vzip1q_s64(a, b);
        second[r] = vzip2q_s64(a, b);
      }
      const auto eight = [&](const int64x2_t* rows) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int o = 0; o < kOutputPairs; ++o, w += 16) {
          const int8x16_t outputs = vld1q_s8(w);
#pragma GCC unroll 4
          for (int r = 0; r < kRowPairs; ++r) {
            acc[r][o] = vmmlaq_s32(acc[r][o], vreinterpretq_s8_s64(rows[r]), outputs);
          }
        }
      };
      eight(first);
      eight(second);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const int64x2_t a = vreinterpretq_s64_s32(acc[m / 2][2 * v]), b = vreinterpretq_s64_s32(acc[m / 2][2 * v + 1]);
        sums[m][v] = vreinterpretq_s32_s64(m % 2 == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b));
      }
    }
  }
};

}  // namespace

const Int8Kernels& int8_kernels_neon_i8mm() {
  static const Int8Kernels kernels = int8_neon::kernels<Matrix8>();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __aarch64__
