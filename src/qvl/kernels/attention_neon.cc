// Norms, rotary embedding and attention for NEON.
#include "qvl/kernels/attention_kernels.h"

#if defined(__aarch64__)

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "qvl/kernels/attention_vec_neon.h"
// After the vector.
#include "qvl/kernels/attention_rows_simd.h"
#include "qvl/kernels/attention_stream_simd.h"
#include "qvl/kernels/attention_tile_simd.h"

namespace qvl::kernels {

const AttentionKernels& attention_kernels_neon() {
  using V = VecNeon;
  static const AttentionKernels kernels = {simd::row_kernels<V, float>(),
                                           simd::row_kernels<V, BFloat16>(),
                                           simd::attention_tile_f32_words<V, float>(),
                                           simd::attention_tile_f32_words<V, BFloat16>(),
                                           simd::attention_stream<V, float>(),
                                           simd::attention_stream<V, BFloat16>(),
                                           simd::attention_stream<V, float, int8_t>(),
                                           simd::attention_stream<V, BFloat16, int8_t>()};
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __aarch64__
