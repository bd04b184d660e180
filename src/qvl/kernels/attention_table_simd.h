// All norms, rotary embedding and attention over a vector type V (attention_vec_*.h). Include after the target pragma and
// V's header.
#pragma once

#include "qvl/kernels/attention_rows_simd.h"
#include "qvl/kernels/attention_stream_simd.h"
#include "qvl/kernels/attention_tile_simd.h"

namespace qvl::kernels::simd {

template <typename V>
AttentionKernels attention_kernels() {
  return {row_kernels<V, float>(),
          row_kernels<V, BFloat16>(),
          attention_tile_f32_words<V, float>(),
          attention_tile_f32_words<V, BFloat16>(),
          attention_stream<V, float>(),
          attention_stream<V, BFloat16>(),
          attention_stream<V, float, int8_t>(),
          attention_stream<V, BFloat16, int8_t>()};
}

}  // namespace qvl::kernels::simd
