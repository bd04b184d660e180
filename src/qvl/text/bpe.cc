#include "qvl/text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "qvl/text/load_word.h"
#include "qvl/text/unicode.h"

namespace qvl::text {
namespace {

// Up to this many bytes a plain scan for the lowest rank beats the heap.
constexpr size_t kMaxScanBytes = 64;

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges, const std::array<int32_t, 256>& byte_ids)
    : byte_ids_(byte_ids) {
  const size_t size = std::bit_ceil(std::max<size_t>(16, merges.size() * 2));
  slots_.assign(size, kEmpty);
  mask_ = size - 1;
  shift_ = 64 - std::countr_zero(size);
  results_.reserve(merges.size());
  const auto key_of = [](const Merge& m) { return static_cast<uint64_t>(m.left) << 21 | static_cast<uint64_t>(m.right); };
  constexpr uint32_t kAhead = 16;  // places of these are asked for
  for (uint32_t r = 0; r < merges.size(); ++r) {
    const Merge& m = merges[r];
    if (r + kAhead < merges.size()) __builtin_prefetch(&slots_[slot_of(key_of(merges[r + kAhead]))], 1);
    results_.push_back(m.result);
    const uint64_t key = key_of(m);
    size_t slot = slot_of(key);
    while (slots_[slot] != kEmpty && slots_[slot] >> 21 != key) slot = (slot + 1) & mask_;
    slots_[slot] = key << 21 | r;
  }
  byte_ranks_.assign(65536, kNoMerge);
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) byte_ranks_[a << 8 | b] = rank(byte_ids_[a], byte_ids_[b]);
  }
}

JoinTable::JoinTable() : pairs_((size_t{1} << kLogBits) / 64), partial_(65536 / 64) {}

void JoinTable::add_token(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  // Characters, or what a token holds of one: continuation bytes at its start, a lead byte with too few at
  // its end.
  size_t left = 0, end = 0;
  bool left_whole = false;
  for (size_t begin = 0; begin < bytes.size(); begin = end) {
    const unsigned char lead = at(begin);
    const bool starts = lead < 0x80 || (lead >= 0xC0 && lead < 0xF8);
    const size_t length = !starts ? bytes.size() : lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    end = begin + 1;
    while (end < bytes.size() && end < begin + length && (at(end) & 0xC0) == 0x80) ++end;
    const bool whole = starts && end - begin == length;
    if (begin > 0) {
      if (whole && left_whole) {
        const size_t bit = bit_of(decode_valid(bytes.data() + left).code_point,
                                  decode_valid(bytes.data() + begin).code_point);
        pairs_[bit / 64] |= uint64_t{1} << bit % 64;
      } else {
        const size_t bit = static_cast<size_t>(at(begin - 1)) << 8 | lead;
        partial_[bit / 64] |= uint64_t{1} << bit % 64;
      }
    }
    left = begin;
    left_whole = whole;
  }
}

bool JoinTable::may_join(std::string_view text, size_t left, size_t right) const {
  const size_t pair =
      bit_of(decode_valid(text.data() + left).code_point, decode_valid(text.data() + right).code_point);
  if (pairs_[pair / 64] >> pair % 64 & 1) return true;
  const size_t bytes = static_cast<size_t>(static_cast<unsigned char>(text[right - 1])) << 8 |
                       static_cast<unsigned char>(text[right]);
  return partial_[bytes / 64] >> bytes % 64 & 1;
}

size_t JoinTable::first_part(std::string_view text) const {
  size_t left = 0;
  for (;;) {
    const size_t right = left + decode_valid(text.data() + left).length_bytes;
    if (right >= text.size() || !may_join(text, left, right)) return right;
    left = right;
  }
}

PieceCache::Key PieceCache::key_of(std::string_view piece) {
  const char* p = piece.data();
  const size_t n = piece.size();
  // Overlapping loads: together with the length they fix every byte, and nothing outside the piece is read.
  Key key{{0, 0, 0}, static_cast<uint32_t>(n), 0};
  if (n > 8) {
    key.words[0] = load64(p);
    key.words[1] = load64(p + n - 8);
    if (n > 16) key.words[2] = load64(p + 8);
  } else if (n >= 4) {
    key.words[0] = load32(p) | load32(p + n - 4) << 32;
  } else {
    const auto b = [p](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(p[i])); };
    key.words[0] = b(0) | b(n / 2) << 8 | b(n - 1) << 16;
  }
  uint64_t h = (key.words[0] ^ n) * 0x9E3779B97F4A7C15u;
  h = (std::rotl(h, 29) ^ key.words[1]) * 0xD6E8FEB86659FD93u;
  h = (std::rotl(h, 29) ^ key.words[2]) * 0x9E3779B97F4A7C15u;
  key.slot = static_cast<size_t>(h >> (64 - kLogEntries));
  return key;
}

