// What tokenizer.json says, checked and in the form that encoding needs (spec 7.1, 7.2).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/text/bpe.h"

namespace qvl::text {

struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool special = false;
};

// Token texts by id, and ids by text. Texts are raw bytes.
class TokenStore {
 public:
  // Reserves the look-up table for `count` tokens of `total_bytes` bytes in all.
  void reserve(size_t count, size_t total_bytes);
  // False if the id or, for `findable` tokens, the text is taken. `id` is in [0, kMaxTokens).
  bool add(int32_t id, std::string_view bytes, bool findable);
  std::optional<int32_t> find(std::string_view bytes) const;
  // Empty if there is no such token.
  std::string_view bytes(int32_t id) const;
  bool contains(int32_t id) const;
  // Largest id + 1.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  struct Token {
    uint32_t offset = 0, length = 0;
    bool present = false;
  };
  size_t slot_of(std::string_view bytes) const;

  std::string arena_;
  std::vector<Token> tokens_;
  std::vector<int32_t> slots_;  // open addressing, -1 = free
};

struct Vocabulary {
  TokenStore base;
  std::array<int32_t, 256> byte_ids{};
  std::vector<MergeTable::Merge> merges;  // by rank
  std::vector<AddedToken> added;          // by id
};

// `tokenizer_config_json` may be empty; it contributes added tokens that tokenizer.json lacks. Throws
// kFormat, kUnsupported, kLimit; `where` stands in the messages.
Vocabulary parse_vocabulary(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                            std::string_view where);

}  // namespace qvl::text
