#include "qvl/engine/native/kv_cache.h"

#include <algorithm>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::engine::native {

NativeKvCache::NativeKvCache(const void* owner, DType dtype, int64_t layers, int64_t kv_heads,
                             int64_t head_dim)
    : owner_(owner),
      dtype_(dtype),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      layers_(static_cast<size_t>(layers)) {}

void NativeKvCache::truncate(int64_t length) {
  if (length < 0 || length > length_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "length to keep", "0.." + std::to_string(length_),
         std::to_string(length));
  }
  length_ = length;
  const size_t keep = static_cast<size_t>((length + kBlockTokens - 1) / kBlockTokens);
  for (Layer& layer : layers_) {
    layer.keys.resize(keep);
    layer.values.resize(keep);
  }
  blocks_.resize(keep);
}

size_t NativeKvCache::size_bytes() const {
  size_t total = 0;
  for (const AlignedBuffer& b : blocks_) total += b.size_bytes();
  return total;
}

void NativeKvCache::reserve(int64_t length) {
  const size_t half_bytes = kernels::kv_block_bytes(shape());
  while (static_cast<int64_t>(blocks_.size()) * kBlockTokens < length) {
    AlignedBuffer buffer(half_bytes * 2 * layers_.size());
    std::byte* p = buffer.data();
    for (Layer& layer : layers_) {
      layer.keys.push_back(p);
      layer.values.push_back(p + half_bytes);
      p += 2 * half_bytes;
    }
    blocks_.push_back(std::move(buffer));
  }
}

std::string NativeKvCache::saved_form() const {
  return cat("native ", dtype_name(dtype_), ", ", layers_.size(), " layers, ", kv_heads_, " heads of ", head_dim_,
             ", blocks of ", kBlockTokens);
}

uint64_t NativeKvCache::saved_bytes(int64_t length) const {
  return static_cast<uint64_t>(length) * 2 * layers_.size() * (kernels::kv_block_bytes(shape()) / kBlockTokens);
}

void NativeKvCache::for_each_piece(int64_t length,
                                   const std::function<void(std::span<std::byte>)>& visit) const {
  const size_t half_bytes = kernels::kv_block_bytes(shape());
  for (size_t b = 0; static_cast<int64_t>(b) * kBlockTokens < length; ++b) {
    const int64_t tokens = std::min(kBlockTokens, length - static_cast<int64_t>(b) * kBlockTokens);
    for (const Layer& layer : layers_) {
      for (void* half : {layer.keys[b], layer.values[b]}) {
        auto* p = static_cast<std::byte*>(half);
        if (tokens == kBlockTokens) {
          visit({p, half_bytes});
          continue;
        }
        for (const size_t row_bytes :
             {static_cast<size_t>(head_dim_) * dtype_size_bytes(dtype_), kernels::kv_scale_bytes(dtype_)}) {
          if (row_bytes == 0) continue;
          for (int64_t head = 0; head < kv_heads_; ++head, p += static_cast<size_t>(kBlockTokens) * row_bytes)
            visit({p, static_cast<size_t>(tokens) * row_bytes});
        }
      }
    }
  }
}

void NativeKvCache::save(int64_t length, const ByteSink& sink) const {
  if (length < 0 || length > length_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "length to save", cat("0..", length_), cat(length));
  }
  for_each_piece(length, [&sink](std::span<std::byte> piece) { sink(piece); });
}

void NativeKvCache::load(int64_t length, const ByteSource& source) {
  if (length_ != 0 || length < 0) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "load", "an empty cache and a length of 0 or more",
         cat("a cache of ", length_, " positions and a length of ", length));
  }
  try {
    reserve(length);
    for_each_piece(length, source);
  } catch (...) {
    truncate(0);
    throw;
  }
  length_ = length;
}

kernels::KvView NativeKvCache::layer(int64_t index) const {
  const Layer& layer = layers_.at(static_cast<size_t>(index));
  kernels::KvView view = shape();
  view.key_blocks = layer.keys.data();
  view.value_blocks = layer.values.data();
  return view;
}

}  // namespace qvl::engine::native
