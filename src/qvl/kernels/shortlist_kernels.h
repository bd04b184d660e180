// The building blocks of shortlist.cc for one instruction set: sums of products of a block are exact integers, those of blocks are
// added up in float32 in an order that depends on the number of columns alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qvl/quant/shortlist.h"

namespace qvl::kernels {

// One row of x. With I the sum of a block's q times the codes, a block of scale s adds s * (factor * I - offset).
struct ShortlistRow {
  const int8_t* q = nullptr;                                       // [blocks, quant::kShortlistBlock]
  const float *coarse_factor = nullptr, *coarse_offset = nullptr;  // [blocks]: 2 and 3 times the scale of x, the latter times the sum of q
  const float *fine_factor = nullptr, *fine_offset = nullptr;      // [blocks]: likewise quant::kShortlistFineStep and 1.5 times that
};

struct ShortlistKernels {
  static constexpr int kMostRows = 4;  // of x

  // out[n * stride + i], i < 16 * groups: the coarse logits of these rows of the list for 1 <= n <= kMostRows rows of x.
  void (*coarse)(const ShortlistRow* x, int n, const std::byte* coarse, const std::byte* scales, int64_t blocks, int64_t groups,
                 float* out, int64_t stride) = nullptr;
  // What the fine codes of one row of the list add; `fine`: all that the fine part has of the row.
  float (*fine)(const ShortlistRow& x, const std::byte* fine, int64_t blocks) = nullptr;
};

const ShortlistKernels& shortlist_kernels_scalar();
#if defined(__x86_64__)
const ShortlistKernels& shortlist_kernels_avx2();
const ShortlistKernels& shortlist_kernels_avx512vnni();
#elif defined(__aarch64__)
const ShortlistKernels& shortlist_kernels_neon();
const ShortlistKernels& shortlist_kernels_neon_dotprod();
#endif

}  // namespace qvl::kernels
