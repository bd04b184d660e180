// Which tokens are what to a grammar: the vocabulary for the engine, and sets of ids for the parts of an
// answer that are free text. Internal to this room.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/grammar/matcher.h"
#include "qvl/text/tokenizer.h"

namespace qvl::grammar {

// A set of ids, id i at bit i % 32 of word i / 32.
using TokenSet = std::vector<uint32_t>;

inline void insert(TokenSet& set, int32_t id) {
  set[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
}
inline void erase(TokenSet& set, int32_t id) {
  set[static_cast<size_t>(id) / 32] &= ~(1u << (id % 32));
}
inline bool contains(const TokenSet& set, int32_t id) {
  return id >= 0 && static_cast<size_t>(id) / 32 < set.size() &&
         (set[static_cast<size_t>(id) / 32] >> (id % 32) & 1u);
}

// Sets the logits of all other ids to minus infinity.
void keep_only(const TokenSet& set, std::span<float> logits);

// Ordinary text that must not spell a tag character by character, so that the tag's own token is the only way
// to it.
class TagSpelling {
 public:
  TagSpelling() = default;
  // `tag` has its first byte once.
  TagSpelling(const text::Tokenizer& tokenizer, std::string tag);

  // How much of the tag the text ends with, after `bytes` more; 0 at the beginning.
  size_t advance(size_t matched, std::string_view bytes) const;
  // Removes the tokens that would complete the tag.
  void remove_completing(size_t matched, TokenSet& set) const;

 private:
  std::string tag_;
  std::vector<std::vector<int32_t>> completing_;  // [matched] ids
};

struct TokenSets {
  TokenSets(const text::Tokenizer& tokenizer, std::span<const int32_t> end_ids);

  std::optional<int32_t> call_open, call_close, think_close;
  TokenSet ends;       // the end ids
  TokenSet free_text;  // what an answer outside calls may hold, calls' opening and the end ids included
  TokenSet reasoning;  // what stands before </think>, that token included
  TagSpelling call_tag;
};

// The engine's view of a tokenizer.
Vocabulary make_vocabulary(text::Tokenizer tokenizer, std::span<const int32_t> end_ids);

}  // namespace qvl::grammar
