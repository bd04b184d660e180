// The loops of shortlist kernels over a vector type V (attention_vec_*.h) and a type B that multiplies blocks. Include after the
// target pragma and V's header.
//
// B::coarse<N>(codes, q, add): the integers of one block of a group for N rows of x, by add(n, j, vector of floats): row j * kWidth
// and those behind it. B::fine(codes, q): a vector of floats whose lanes sum to the integer of one row.
#pragma once

#include <cstdint>
#include <cstring>

#include "qvl/base/dtype.h"
#include "qvl/kernels/shortlist_kernels.h"

namespace qvl::kernels::simd {

template <typename V, typename B>
struct Shortlists {
  using F = typename V::F;
  static constexpr int64_t kW = V::kWidth;
  static constexpr int kVectors = static_cast<int>(quant::kShortlistGroup / kW);

  template <int N>
  static void coarse_groups(const ShortlistRow* x, const std::byte* coarse, const std::byte* scales, int64_t blocks, int64_t groups,
                            float* out, int64_t stride) {
    for (int64_t g = 0; g < groups; ++g, out += quant::kShortlistGroup) {
      F sums[N][kVectors];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sums[n][j] = V::zero();
      }
      for (int64_t b = 0; b < blocks; ++b, coarse += quant::kShortlistCoarseBytes, scales += quant::kShortlistScaleBytes) {
        const int8_t* q[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) q[n] = x[n].q + b * quant::kShortlistBlock;
        const BFloat16* scale = reinterpret_cast<const BFloat16*>(scales);
        B::template coarse<N>(coarse, q, [&](int n, int j, F products) __attribute__((always_inline)) {
          const F scaled = V::fms(products, V::set1(x[n].coarse_factor[b]), V::set1(x[n].coarse_offset[b]));
          sums[n][j] = V::fma(scaled, V::load(scale + j * kW), sums[n][j]);
        });
      }
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) V::store(out + n * stride + j * kW, sums[n][j]);
      }
    }
  }

  static void coarse(const ShortlistRow* x, int n, const std::byte* coarse, const std::byte* scales, int64_t blocks, int64_t groups,
                     float* out, int64_t stride) {
    static_assert(ShortlistKernels::kMostRows == 4);
    switch (n) {
      case 1:
        return coarse_groups<1>(x, coarse, scales, blocks, groups, out, stride);
      case 2:
        return coarse_groups<2>(x, coarse, scales, blocks, groups, out, stride);
      case 3:
        return coarse_groups<3>(x, coarse, scales, blocks, groups, out, stride);
      default:
        return coarse_groups<4>(x, coarse, scales, blocks, groups, out, stride);
    }
  }

  static float fine(const ShortlistRow& x, const std::byte* fine, int64_t blocks) {
    const std::byte* scales = fine + blocks * quant::kShortlistFineCodeBytes;
    F sum = V::zero();
    float offset = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      BFloat16 scale;
      std::memcpy(&scale, scales + b * static_cast<int64_t>(sizeof(scale)), sizeof(scale));
      const float s = to_float(scale);
      sum = V::fma(B::fine(fine + b * quant::kShortlistFineCodeBytes, x.q + b * quant::kShortlistBlock), V::set1(s * x.fine_factor[b]), sum);
      offset += s * x.fine_offset[b];
    }
    return V::reduce_add(sum) - offset;
  }
};

template <typename V, typename B>
const ShortlistKernels& shortlist_kernels() {
  static const ShortlistKernels kernels{Shortlists<V, B>::coarse, Shortlists<V, B>::fine};
  return kernels;
}

}  // namespace qvl::kernels::simd
