// Turns tokens into text while they are generated, never cutting a character in two (spec 7.3).
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "qvl/text/tokenizer.h"

namespace qvl::text {

// One stream; not thread-safe. Everything it returned, joined, equals Tokenizer::decode of all pushed ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = true)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  // The text that has become certain with this token, always whole UTF-8 characters; may be empty. Bytes that
  // can no longer become a character come out as U+FFFD.
  std::string push(int32_t id);
  // What is held back, as U+FFFD; the decoder is then as new.
  std::string flush();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::string held_;  // at most 3 bytes: the start of a character
};

}  // namespace qvl::text
