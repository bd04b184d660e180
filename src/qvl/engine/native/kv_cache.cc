#include "qvl/engine/native/kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::engine::native {
namespace {

[[noreturn]] void fail_changed() {
  fail(ErrorCode::kIo, "image memory", "a file with kept keys and values was changed while it was in use (ask again)");
}

// Few of its positions are there yet, and more may never come: a huge page would have to be cleared for each few rows.
void touch_in_small_pages(AlignedBuffer& buffer) {
  constexpr size_t kPage = size_t{64} << 10;  // of all systems; less than the shortest buffer in huge pages
  const auto at = reinterpret_cast<uintptr_t>(buffer.data());
  if (at % kPage == 0) ::madvise(buffer.data(), buffer.size_bytes() / kPage * kPage, MADV_NOHUGEPAGE);  // advice: may fail
}

}  // namespace

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
  for (auto& layer : layers_) layer.resize(keep);
  blocks_.resize(keep);
}

size_t NativeKvCache::size_bytes() const {
  size_t total = 0;
  for (const auto& b : blocks_) total += block_bytes() / static_cast<size_t>(b.use_count());
  return total;
}

size_t NativeKvCache::block_bytes() const { return kernels::kv_block_bytes(shape()) * layers_.size(); }

std::shared_ptr<NativeKvCache::Block> NativeKvCache::make_block() const {
  auto block = std::make_shared<Block>();
  block->own = AlignedBuffer(block_bytes());
  block->data = block->own.data();
  return block;
}

std::shared_ptr<NativeKvCache::Block> NativeKvCache::copy_of(const Block& source, int64_t tokens) const {
  const size_t layer_bytes = kernels::kv_block_bytes(shape());
  std::shared_ptr<Block> block = make_block();
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for_each_piece_of_layer(block->data + layer * layer_bytes, tokens, [&](std::span<std::byte> piece) {
      std::memcpy(piece.data(), source.data + (piece.data() - block->data), piece.size());
    });
  }
  if (source.file && !source.file->intact()) fail_changed();
  return block;
}

void NativeKvCache::set_block(size_t index, std::shared_ptr<Block> block) {
  const size_t count = std::max(blocks_.size(), index + 1);
  std::byte* p = block->data;
  for (auto& layer : layers_) {
    layer.resize(count);
    layer[index] = p;
    p += kernels::kv_block_bytes(shape());
  }
  blocks_.resize(count);
  blocks_[index] = std::move(block);
}

void NativeKvCache::reserve(int64_t length) {
  // The block that the next position falls into, where it is there already: others end before it or begin behind it.
  const auto next = static_cast<size_t>(length_ / kBlockTokens);
  if (length > length_ && next < blocks_.size() && (blocks_[next].use_count() > 1 || blocks_[next]->file)) {
    set_block(next, copy_of(*blocks_[next], length_ % kBlockTokens));
  }
  while (static_cast<int64_t>(blocks_.size()) * kBlockTokens < length) set_block(blocks_.size(), make_block());
}

bool NativeKvCache::share_prefix(const KvCache& other, int64_t length) {
  const auto* from = dynamic_cast<const NativeKvCache*>(&other);
  if (from == nullptr || from == this || from->owner_ != owner_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "the cache to share with was made by another decoder or is this one");
  }
  if (length_ != 0 || length < 0 || length > from->length_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "sharing",
         cat("an empty cache and a length of 0..", from->length_),
         cat("a cache of ", length_, " positions and a length of ", length));
  }
  truncate(0);
  const auto whole = static_cast<size_t>(length / kBlockTokens);
  const int64_t rest = length % kBlockTokens;
  try {
    for (size_t b = 0; b < whole; ++b) set_block(b, from->blocks_[b]);
    if (rest > 0) set_block(whole, copy_of(*from->blocks_[whole], rest));
  } catch (...) {
    truncate(0);
    throw;
  }
  length_ = length;
  return true;
}

std::string NativeKvCache::saved_form() const {
  return cat("native ", dtype_name(dtype_), ", ", layers_.size(), " layers, ", kv_heads_, " heads of ", head_dim_,
             " with their keys and values, blocks of ", kBlockTokens);
}