void PieceCache::put(const Key& key, const int32_t* ids, size_t count) {
  if (count > kMaxIds) return;
  Entry& e = entries_[key.slot];
  std::copy(std::begin(key.words), std::end(key.words), e.words);
  e.length = static_cast<uint8_t>(key.length);
  e.count = static_cast<uint8_t>(count);
  std::copy(ids, ids + count, e.ids);
}

namespace {

// Quadratic in the piece, for short ones: find the lowest rank, close the gap, repeat.
void encode_short(const MergeTable& merges, std::string_view piece, std::vector<int32_t>& out) {
  int32_t ids[kMaxScanBytes];
  uint32_t ranks[kMaxScanBytes];  // of ids[i], ids[i + 1]; the last is kNoMerge
  size_t n = piece.size();
  const auto* bytes = reinterpret_cast<const unsigned char*>(piece.data());
  for (size_t i = 0; i < n; ++i) {
    ids[i] = merges.byte_id(bytes[i]);
    ranks[i] = i + 1 < n ? merges.byte_rank(bytes[i], bytes[i + 1]) : MergeTable::kNoMerge;
  }
  while (n > 1) {
    const size_t at = std::min_element(ranks, ranks + n) - ranks;
    if (ranks[at] == MergeTable::kNoMerge) break;
    ids[at] = merges.result(ranks[at]);
    std::memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
    std::memmove(ranks + at, ranks + at + 1, (n - at - 1) * sizeof *ranks);
    --n;
    ranks[at] = at + 1 < n ? merges.rank(ids[at], ids[at + 1]) : MergeTable::kNoMerge;
    if (at > 0) ranks[at - 1] = merges.rank(ids[at - 1], ids[at]);
  }
  out.insert(out.end(), ids, ids + n);
}

// Linked list of symbols and a heap of (rank, position); an outdated heap entry is recognised by its rank.
void encode_long(const MergeTable& merges, std::string_view piece, BpeScratch& scratch,
                 std::vector<int32_t>& out) {
  auto& nodes = scratch.nodes;
  auto& heap = scratch.heap;
  nodes.clear();
  heap.clear();
  const auto* bytes = reinterpret_cast<const unsigned char*>(piece.data());
  const auto n = static_cast<int32_t>(piece.size());
  const auto entry = [](uint32_t rank, int32_t at) {
    return uint64_t{rank} << 32 | static_cast<uint32_t>(at);
  };
  for (int32_t i = 0; i < n; ++i) {
    const uint32_t rank = i + 1 < n ? merges.byte_rank(bytes[i], bytes[i + 1]) : MergeTable::kNoMerge;
    nodes.push_back({merges.byte_id(bytes[i]), rank, i - 1, i + 1 < n ? i + 1 : -1});
    if (rank != MergeTable::kNoMerge) heap.push_back(entry(rank, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto update = [&](int32_t at) {
    BpeScratch::Node& node = nodes[at];
    node.rank = node.next < 0 ? MergeTable::kNoMerge : merges.rank(node.id, nodes[node.next].id);
    if (node.rank != MergeTable::kNoMerge) {
      heap.push_back(entry(node.rank, at));
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    const auto at = static_cast<int32_t>(heap.back() & 0xFFFFFFFF);
    heap.pop_back();
    BpeScratch::Node& node = nodes[at];
    if (node.id < 0 || node.rank != rank) continue;
    BpeScratch::Node& right = nodes[node.next];
    node.id = merges.result(rank);
    node.next = right.next;
    right.id = -1;
    if (node.next >= 0) nodes[node.next].previous = at;
    update(at);
    if (node.previous >= 0) update(node.previous);
  }
  for (int32_t i = 0; i >= 0; i = nodes[i].next) out.push_back(nodes[i].id);
}

}  // namespace

void bpe_encode(const MergeTable& merges, std::string_view piece, BpeScratch& scratch,
                std::vector<int32_t>& out) {
  if (piece.size() <= kMaxScanBytes) {
    encode_short(merges, piece, out);
  } else {
    encode_long(merges, piece, scratch, out);
  }
}

std::unique_ptr<ScratchPool::Scratch> ScratchPool::take() {
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Scratch> scratch = std::move(idle_.back());
      idle_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<Scratch>();
}

void ScratchPool::give_back(std::unique_ptr<Scratch> scratch) {
  std::lock_guard lock(mutex_);
  if (idle_.size() < kMaxIdle) idle_.push_back(std::move(scratch));
}

}  // namespace qvl::text
