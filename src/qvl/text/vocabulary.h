// What tokenizer.json says, checked and in the form that encoding needs (spec 7.1, 7.2).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/text/bpe.h"
#include "qvl/text/token_store.h"

namespace qvl::text {

struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool special = false;
};

struct Vocabulary {
  TokenStore base;
  std::array<int32_t, 256> byte_ids{};
  std::vector<MergeTable::Merge> merges;  // by rank
  std::vector<AddedToken> added;          // by id
};

// `tokenizer_config_json` may be empty; it contributes added tokens that tokenizer.json lacks. Throws
// kFormat, kUnsupported, kLimit; `where` stands in the messages. Of the memory that `tokenizer_json` begins,
// `readable_bytes` may be read, its own size at least: kVocabularyPaddingBytes more spare a copy.
Vocabulary parse_vocabulary(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                            std::string_view where, size_t readable_bytes = 0);
inline constexpr size_t kVocabularyPaddingBytes = 64;

}  // namespace qvl::text
