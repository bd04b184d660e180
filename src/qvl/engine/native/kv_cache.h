// The native decoder's KV cache: blocks of positions, allocated as the timeline grows (spec 6.4; keys are
// stored rotated). Memory is proportional to the positions in use; nothing is moved when it grows. Caches whose
// timelines begin alike share whole blocks, and whole blocks of a saved cache are used in its file; whoever is about to write
// into either takes a copy first.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/stages.h"
#include "qvl/kernels/ops.h"

namespace qvl::engine::native {

class NativeKvCache : public KvCache {
 public:
  static constexpr int64_t kBlockTokens = 256;

  // `dtype`: F32, BF16 or I8 (kernels/ops.h).
  NativeKvCache(const void* owner, DType dtype, int64_t layers, int64_t kv_heads, int64_t head_dim);

  int64_t length() const override { return length_; }
  void truncate(int64_t length) override;
  size_t size_bytes() const override;
  // Whole blocks are shared, a last one that is not full is copied.
  bool share_prefix(const KvCache& other, int64_t length) override;
  // Block by block, in a block layer by layer, in a layer head by head the positions' keys, then their values, then likewise
  // the scales where there are any.
  std::string saved_form() const override;
  uint64_t saved_bytes(int64_t length) const override;
  void save(int64_t length, const ByteSink& sink) const override;
  // Whole blocks stay in the file, a last one that is not full is copied.
  void load(int64_t length, const SavedCache& saved) override;
  bool intact() const override;
  // Throws kIo when it is not.
  void check_intact() const;

  // Makes room for positions up to `length` (exclusive) in every layer and the blocks behind length() this cache's own;
  // length() is unchanged.
  void reserve(int64_t length);
  // After the rows of all layers are written.
  void set_length(int64_t length) { length_ = length; }
  kernels::KvView layer(int64_t index) const;
  // The decoder that made this cache: a cache of another model is refused.
  const void* owner() const { return owner_; }

 private:
  // The memory of positions [0, length) in the order of the saved form.
  void for_each_piece(int64_t length, const std::function<void(std::span<std::byte>)>& visit) const;
  // Likewise of the first `tokens` positions of a layer in one block.
  void for_each_piece_of_layer(std::byte* rows, int64_t tokens, const std::function<void(std::span<std::byte>)>& visit) const;

  // kBlockTokens positions of all layers.
  struct Block {
    AlignedBuffer own;                           // empty where it lies in a file
    std::shared_ptr<const GuardedMapping> file;  // null where it is this cache's own
    std::byte* data = nullptr;                   // not to be written where it lies in a file
  };

  size_t block_bytes() const;
  // A new block.
  std::shared_ptr<Block> make_block() const;
  // A new block with the `tokens` first positions of `source`. Throws kIo when its file is not intact.
  std::shared_ptr<Block> copy_of(const Block& source, int64_t tokens) const;
  // Block `index`, or the one behind the last, is this from now on.
  void set_block(size_t index, std::shared_ptr<Block> block);

  // A view without blocks.
  kernels::KvView shape() const { return {nullptr, dtype_, kBlockTokens, kv_heads_, head_dim_}; }

  const void* owner_;
  DType dtype_;
  int64_t kv_heads_;
  int64_t head_dim_;
  int64_t length_ = 0;
  std::vector<std::vector<void*>> layers_;  // where each block's rows of that layer lie
  std::vector<std::shared_ptr<Block>> blocks_;
};

}  // namespace qvl::engine::native
