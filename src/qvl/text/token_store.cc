#include "qvl/text/token_store.h"

#include <algorithm>
#include <bit>

#include "qvl/text/load_word.h"

namespace qvl::text {
namespace {

uint64_t mix(uint64_t h, uint64_t word) {
  h = (h ^ word) * 0x9E3779B97F4A7C15u;
  return h ^ h >> 32;
}

}  // namespace

void TokenStore::reserve(size_t count, size_t total_bytes) {
  slots_.assign(std::bit_ceil(std::max<size_t>(16, count * 2 + 1)), Slot{});
  tokens_.reserve(count + 64);
  arena_.reserve(total_bytes);
}

// Words of eight bytes; the last ones overlap, so that nothing outside the text is read.
uint64_t TokenStore::hash_of(std::string_view bytes) {
  const char* p = bytes.data();
  const size_t n = bytes.size();
  uint64_t h = n * 0xD6E8FEB86659FD93u;
  if (n >= 8) {
    for (size_t i = 0; i + 8 < n; i += 8) h = mix(h, load64(p + i));
    h = mix(h, load64(p + n - 8));
  } else if (n >= 4) {
    h = mix(h, load32(p) | load32(p + n - 4) << 32);
  } else if (n > 0) {
    const auto b = [p](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(p[i])); };
    h = mix(h, b(0) | b(n / 2) << 8 | b(n - 1) << 16);
  }
  return mix(h, h >> 29);
}

size_t TokenStore::slot_of(std::string_view bytes, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  while (slots_[slot].id >= 0 && (slots_[slot].tag != tag_of(hash) || this->bytes(slots_[slot].id) != bytes))
    slot = (slot + 1) & mask;
  return slot;
}

bool TokenStore::add(int32_t id, std::string_view bytes, bool findable) {
  if (contains(id)) return false;
  if (findable) {
    const uint64_t hash = hash_of(bytes);
    Slot& slot = slots_[slot_of(bytes, hash)];
    if (slot.id >= 0) return false;
    slot = {tag_of(hash), id};
  }
  if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<size_t>(id) + 1);
  tokens_[id] = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(bytes.size()), true, findable};
  arena_.append(bytes);
  return true;
}

std::optional<int32_t> TokenStore::find(std::string_view bytes, uint64_t hash) const {
  const int32_t id = slots_[slot_of(bytes, hash)].id;
  return id < 0 ? std::nullopt : std::optional(id);
}

}  // namespace qvl::text
