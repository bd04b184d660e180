// Shortlist kernels in plain C++: what the others are compared with.
#include <cstring>

#include "qvl/base/dtype.h"
#include "qvl/kernels/shortlist_kernels.h"

namespace qvl::kernels {
namespace {

using quant::kShortlistApart, quant::kShortlistBlock, quant::kShortlistCoarseBytes, quant::kShortlistFineCodeBytes, quant::kShortlistGroup, quant::kShortlistScaleBytes;

constexpr auto kScaleBytes = static_cast<int64_t>(sizeof(BFloat16));

float scale_at(const std::byte* p) {
  BFloat16 s;
  std::memcpy(&s, p, sizeof(s));
  return to_float(s);
}

void coarse(const ShortlistRow* x, int n, const std::byte* codes, const std::byte* scales, int64_t blocks, int64_t groups, float* out,
            int64_t stride) {
  for (int row = 0; row < n; ++row) {
    for (int64_t i = 0; i < groups * kShortlistGroup; ++i) {
      const int64_t group = i / kShortlistGroup, in_group = i % kShortlistGroup;
      float sum = 0;
      for (int64_t b = 0; b < blocks; ++b) {
        const std::byte* block = codes + (group * blocks + b) * kShortlistCoarseBytes;
        const int8_t* q = x[row].q + b * kShortlistBlock;
        int products = 0;
        for (int64_t c = 0; c < kShortlistBlock; ++c) {
          products += q[c] * quant::shortlist_code(block[quant::shortlist_coarse_byte(in_group, c % kShortlistApart)], c);
        }
        const float s = scale_at(scales + (group * blocks + b) * kShortlistScaleBytes + in_group * kScaleBytes);
        sum += s * (x[row].coarse_factor[b] * static_cast<float>(products) - x[row].coarse_offset[b]);
      }
      out[row * stride + i] = sum;
    }
  }
}

float fine(const ShortlistRow& x, const std::byte* fine, int64_t blocks) {
  const std::byte* scales = fine + blocks * kShortlistFineCodeBytes;
  float sum = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const std::byte* codes = fine + b * kShortlistFineCodeBytes;
    const int8_t* q = x.q + b * kShortlistBlock;
    int products = 0;
    for (int64_t c = 0; c < kShortlistBlock; ++c) products += q[c] * quant::shortlist_code(codes[c % kShortlistApart], c);
    sum += scale_at(scales + b * kScaleBytes) * (x.fine_factor[b] * static_cast<float>(products) - x.fine_offset[b]);
  }
  return sum;
}

}  // namespace

const ShortlistKernels& shortlist_kernels_scalar() {
  static const ShortlistKernels kernels{coarse, fine};
  return kernels;
}

}  // namespace qvl::kernels
