// UTF-8 and the character classes of the pre-tokenisation pattern (spec 7.1). The tables are those of the
// reference library, see make_unicode_tables.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace qvl::text {

enum class CharClass : uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kWhiteSpace = 3 };

constexpr char32_t kReplacement = 0xFFFD;

struct Decoded {
  char32_t code_point;
  int length_bytes;
};

// The character at `p`, which must start valid UTF-8.
inline Decoded decode_valid(const char* p) {
  const auto b = [p](int i) { return static_cast<char32_t>(static_cast<unsigned char>(p[i])); };
  if (b(0) < 0x80) return {b(0), 1};
  if (b(0) < 0xE0) return {(b(0) & 0x1F) << 6 | (b(1) & 0x3F), 2};
  if (b(0) < 0xF0) return {(b(0) & 0x0F) << 12 | (b(1) & 0x3F) << 6 | (b(2) & 0x3F), 3};
  return {(b(0) & 0x07) << 18 | (b(1) & 0x3F) << 12 | (b(2) & 0x3F) << 6 | (b(3) & 0x3F), 4};
}

void append_utf8(char32_t code_point, std::string& out);

// What stands at the start of `bytes`: a whole character (valid), the beginning of one that the string cuts
// off (incomplete), or a maximal invalid part. length_bytes covers it; for an empty string it is 0.
struct Utf8Unit {
  enum class Kind { kValid, kIncomplete, kInvalid };
  Kind kind;
  int length_bytes;
};
Utf8Unit next_utf8_unit(std::string_view bytes);

bool is_valid_utf8(std::string_view bytes);
// Characters of valid UTF-8; of any bytes, those that are not inside one.
int64_t count_characters(std::string_view utf8);
// Appends `bytes` with each maximal invalid part replaced by U+FFFD.
void append_sanitized(std::string_view bytes, std::string& out);

// Per code point: bits 0-1 CharClass, bit 2 set if NFC may change or move the character or join it to the one
// before. One table for the process, built at first use.
class CharTable {
 public:
  static const CharTable& get();

  uint8_t properties(char32_t c) const { return c < kSize ? table_[c] : 0; }
  CharClass char_class(char32_t c) const { return static_cast<CharClass>(properties(c) & 3); }
  bool may_change_in_nfc(char32_t c) const { return (properties(c) & 4) != 0; }

 private:
  CharTable();
  static constexpr size_t kSize = 0x32400;  // beyond: no letter, number or space, and NFC leaves all alone
  uint8_t table_[kSize];
};

}  // namespace qvl::text
