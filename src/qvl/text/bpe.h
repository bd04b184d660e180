// Byte-level byte-pair encoding: one piece of text to token ids (spec 7.1 step 4). Works on raw bytes; the
// printable stand-ins of tokenizer.json are resolved when it is loaded.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace qvl::text {

// Token ids and merge ranks have 21 bits in the merge table.
constexpr int32_t kMaxTokens = 1 << 21;

// The merge rules of a vocabulary.
class MergeTable {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids
  };
  static constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();

  MergeTable() = default;
  // Rank = index in `merges`; a pair that is listed twice has its later rank, as in the reference.
  // `byte_ids[b]` is the token of the single byte b.
  MergeTable(const std::vector<Merge>& merges, const std::array<int32_t, 256>& byte_ids);

  // The rank of a pair, or kNoMerge.
  uint32_t rank(int32_t left, int32_t right) const {
    const uint64_t key = static_cast<uint64_t>(left) << 21 | static_cast<uint64_t>(right);
    for (size_t slot = slot_of(key);; slot = (slot + 1) & mask_) {
      const uint64_t entry = slots_[slot];
      if (entry >> 21 == key) return static_cast<uint32_t>(entry & 0x1FFFFF);
      if (entry == kEmpty) return kNoMerge;
    }
  }
  // The rank of two single bytes.
  uint32_t byte_rank(unsigned char left, unsigned char right) const { return byte_ranks_[left << 8 | right]; }
  int32_t result(uint32_t rank) const { return results_[rank]; }
  int32_t byte_id(unsigned char byte) const { return byte_ids_[byte]; }

 private:
  static constexpr uint64_t kEmpty = std::numeric_limits<uint64_t>::max();
  size_t slot_of(uint64_t key) const { return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> shift_); }

  std::vector<uint64_t> slots_;  // left:21 right:21 rank:21
  size_t mask_ = 0;
  int shift_ = 0;
  std::vector<int32_t> results_;
  std::vector<uint32_t> byte_ranks_;  // [65536]
  std::array<int32_t, 256> byte_ids_{};
};

// Which neighbouring characters some token of the vocabulary has inside it. Where none has, no merge ever
// crosses, and a long piece (a Chinese sentence is one) falls into parts that are encoded, and cached, one by
// one, with the same result.
class JoinTable {
 public:
  JoinTable();
  // Every token that a merge can produce must be added.
  void add_token(std::string_view bytes);
  // `text` is valid UTF-8, not empty. The length of its first part.
  size_t first_part(std::string_view text) const;

 private:
  static constexpr int kLogBits = 20;
  static size_t bit_of(char32_t left, char32_t right) {
    return static_cast<size_t>(((uint64_t{left} << 32 | right) * 0x9E3779B97F4A7C15u) >> (64 - kLogBits));
  }
  bool may_join(std::string_view text, size_t left, size_t right) const;

  std::vector<uint64_t> pairs_;  // a hash filter of whole characters: a false hit only leaves a part longer
  std::vector<uint64_t>
      partial_;  // [65536] bits: last byte, first byte where a token cuts one of the two characters
};

// Recent pieces and their ids: direct-mapped, fixed size, no allocation after construction. One user at a
// time.
class PieceCache {
 public:
  static constexpr size_t kMaxPieceBytes = 24, kMaxIds = 9;

  struct Key {
    uint64_t words[3];
    uint32_t length;
    size_t slot;
  };
  struct Entry {
    uint64_t words[3];
    uint8_t length;  // 0: empty
    uint8_t count;
    int32_t ids[kMaxIds];
  };

  PieceCache() : entries_(size_t{1} << kLogEntries) {}

  // `piece` has 1 to kMaxPieceBytes bytes.
  static Key key_of(std::string_view piece);
  const Entry* find(const Key& key) const {
    const Entry& e = entries_[key.slot];
    const bool hit = e.length == key.length && e.words[0] == key.words[0] && e.words[1] == key.words[1] &&
                     e.words[2] == key.words[2];
    return hit ? &e : nullptr;
  }
  void put(const Key& key, const int32_t* ids, size_t count);

 private:
  static constexpr int kLogEntries = 15;
  std::vector<Entry> entries_;
};

// Working memory of one encode call.
struct BpeScratch {
  struct Node {
    int32_t id;     // -1: merged into the node before
    uint32_t rank;  // of this node and the next
    int32_t previous, next;
  };
  std::vector<int32_t> ids;
  std::vector<uint32_t> ranks;
  std::vector<Node> nodes;
  std::vector<uint64_t> heap;
};

// Appends the ids of one piece. Time n log n in the piece's bytes; `piece` is not empty.
void bpe_encode(const MergeTable& merges, std::string_view piece, BpeScratch& scratch,
                std::vector<int32_t>& out);

// Hands out caches and working memory, so that they stay warm between calls and threads never share one.
class ScratchPool {
 public:
  struct Scratch {
    PieceCache cache;
    BpeScratch bpe;
    std::string joined, normalized;
  };
  // Never null.
  std::unique_ptr<Scratch> take();
  void give_back(std::unique_ptr<Scratch> scratch);

 private:
  static constexpr size_t kMaxIdle = 4;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> idle_;
};

}  // namespace qvl::text
