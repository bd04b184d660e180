#include "qvl/engine/ort/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/package/graph_io.h"

namespace qvl::engine::ort {
namespace {

// Room at the start, and the least that growing adds: small conversations never move their cache.
constexpr int64_t kFirstCapacity = 256;

int64_t next_capacity(int64_t current, int64_t needed) {
  return std::max({needed, current + current / 2, kFirstCapacity});
}

}  // namespace

float* OrtKvCache::Layer::half(int which) const {
  auto* bytes = const_cast<std::byte*>(buffer.data());
  return reinterpret_cast<float*>(bytes + static_cast<size_t>(which) * (buffer.size_bytes() / 2));
}

OrtKvCache::OrtKvCache(const void* owner, std::shared_ptr<const Graph> graph, const CacheShape& shape)
    : owner_(owner),
      graph_(std::move(graph)),
      shape_(shape),
      binding_(graph_->new_binding()),
      layers_(static_cast<size_t>(shape.layers)),
      other_(static_cast<size_t>(shape.layers)),
      present_(static_cast<size_t>(shape.layers)) {}

OrtKvCache::Layer OrtKvCache::allocate(int64_t positions) const {
  return {AlignedBuffer(2 * static_cast<size_t>(plane(positions)) * sizeof(float)), positions};
}

void OrtKvCache::copy(const float* source, int64_t source_positions, int64_t from, float* target,
                      int64_t target_positions, int64_t to, int64_t count) const {
  if (count == 0) return;  // an empty cache has no buffer
  const int64_t d = shape_.head_dim;
  for (int64_t h = 0; h < shape_.kv_heads; ++h) {
    std::memmove(target + (h * target_positions + to) * d, source + (h * source_positions + from) * d,
                 static_cast<size_t>(count * d) * sizeof(float));
  }
}

void OrtKvCache::truncate(int64_t length) {
  if (length < 0 || length > length_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "length to keep", "0.." + std::to_string(length_),
         std::to_string(length));
  }
  if (shape_.kind == CacheKind::kAppend && length < length_) {
    // Heads stand one behind the other without gaps.
    for (Layer& layer : layers_) {
      for (int which : {0, 1}) copy(layer.half(which), length_, 0, layer.half(which), length, 0, length);
    }
  }
  length_ = length;
}

size_t OrtKvCache::size_bytes() const {
  size_t total = 0;
  for (const auto* set : {&layers_, &other_, &present_}) {
    for (const Layer& layer : *set) total += layer.buffer.size_bytes();
  }
  return total;
}

bool OrtKvCache::share_prefix(const KvCache& other, int64_t length) {
  const auto* from = dynamic_cast<const OrtKvCache*>(&other);
  if (from == nullptr || from == this || from->owner_ != owner_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "the cache to share with was made by another decoder or is this one");
  }
  if (length_ != 0 || length < 0 || length > from->length_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "sharing",
         "an empty cache and a length of 0.." + std::to_string(from->length_),
         "a cache of " + std::to_string(length_) + " positions and a length of " + std::to_string(length));
  }
  bound_ = false;
  const bool dense = shape_.kind == CacheKind::kAppend;  // heads stand one behind the other without gaps
  for (size_t i = 0; length > 0 && i < layers_.size(); ++i) {
    if (layers_[i].capacity < length) layers_[i] = allocate(next_capacity(layers_[i].capacity, length));
    for (int which : {0, 1}) {
      copy(from->layers_[i].half(which), dense ? from->length_ : from->layers_[i].capacity, 0, layers_[i].half(which),
           dense ? length : layers_[i].capacity, 0, length);
    }
  }
  length_ = length;
  return true;
}

