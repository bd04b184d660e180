// Token texts by id, and ids by text: what reading a vocabulary fills and decoding looks things up in (spec 7.1). Texts are
// raw bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qvl::text {

class TokenStore {
 public:
  // Reserves the look-up table for `count` tokens of at most `total_bytes` bytes in all.
  void reserve(size_t count, size_t total_bytes);
  // False if the id or, for `findable` tokens, the text is taken. `id` is in [0, kMaxTokens); at most `count` tokens are
  // added.
  bool add(int32_t id, std::string_view bytes, bool findable);
  std::optional<int32_t> find(std::string_view bytes) const { return find(bytes, hash_of(bytes)); }

  // Most of a look-up's time goes to waiting for memory: of many, that of each can be asked for ahead. find(bytes, h) with
  // h = hash_of(bytes) comes some time after prefetch_text(h), that after prefetch_token(h), that after prefetch_slot(h).
  static uint64_t hash_of(std::string_view bytes);
  void prefetch_slot(uint64_t hash) const { __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]); }
  void prefetch_token(uint64_t hash) const {
    if (const int32_t id = likely(hash); id >= 0) __builtin_prefetch(&tokens_[id]);
  }
  void prefetch_text(uint64_t hash) const {
    if (const int32_t id = likely(hash); id >= 0) __builtin_prefetch(arena_.data() + tokens_[id].offset);
  }
  std::optional<int32_t> find(std::string_view bytes, uint64_t hash) const;

  // Whether find(bytes) is `id`.
  bool finds(int32_t id, std::string_view bytes) const { return contains(id) && tokens_[id].findable && this->bytes(id) == bytes; }

  // Empty if there is no such token.
  std::string_view bytes(int32_t id) const {
    if (!contains(id)) return {};
    return {arena_.data() + tokens_[id].offset, tokens_[id].length};
  }
  bool contains(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens_.size() && tokens_[id].present;
  }
  // Largest id + 1.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  struct Token {
    uint32_t offset = 0, length = 0;
    bool present = false, findable = false;
  };
  // Open addressing; of another text the tag tells it without a look at the text.
  struct Slot {
    uint32_t tag = 0;
    int32_t id = -1;  // -1: free
  };
  static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }
  // The first with this tag, or -1.
  int32_t likely(uint64_t hash) const {
    const size_t mask = slots_.size() - 1;
    size_t slot = hash & mask;
    while (slots_[slot].id >= 0 && slots_[slot].tag != tag_of(hash)) slot = (slot + 1) & mask;
    return slots_[slot].id;
  }
  // That of this text, or the free one where it would be.
  size_t slot_of(std::string_view bytes, uint64_t hash) const;

  std::string arena_;
  std::vector<Token> tokens_;
  std::vector<Slot> slots_;
};

}  // namespace qvl::text