uint64_t NativeKvCache::saved_bytes(int64_t length) const {
  return static_cast<uint64_t>(length) * layers_.size() * (kernels::kv_block_bytes(shape()) / kBlockTokens);
}

void NativeKvCache::for_each_piece_of_layer(std::byte* rows, int64_t tokens,
                                            const std::function<void(std::span<std::byte>)>& visit) const {
  if (tokens == kBlockTokens) return visit({rows, kernels::kv_block_bytes(shape())});
  if (tokens == 0) return;
  for (const size_t row_bytes :
       {static_cast<size_t>(head_dim_) * dtype_size_bytes(dtype_), kernels::kv_scale_bytes(dtype_)}) {
    if (row_bytes == 0) continue;
    for (int64_t run = 0; run < 2 * kv_heads_; ++run, rows += static_cast<size_t>(kBlockTokens) * row_bytes)
      visit({rows, static_cast<size_t>(tokens) * row_bytes});
  }
}

void NativeKvCache::for_each_piece(int64_t length,
                                   const std::function<void(std::span<std::byte>)>& visit) const {
  for (size_t b = 0; static_cast<int64_t>(b) * kBlockTokens < length; ++b) {
    const int64_t tokens = std::min(kBlockTokens, length - static_cast<int64_t>(b) * kBlockTokens);
    for (const auto& layer : layers_) for_each_piece_of_layer(static_cast<std::byte*>(layer[b]), tokens, visit);
  }
}

void NativeKvCache::save(int64_t length, const ByteSink& sink) const {
  if (length < 0 || length > length_) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "length to save", cat("0..", length_), cat(length));
  }
  for_each_piece(length, [&sink](std::span<std::byte> piece) { sink(piece); });
  check_intact();
}

void NativeKvCache::load(int64_t length, const SavedCache& saved) {
  if (length_ != 0 || length < 0 || saved.bytes.size() != saved_bytes(length)) {
    fail(ErrorCode::kInvalidArgument, "kv cache", "load",
         cat("an empty cache and ", saved_bytes(std::max<int64_t>(length, 0)), " bytes"),
         cat("a cache of ", length_, " positions, a length of ", length, " and ", saved.bytes.size(), " bytes"));
  }
  truncate(0);
  const auto whole = static_cast<size_t>(length / kBlockTokens);
  const int64_t rest = length % kBlockTokens;
  try {
    for (size_t b = 0; b < whole; ++b) {
      // Never written: reserve() copies first.
      auto* data = const_cast<std::byte*>(saved.bytes.data()) + b * block_bytes();
      set_block(b, std::make_shared<Block>(Block{AlignedBuffer(), saved.file, data}));
    }
    if (rest > 0) {
      set_block(whole, make_block());
      touch_in_small_pages(blocks_[whole]->own);
      const std::byte* next = saved.bytes.data() + whole * block_bytes();
      for (std::byte* rows = blocks_[whole]->data, *end = rows + block_bytes(); rows < end;
           rows += kernels::kv_block_bytes(shape())) {
        for_each_piece_of_layer(rows, rest, [&next](std::span<std::byte> piece) {
          std::memcpy(piece.data(), next, piece.size());
          next += piece.size();
        });
      }
    }
    if (!saved.file->intact()) fail_changed();
  } catch (...) {
    truncate(0);
    throw;
  }
  length_ = length;
}

bool NativeKvCache::intact() const {
  const GuardedMapping* asked = nullptr;  // neighbours mostly lie in one file
  for (const auto& b : blocks_) {
    if (!b->file || b->file.get() == asked) continue;
    asked = b->file.get();
    if (!asked->intact()) return false;
  }
  return true;
}

void NativeKvCache::check_intact() const {
  if (!intact()) fail_changed();
}

kernels::KvView NativeKvCache::layer(int64_t index) const {
  kernels::KvView view = shape();
  view.blocks = layers_.at(static_cast<size_t>(index)).data();
  return view;
}

}  // namespace qvl::engine::native
