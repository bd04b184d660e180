// Checks of a paged KV cache view, shared by the append and the attention over it.
#pragma once

#include <string>
#include <string_view>

#include "qvl/kernels/op_check.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {

// Throws unless a cache of this type goes with activations of `dtype`.
inline void check_kv_type(std::string_view where, const KvView& kv, DType dtype) {
  if (kv.dtype != DType::kI8) check_dtype(where, "cache", dtype, kv.dtype);
}

// The row of a block that holds a head's key, or value, of position `slot` of it.
inline int64_t kv_row(const KvView& kv, int64_t head, bool value, int64_t slot) {
  return (2 * head + (value ? 1 : 0)) * kv.block_tokens + slot;
}

// The scales of an int8 block's rows.
inline float* kv_scales(const KvView& kv, void* block) {
  return reinterpret_cast<float*>(static_cast<std::byte*>(block) + 2 * kv.kv_heads * kv.block_tokens * kv.head_dim);
}

// Throws unless the view can hold `tokens` positions: type, extents, and a block behind every position.
inline void check_kv(std::string_view where, const KvView& kv, int64_t tokens) {
  if (kv.dtype != DType::kI8) check_activation(where, "cache", kv.dtype);
  if (kv.block_tokens < 16 || kv.block_tokens % 16 != 0) {
    fail(ErrorCode::kUnsupported, where, "tokens per cache block", "a multiple of 16",
         std::to_string(kv.block_tokens));
  }
  if (kv.kv_heads < 1 || kv.head_dim < 1) {
    fail(ErrorCode::kMismatch, where, "cache shape", "at least one head and one element per head",
         std::to_string(kv.kv_heads) + " x " + std::to_string(kv.head_dim));
  }
  if (kv.dtype == DType::kI8 && kv.head_dim > kMaxInt8HeadDim) {
    fail(ErrorCode::kUnsupported, where, "head_dim of an int8 cache", "at most " + std::to_string(kMaxInt8HeadDim),
         std::to_string(kv.head_dim));
  }
  if (tokens <= 0) return;
  check_pointer(where, "cache blocks", kv.blocks);
  const int64_t blocks = (tokens + kv.block_tokens - 1) / kv.block_tokens;
  for (int64_t b = 0; b < blocks; ++b) {
    if (kv.blocks[b] == nullptr) {
      fail(ErrorCode::kInvalidArgument, where, "cache block " + std::to_string(b), "storage", "null");
    }
  }
}

}  // namespace qvl::kernels