void OrtKvCache::bind(const std::vector<Layer>& layers, Role role, int64_t positions, const Graph& graph,
                      OrtIoBinding* binding) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const int n = static_cast<int>(i);
    // In place the tensor is as wide as the buffer: the mask tells how much of it is filled.
    const Shape shape = {1, shape_.kv_heads, role == Role::kBoth ? layers[i].capacity : positions,
                         shape_.head_dim};
    for (int which : {0, 1}) {
      values_.push_back(make_value(graph.runtime(), layers[i].half(which), DType::kF32, shape));
      const OrtValue* value = values_.back().get();
      if (role != Role::kPresent) {
        const std::string name = which ? package::past_value_name(n) : package::past_key_name(n);
        graph.bind_input(binding, name.c_str(), value);
      }
      if (role != Role::kPast) {
        const std::string name = which ? package::present_value_name(n) : package::present_key_name(n);
        graph.bind_output(binding, name.c_str(), value);
      }
    }
  }
}

void OrtKvCache::bind_all(int64_t total, const Graph& graph, OrtIoBinding* binding) {
  values_.clear();
  switch (shape_.kind) {
    case CacheKind::kInPlace:
      bind(layers_, Role::kBoth, 0, graph, binding);
      break;
    case CacheKind::kAppend:
      bind(layers_, Role::kPast, length_, graph, binding);
      bind(other_, Role::kPresent, total, graph, binding);
      break;
    case CacheKind::kFixed:
      bind(other_, Role::kPast, shape_.fixed_past, graph, binding);
      bind(present_, Role::kPresent, shape_.fixed_context, graph, binding);
      break;
  }
}

void OrtKvCache::grow(int64_t positions) {
  for (Layer& layer : layers_) {
    if (positions <= layer.capacity) continue;
    bound_ = false;
    Layer wider = allocate(next_capacity(layer.capacity, positions));
    for (int which : {0, 1})
      copy(layer.half(which), layer.capacity, 0, wider.half(which), wider.capacity, 0, length_);
    layer = std::move(wider);
  }
}

void OrtKvCache::prepare(int64_t total) {
  switch (shape_.kind) {
    case CacheKind::kInPlace:
      grow(total);
      return;

    case CacheKind::kAppend:
      bound_ = false;  // other sizes with every call
      for (size_t i = 0; i < layers_.size(); ++i) {
        // Without a past any address serves: the tensor has no elements.
        if (layers_[i].capacity == 0) layers_[i] = allocate(kFirstCapacity);
        if (other_[i].capacity < total) other_[i] = allocate(next_capacity(other_[i].capacity, total));
      }
      return;

    case CacheKind::kFixed:
      grow(total);
      for (size_t i = 0; i < layers_.size(); ++i) {
        if (present_[i].capacity == 0) {
          other_[i] = allocate(shape_.fixed_past);
          present_[i] = allocate(shape_.fixed_context);
          bound_ = false;
        }
        for (int which : {0, 1}) {
          float* past = other_[i].half(which);
          // Masked positions weigh nothing, but 0 * NaN would.
          std::fill_n(past, plane(shape_.fixed_past), 0.0f);
          copy(layers_[i].half(which), layers_[i].capacity, 0, past, shape_.fixed_past,
               shape_.fixed_past - length_, length_);
        }
      }
      return;
  }
}

OrtIoBinding* OrtKvCache::begin(int64_t rows, const Graph& graph) {
  const int64_t total = length_ + rows;
  prepare(total);
  if (&graph != graph_.get()) {
    bound_ = false;
    traced_binding_ = graph.new_binding();
    bind_all(total, graph, traced_binding_.get());
    return traced_binding_.get();
  }
  if (!bound_) {
    bind_all(total, graph, binding_.get());
    bound_ = true;
  }
  return binding_.get();
}

void OrtKvCache::commit(int64_t rows) {
  switch (shape_.kind) {
    case CacheKind::kInPlace:
      break;
    case CacheKind::kAppend:
      std::swap(layers_, other_);
      break;
    case CacheKind::kFixed:
      for (size_t i = 0; i < layers_.size(); ++i) {
        for (int which : {0, 1}) {
          copy(present_[i].half(which), shape_.fixed_context, shape_.fixed_context - rows,
               layers_[i].half(which), layers_[i].capacity, length_, rows);
        }
      }
      break;
  }
  length_ += rows;
}

}  // namespace qvl::engine::ort
