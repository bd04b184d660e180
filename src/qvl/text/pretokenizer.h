// Splits text into the pieces that BPE works on: the Qwen pattern as a hand-written scanner (spec 7.1, rules
// 1-7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "qvl/text/unicode.h"

namespace qvl::text {

// The one pattern that PieceScanner implements, as tokenizer.json spells it.
constexpr std::string_view kPieceRegex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Walks over valid UTF-8, which must outlive the scanner. Every byte belongs to exactly one piece.
class PieceScanner {
 public:
  explicit PieceScanner(std::string_view text)
      : table_(CharTable::get()), text_(text), p_(text.data()), end_(text.data() + text.size()) {}

  // The next piece; empty at the end.
  std::string_view next();

 private:
  struct Char {
    CharClass char_class;
    int length_bytes;
  };
  Char char_at(const char* p) const;
  const char* skip_letters(const char* p) const;
  const char* contraction_end(const char* quote) const;
  const char* symbols_end(const char* p) const;
  const char* white_space_end(const char* p) const;

  const CharTable& table_;
  std::string_view text_;
  const char* p_;
  const char* end_;
};

}  // namespace qvl::text
