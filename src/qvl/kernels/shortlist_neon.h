// Shortlist kernels for NEON over a type D that adds products of bytes. Include after the target pragma, if any.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "qvl/kernels/attention_vec_neon.h"
#include "qvl/kernels/shortlist_simd.h"

namespace qvl::kernels {

// D::Sum: sums of products, room for those of a block; D::zero(), D::add(sum, a, b) of 16 bytes each, D::words(sum): of four bytes
// each.
template <typename D>
struct ShortlistNeonBlocks {
  static constexpr int kParts = quant::kShortlistParts;  // also of a group's rows
  static constexpr int64_t kApart = quant::kShortlistApart, kWord = quant::kShortlistWord, kBytes = 16;

  template <int N, typename Add>
  QVL_INLINE void coarse(const std::byte* codes, const int8_t* const (&q)[N], const Add& add) {
#pragma GCC unroll 4
    for (int quarter = 0; quarter < kParts; ++quarter) {
      typename D::Sum sums[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[n] = D::zero();
      const uint8_t* words = reinterpret_cast<const uint8_t*>(codes) + quarter * kBytes;
      for (int64_t word = 0; word < kApart; word += kWord, words += kParts * kBytes) {
        uint8x16_t high[kParts];
        unpack(words, high);
#pragma GCC unroll 4
        for (int k = 0; k < kParts; ++k) {
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            int32_t x;
            std::memcpy(&x, q[n] + k * kApart + word, sizeof(x));
            sums[n] = D::add(sums[n], vreinterpretq_s8_u8(high[k]), vreinterpretq_s8_s32(vdupq_n_s32(x)));
          }
        }
      }
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) add(n, quarter, vcvtq_f32_s32(D::words(sums[n])));
    }
  }

  QVL_INLINE float32x4_t fine(const std::byte* codes, const int8_t* q) {
    typename D::Sum sums = D::zero();
#pragma GCC unroll 4
    for (int64_t quarter = 0; quarter < kParts; ++quarter) {
      uint8x16_t high[kParts];
      unpack(reinterpret_cast<const uint8_t*>(codes) + quarter * kBytes, high);
#pragma GCC unroll 4
      for (int k = 0; k < kParts; ++k) sums = D::add(sums, vreinterpretq_s8_u8(high[k]), vld1q_s8(q + k * kApart + quarter * kBytes));
    }
    return vcvtq_f32_s32(D::words(sums));
  }

 private:
  QVL_INLINE void unpack(const uint8_t* codes, uint8x16_t (&two)[kParts]) {
    const uint8x16_t packed = vld1q_u8(codes), low = vdupq_n_u8(3);
    two[0] = vandq_u8(packed, low);
    two[1] = vandq_u8(vshrq_n_u8(packed, 2), low);
    two[2] = vandq_u8(vshrq_n_u8(packed, 4), low);
    two[3] = vshrq_n_u8(packed, 6);
  }
};

}  // namespace qvl::kernels
