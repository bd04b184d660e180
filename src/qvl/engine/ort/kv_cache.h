// The cache of the ONNX decoder: keys and values of every layer, bound to the graph's past and present
// (spec 6.4; keys are stored rotated). Private to this room.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/ort/runtime.h"
#include "qvl/engine/stages.h"

namespace qvl::engine::ort {

enum class CacheKind {
  // GroupQueryAttention: past and present are one buffer with room to spare; new rows are written behind the
  // old ones.
  kInPlace,
  // Standard operators: present is past with the new rows appended, in another buffer; the two change places.
  kAppend,
  // Fixed sizes: past holds C - S positions, present C. Real positions stand at the right end, the rest is
  // masked.
  kFixed,
};

struct CacheShape {
  CacheKind kind = CacheKind::kInPlace;
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t fixed_past = 0;     // kFixed: C - S
  int64_t fixed_context = 0;  // kFixed: C
};

class OrtKvCache : public KvCache {
 public:
  OrtKvCache(const void* owner, std::shared_ptr<const Graph> graph, const CacheShape& shape);

  int64_t length() const override { return length_; }
  void truncate(int64_t length) override;
  size_t size_bytes() const override;
  // Copies: the graphs want keys and values of all positions in one piece.
  bool share_prefix(const KvCache& other, int64_t length) override;

  // Binds past and present for a call of `graph` (the decoder's or its traced twin) that appends `rows`
  // positions. length() and what it covers stay as they are, whether the call succeeds or not. The binding
  // lives until the next call.
  OrtIoBinding* begin(int64_t rows, const Graph& graph);
  // After the call succeeded: the rows count.
  void commit(int64_t rows);

  // The decoder that made this cache: a cache of another model is refused.
  const void* owner() const { return owner_; }

 private:
  // Keys and values of one layer: two tensors [kv_heads, positions, head_dim], one behind the other.
  struct Layer {
    AlignedBuffer buffer;
    int64_t capacity = 0;  // positions
    float* half(int which) const;
  };

  int64_t plane(int64_t positions) const { return shape_.kv_heads * positions * shape_.head_dim; }
  Layer allocate(int64_t positions) const;
  // One layer's keys or values (`which` 0, 1) between buffers of other widths: positions [from, from + count)
  // to `to`.
  void copy(const float* source, int64_t source_positions, int64_t from, float* target,
            int64_t target_positions, int64_t to, int64_t count) const;
  enum class Role { kPast, kPresent, kBoth };
  void bind(const std::vector<Layer>& layers, Role role, int64_t positions, const Graph& graph,
            OrtIoBinding* binding);
  void bind_all(int64_t total, const Graph& graph, OrtIoBinding* binding);
  // Buffers for a call that makes `total` positions; kFixed: the past filled in.
  void prepare(int64_t total);
  // Wider buffers with the same contents, layer by layer: memory for one layer is there twice at a time.
  void grow(int64_t positions);

  const void* owner_;
  std::shared_ptr<const Graph> graph_;
  CacheShape shape_;
  Handle<OrtIoBinding> binding_;
  Handle<OrtIoBinding> traced_binding_{nullptr, nullptr};
  bool bound_ = false;                    // binding_ points to the buffers as they are now
  std::vector<Handle<OrtValue>> values_;  // what the last bound binding points to
  int64_t length_ = 0;
  std::vector<Layer> layers_;
  std::vector<Layer> other_;    // kAppend: what becomes present; kFixed: past of a call
  std::vector<Layer> present_;  // kFixed: present of a call
};

}  // namespace qvl::engine::ort
