#include "qvl/engine/native/kv_cache.h"

#include <string>

#include "qvl/base/error.h"

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
  const size_t half_bytes =
      static_cast<size_t>(kv_heads_ * kBlockTokens * head_dim_) * dtype_size_bytes(dtype_);
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

kernels::KvView NativeKvCache::layer(int64_t index) const {
  const Layer& layer = layers_.at(static_cast<size_t>(index));
  return {layer.keys.data(), layer.values.data(), dtype_, kBlockTokens, kv_heads_, head_dim_};
}

}  // namespace qvl::engine::native
