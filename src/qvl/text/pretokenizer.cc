#include "qvl/text/pretokenizer.h"

#include <array>

namespace qvl::text {
namespace {

constexpr std::array<CharClass, 128> kAscii = [] {
  std::array<CharClass, 128> t{};
  for (int c = 'a'; c <= 'z'; ++c) t[c] = t[c - 'a' + 'A'] = CharClass::kLetter;
  for (int c = '0'; c <= '9'; ++c) t[c] = CharClass::kNumber;
  for (int c = 9; c <= 13; ++c) t[c] = CharClass::kWhiteSpace;
  t[' '] = CharClass::kWhiteSpace;
  return t;
}();

bool is_newline(char c) {
  return c == '\n' || c == '\r';
}

// Lower case of an ASCII letter; other bytes never become one of the letters asked for.
char fold(char c) {
  return static_cast<char>(c | 0x20);
}

}  // namespace

inline PieceScanner::Char PieceScanner::char_at(const char* p) const {
  const auto byte = static_cast<unsigned char>(*p);
  if (byte < 0x80) return {kAscii[byte], 1};
  const Decoded d = decode_valid(p);
  return {table_.char_class(d.code_point), d.length_bytes};
}

inline const char* PieceScanner::skip_letters(const char* p) const {
  while (p < end_) {
    const auto byte = static_cast<unsigned char>(*p);
    if (byte < 0x80) {
      if (kAscii[byte] != CharClass::kLetter) return p;
      ++p;
    } else {
      const Decoded d = decode_valid(p);
      if (table_.char_class(d.code_point) != CharClass::kLetter) return p;
      p += d.length_bytes;
    }
  }
  return p;
}

// The end of 's, 't, 'm, 'd, 're, 've, 'll at `quote` in any case, or `quote`. U+017F folds to s.
const char* PieceScanner::contraction_end(const char* quote) const {
  const size_t left = static_cast<size_t>(end_ - quote);
  if (left < 2) return quote;
  const char a = fold(quote[1]);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return quote + 2;
  if (left < 3) return quote;
  const char b = fold(quote[2]);
  if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return quote + 3;
  if (quote[1] == '\xC5' && quote[2] == '\xBF') return quote + 3;
  return quote;
}

// Rule 4 behind the optional blank: the end of a run of symbols and the newlines after it, or `p`.
const char* PieceScanner::symbols_end(const char* p) const {
  const char* q = p;
  while (q < end_) {
    const Char c = char_at(q);
    if (c.char_class != CharClass::kOther) break;
    q += c.length_bytes;
  }
  if (q > p) {
    while (q < end_ && is_newline(*q)) ++q;
  }
  return q;
}

// Rules 5 to 7: where the piece ends that starts with the white space at `p`.
const char* PieceScanner::white_space_end(const char* p) const {
  const char* q = p;
  const char* last = p;  // start of the run's last character
  const char* after_newline = nullptr;
  while (q < end_) {
    const Char c = char_at(q);
    if (c.char_class != CharClass::kWhiteSpace) break;
    last = q;
    q += c.length_bytes;
    if (is_newline(*last)) after_newline = q;
  }
  if (after_newline != nullptr) return after_newline;
  // The last blank goes to the next piece, unless the run ends the text or is a single character.
  return q == end_ || last == p ? q : last;
}

std::string_view PieceScanner::next() {
  if (p_ == end_) return {};
  const char* const start = p_;
  const Char first = char_at(start);
  const char* const second = start + first.length_bytes;
  const char* stop = start;
  switch (first.char_class) {
    case CharClass::kLetter:
      stop = skip_letters(second);
      break;
    case CharClass::kNumber:
      stop = second;
      break;
    case CharClass::kOther:
      if (*start == '\'') stop = contraction_end(start);
      if (stop == start) {
        const char* const letters = skip_letters(second);
        stop = letters > second ? letters : symbols_end(start);
      }
      break;
    case CharClass::kWhiteSpace:
      if (!is_newline(*start)) {
        const char* const letters = skip_letters(second);
        if (letters > second) {
          stop = letters;
          break;
        }
        if (*start == ' ') stop = symbols_end(second);
        if (stop > second) break;
      }
      stop = white_space_end(start);
      break;
  }
  p_ = stop;
  return {start, static_cast<size_t>(stop - start)};
}

}  // namespace qvl::text
