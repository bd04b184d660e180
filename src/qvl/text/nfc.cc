#include "qvl/text/nfc.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "qvl/text/unicode_data.h"

namespace qvl::text {
namespace {

constexpr char32_t kHangulBase = 0xAC00, kLeadBase = 0x1100, kVowelBase = 0x1161, kTailBase = 0x11A7;
constexpr char32_t kLeads = 19, kVowels = 21, kTails = 28, kHangul = kLeads * kVowels * kTails;

// Below this code point nothing is ever changed, moved or joined to the left.
constexpr unsigned char kFirstLeadByteOfInterest = 0xCC;  // U+0300

struct Tables {
  std::unordered_map<char32_t, const Decomposition*> decompositions;
  std::unordered_map<uint64_t, char32_t> pairs;
  std::unordered_map<char32_t, uint8_t> combining;

  Tables() {
    for (const Decomposition& d : kDecompositions) {
      decompositions.emplace(d.code_point, &d);
      if (d.composes) pairs.emplace(uint64_t{d.first} << 32 | d.second, d.code_point);
    }
    for (const CombiningRange& r : kCombiningRanges) {
      for (char32_t c = r.first; c <= r.last; ++c) combining.emplace(c, r.combining_class);
    }
  }
  static const Tables& get() {
    static const Tables tables;
    return tables;
  }
};

struct Item {
  char32_t code_point;
  uint8_t combining_class;
};

void decompose(char32_t c, const Tables& t, std::vector<Item>& out) {
  if (c - kHangulBase < kHangul) {
    const char32_t s = c - kHangulBase;
    out.push_back({kLeadBase + s / (kVowels * kTails), 0});
    out.push_back({kVowelBase + s % (kVowels * kTails) / kTails, 0});
    if (s % kTails != 0) out.push_back({kTailBase + s % kTails, 0});
    return;
  }
  if (const auto it = t.decompositions.find(c); it != t.decompositions.end()) {
    decompose(it->second->first, t, out);
    if (it->second->second != 0) decompose(it->second->second, t, out);
    return;
  }
  const auto it = t.combining.find(c);
  out.push_back({c, it == t.combining.end() ? uint8_t{0} : it->second});
}

// The composite of a pair, or 0.
char32_t compose(char32_t a, char32_t b, const Tables& t) {
  if (a - kLeadBase < kLeads && b - kVowelBase < kVowels) {
    return kHangulBase + ((a - kLeadBase) * kVowels + (b - kVowelBase)) * kTails;
  }
  if (a - kHangulBase < kHangul && (a - kHangulBase) % kTails == 0 && b - kTailBase - 1 < kTails - 1) {
    return a + (b - kTailBase);
  }
  const auto it = t.pairs.find(uint64_t{a} << 32 | b);
  return it == t.pairs.end() ? 0 : it->second;
}

// Normalises `window` (whole characters) and appends the result.
void normalize_window(std::string_view window, std::vector<Item>& items, std::string& out) {
  const Tables& t = Tables::get();
  items.clear();
  for (size_t i = 0; i < window.size();) {
    const Decoded d = decode_valid(window.data() + i);
    decompose(d.code_point, t, items);
    i += d.length_bytes;
  }
  for (auto run = items.begin(); run != items.end();) {
    if (run->combining_class == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, items.end(), [](const Item& x) { return x.combining_class == 0; });
    std::stable_sort(run, end,
                     [](const Item& a, const Item& b) { return a.combining_class < b.combining_class; });
    run = end;
  }
  size_t kept = 0;
  size_t starter = SIZE_MAX;  // index of the last starter among the kept ones
  for (const Item item : items) {
    if (starter != SIZE_MAX) {
      // Blocked if something kept since the starter has the same or a higher class, or is itself a starter.
      const bool adjacent = kept == starter + 1;
      const bool blocked = !adjacent && items[kept - 1].combining_class >= item.combining_class;
      if (!blocked) {
        if (const char32_t joined = compose(items[starter].code_point, item.code_point, t)) {
          items[starter].code_point = joined;
          continue;
        }
      }
    }
    if (item.combining_class == 0) starter = kept;
    items[kept++] = item;
  }
  for (size_t i = 0; i < kept; ++i) append_utf8(items[i].code_point, out);
}

// Position of the first character in [from, end) that NFC may change; `end` if none. `last_start` receives
// the start of the character before it (SIZE_MAX if there is none after `from`).
size_t find_suspect(std::string_view s, size_t from, const CharTable& table, size_t& last_start) {
  last_start = SIZE_MAX;
  const char* p = s.data();
  size_t i = from;
  while (i < s.size()) {
    uint64_t word;
    while (i + 8 <= s.size()) {
      std::memcpy(&word, p + i, 8);
      if (word & 0x8080808080808080u) break;
      i += 8;
      last_start = i - 1;
    }
    for (int n = 0; n < 32 && i < s.size(); ++n) {
      const auto lead = static_cast<unsigned char>(p[i]);
      if (lead < kFirstLeadByteOfInterest) {
        last_start = i;
        i += lead < 0x80 ? 1 : 2;
        continue;
      }
      const Decoded d = decode_valid(p + i);
      if (table.may_change_in_nfc(d.code_point)) return i;
      last_start = i;
      i += d.length_bytes;
    }
  }
  return s.size();
}

}  // namespace

std::string_view normalize_nfc(std::string_view utf8, std::string& buffer) {
  const CharTable& table = CharTable::get();
  size_t last_start;
  size_t suspect = find_suspect(utf8, 0, table, last_start);
  if (suspect == utf8.size()) return utf8;
  buffer.clear();
  buffer.reserve(utf8.size() + 16);
  std::vector<Item> items;
  size_t copied = 0;
  while (suspect < utf8.size()) {
    // The window reaches from the harmless character before the suspect to the next harmless one after it.
    const size_t begin = last_start == SIZE_MAX ? suspect : last_start;
    size_t end = suspect;
    while (end < utf8.size()) {
      const Decoded d = decode_valid(utf8.data() + end);
      if (!table.may_change_in_nfc(d.code_point)) break;
      end += d.length_bytes;
    }
    buffer.append(utf8.substr(copied, begin - copied));
    normalize_window(utf8.substr(begin, end - begin), items, buffer);
    copied = end;
    suspect = find_suspect(utf8, end, table, last_start);
  }
  buffer.append(utf8.substr(copied));
  return buffer;
}

}  // namespace qvl::text
