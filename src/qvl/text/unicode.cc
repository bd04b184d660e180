#include "qvl/text/unicode.h"

#include <algorithm>
#include <cstring>

#include "qvl/text/unicode_data.h"

namespace qvl::text {

void append_utf8(char32_t c, std::string& out) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  }
}

Utf8Unit next_utf8_unit(std::string_view bytes) {
  using Kind = Utf8Unit::Kind;
  if (bytes.empty()) return {Kind::kIncomplete, 0};
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {Kind::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Kind::kInvalid, 1};
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // Only the second byte has narrower limits (no overlong forms, no surrogates, nothing above U+10FFFF).
  unsigned char low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (int i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
    if (static_cast<size_t>(i) == bytes.size()) return {Kind::kIncomplete, i};
    if (at(i) < low || at(i) > high) return {Kind::kInvalid, i};
  }
  return {Kind::kValid, length};
}

namespace {

// Bytes at the start of `p` that are ASCII, in steps of eight.
size_t ascii_prefix(const char* p, size_t size) {
  size_t i = 0;
  for (uint64_t word; i + 8 <= size; i += 8) {
    std::memcpy(&word, p + i, 8);
    if (word & 0x8080808080808080u) break;
  }
  return i;
}

size_t valid_prefix(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    i += ascii_prefix(bytes.data() + i, bytes.size() - i);
    // Stay in the general loop for a while: in non-Latin text the ASCII test rarely pays.
    for (int n = 0; n < 64 && i < bytes.size(); ++n) {
      const Utf8Unit unit = next_utf8_unit(bytes.substr(i, 4));
      if (unit.kind != Utf8Unit::Kind::kValid) return i;
      i += unit.length_bytes;
    }
  }
  return i;
}

}  // namespace

bool is_valid_utf8(std::string_view bytes) {
  return valid_prefix(bytes) == bytes.size();
}

int64_t count_characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

void append_sanitized(std::string_view bytes, std::string& out) {
  while (!bytes.empty()) {
    const size_t good = valid_prefix(bytes);
    out.append(bytes.substr(0, good));
    bytes.remove_prefix(good);
    if (bytes.empty()) return;
    append_utf8(kReplacement, out);
    bytes.remove_prefix(next_utf8_unit(bytes).length_bytes);
  }
}

const CharTable& CharTable::get() {
  static const CharTable table;
  return table;
}

CharTable::CharTable() {
  std::memset(table_, 0, sizeof table_);
  for (const ClassRange& r : kClassRanges) {
    std::fill(table_ + r.first, table_ + r.last + 1, static_cast<uint8_t>(r.char_class));
  }
  for (const CombiningRange& r : kCombiningRanges) {
    for (char32_t c = r.first; c <= r.last; ++c) table_[c] |= 4;
  }
  for (const Decomposition& d : kDecompositions) {
    if (d.composes) {
      table_[d.second] |= 4;
    } else {
      table_[d.code_point] |= 4;
    }
  }
  for (char32_t c = 0x1161; c <= 0x1175; ++c) table_[c] |= 4;  // Hangul vowels and finals join what precedes
  for (char32_t c = 0x11A8; c <= 0x11C2; ++c) table_[c] |= 4;
}

}  // namespace qvl::text
