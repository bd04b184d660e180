#include "qvl/text/bpe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <random>
#include <string>

namespace qvl::text {
namespace {

// Random merges over a small alphabet, so that ranks, overlaps and chains of merges all occur.
struct Rules {
  std::vector<std::string> tokens;  // by id
  std::vector<MergeTable::Merge> merges;
  std::array<int32_t, 256> byte_ids;

  Rules(int count, int alphabet, uint32_t seed) {
    std::map<std::string, int32_t> ids;
    for (int b = 0; b < 256; ++b) {
      // Byte ids run backwards: nothing may take a byte for its id.
      tokens.push_back(std::string(1, static_cast<char>(255 - b)));
      byte_ids[255 - b] = b;
      ids[tokens.back()] = b;
    }
    std::mt19937 rng(seed);
    std::vector<int32_t> used;
    for (int k = 0; k < alphabet; ++k) used.push_back(byte_ids['a' + k]);
    while (static_cast<int>(merges.size()) < count) {
      const int32_t a = used[rng() % used.size()], b = used[rng() % used.size()];
      const std::string joined = tokens[a] + tokens[b];
      if (joined.size() > 12) continue;
      const auto [it, fresh] = ids.emplace(joined, static_cast<int32_t>(tokens.size()));
      if (fresh) {
        tokens.push_back(joined);
        used.push_back(it->second);
      }
      merges.push_back({a, b, it->second});
    }
  }
};

// The definition: join the adjacent pair of lowest rank, the leftmost if there are several, until there is
// none.
std::vector<int32_t> by_definition(const Rules& rules, const std::string& piece) {
  std::map<std::pair<int32_t, int32_t>, std::pair<size_t, int32_t>> table;
  for (size_t r = 0; r < rules.merges.size(); ++r) {
    table[{rules.merges[r].left, rules.merges[r].right}] = {r, rules.merges[r].result};
  }
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(rules.byte_ids[static_cast<unsigned char>(c)]);
  for (;;) {
    size_t best_rank = SIZE_MAX, best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = table.find({ids[i], ids[i + 1]});
      if (it != table.end() && it->second.first < best_rank) {
        best_rank = it->second.first;
        best = i;
      }
    }
    if (best_rank == SIZE_MAX) return ids;
    ids[best] = table[{ids[best], ids[best + 1]}].second;
    ids.erase(ids.begin() + best + 1);
  }
}

TEST(Bpe, EqualsTheDefinitionAtEveryLength) {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    const Rules rules(300, 4, seed);
    const MergeTable table(rules.merges, rules.byte_ids);
    std::mt19937 rng(seed + 100);
    BpeScratch scratch;
    for (int n = 1; n < 400; n += n < 140 ? 1 : 37) {
      for (int round = 0; round < 5; ++round) {
        std::string piece;
        while (static_cast<int>(piece.size()) < n) piece.push_back(static_cast<char>('a' + rng() % 5));
        std::vector<int32_t> ids;
        bpe_encode(table, piece, scratch, ids);
        ASSERT_EQ(ids, by_definition(rules, piece)) << piece;
      }
    }
  }
}

TEST(Bpe, TiesGoToTheLeft) {
  const Rules none(0, 1, 1);
  const int32_t a = none.byte_ids['a'];
  const MergeTable table({{a, a, 256}}, none.byte_ids);
  for (const size_t n : {3u, 65u, 101u}) {
    BpeScratch scratch;
    std::vector<int32_t> ids;
    bpe_encode(table, std::string(n, 'a'), scratch, ids);
    ASSERT_EQ(ids.size(), n / 2 + 1);
    EXPECT_EQ(ids.front(), 256);
    EXPECT_EQ(ids.back(), a);
  }
}

TEST(Bpe, LaterOfTwoEqualPairsCounts) {
  const Rules none(0, 1, 1);
  const int32_t a = none.byte_ids['a'], b = none.byte_ids['b'];
  const MergeTable table({{a, b, 256}, {b, a, 257}, {a, b, 256}}, none.byte_ids);
  EXPECT_EQ(table.rank(a, b), 2u);
  EXPECT_EQ(table.rank(b, a), 1u);
  EXPECT_EQ(table.rank(b, b), MergeTable::kNoMerge);
  EXPECT_EQ(table.byte_rank('a', 'b'), 2u);
}

TEST(Bpe, LongPieceIsNotQuadratic) {
  const Rules rules(300, 4, 7);
  const MergeTable table(rules.merges, rules.byte_ids);
  std::mt19937 rng(5);
  std::string piece;
  while (piece.size() < 500'000) piece.push_back(static_cast<char>('a' + rng() % 4));
  BpeScratch scratch;
  std::vector<int32_t> ids;
  const auto start = std::chrono::steady_clock::now();
  bpe_encode(table, piece, scratch, ids);
  // A quadratic loop would take minutes; this one takes a fraction of a second.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  size_t bytes = 0;
  for (const int32_t id : ids) bytes += rules.tokens[id].size();
  EXPECT_EQ(bytes, piece.size());
}

// Parts are as short as they may be, and joined they encode as the whole does.
TEST(JoinTable, PartsEncodeAsTheWhole) {
  JoinTable joins;
  joins.add_token("\u4E2D\u6587");
  joins.add_token("\u6587a");
  joins.add_token("\x80\xE4");        // the end of one character and the start of the next
  joins.add_token("\u00E9\xF0\x9F");  // a character and the start of the next
  const auto parts = [&](std::string_view text) {
    std::vector<std::string> out;
    while (!text.empty()) {
      const size_t n = joins.first_part(text);
      out.emplace_back(text.substr(0, n));
      text.remove_prefix(n);
    }
    return out;
  };
  using Parts = std::vector<std::string>;
  EXPECT_EQ(parts("\u6587\u4E2D\u6587a"), (Parts{"\u6587", "\u4E2D\u6587a"}));
  EXPECT_EQ(parts("\u4E2D"), Parts{"\u4E2D"});
  EXPECT_EQ(parts("\u4E00\u4E2D"), Parts{"\u4E00\u4E2D"});  // U+4E00 ends in 80, U+4E2D starts with E4
  EXPECT_EQ(parts("\u4E01\u4E2D"), (Parts{"\u4E01", "\u4E2D"}));
  EXPECT_EQ(parts("\u00E9\U0001F600"), Parts{"\u00E9\U0001F600"});  // E9 is C3 A9; the token shows A9 F0
  EXPECT_EQ(parts("\u00E8\U0001F600"), (Parts{"\u00E8", "\U0001F600"}));

  // Random merges over the bytes of five characters, whole and cut.
  const std::vector<std::string> characters = {"\u4E2D", "\u4E00", "\u00E9", "\U0001F600", "a"};
  for (const uint32_t seed : {1u, 2u, 3u, 4u}) {
    Rules rules(0, 1, seed);
    std::mt19937 rng(seed);
    std::map<std::string, int32_t> ids;
    for (size_t i = 0; i < rules.tokens.size(); ++i) ids[rules.tokens[i]] = static_cast<int32_t>(i);
    std::vector<std::string> texts;
    for (int k = 0; k < 60; ++k) {
      std::string text;
      for (int i = 0; i < 30; ++i) text += characters[rng() % characters.size()];
      texts.push_back(text);
    }
    // Merges that occur in these texts: any two neighbouring symbols of a partly merged one.
    while (rules.merges.size() < 25) {
      const std::string& text = texts[rng() % texts.size()];
      const MergeTable table(rules.merges, rules.byte_ids);
      BpeScratch scratch;
      std::vector<int32_t> symbols;
      bpe_encode(table, text, scratch, symbols);
      if (symbols.size() < 2) continue;
      const size_t at = rng() % (symbols.size() - 1);
      const std::string joined = rules.tokens[symbols[at]] + rules.tokens[symbols[at + 1]];
      const auto [it, fresh] = ids.emplace(joined, static_cast<int32_t>(rules.tokens.size()));
      if (fresh) rules.tokens.push_back(joined);
      rules.merges.push_back({symbols[at], symbols[at + 1], it->second});
    }
    const MergeTable table(rules.merges, rules.byte_ids);
    JoinTable random_joins;
    for (const MergeTable::Merge& m : rules.merges) random_joins.add_token(rules.tokens[m.result]);
    size_t cuts = 0;
    for (const std::string& text : texts) {
      std::vector<int32_t> by_parts;
      BpeScratch scratch;
      for (std::string_view rest = text; !rest.empty();) {
        const size_t n = random_joins.first_part(rest);
        bpe_encode(table, rest.substr(0, n), scratch, by_parts);
        rest.remove_prefix(n);
        ++cuts;
      }
      ASSERT_EQ(by_parts, by_definition(rules, text)) << seed;
    }
    EXPECT_GT(cuts, texts.size());
  }
}

TEST(PieceCache, FindsWhatWasPutAndNothingElse) {
  PieceCache cache;
  std::mt19937 rng(3);
  std::map<std::string, int32_t> put;
  for (int k = 0; k < 20000; ++k) {
    std::string piece;
    const size_t n = 1 + rng() % PieceCache::kMaxPieceBytes;
    while (piece.size() < n) piece.push_back(static_cast<char>("\0ab\xff"[rng() % 4]));
    const PieceCache::Key key = PieceCache::key_of(piece);
    if (const auto* e = cache.find(key)) {
      ASSERT_TRUE(put.contains(piece));
      ASSERT_EQ(e->count, 2);
      ASSERT_EQ(e->ids[0], put[piece]);
      ASSERT_EQ(e->ids[1], -7);
    } else {
      const int32_t ids[] = {k, -7};
      cache.put(key, ids, 2);
      put[piece] = k;
      ASSERT_NE(cache.find(key), nullptr);
    }
  }
  const PieceCache::Key key = PieceCache::key_of("many");
  const std::vector<int32_t> too_many(PieceCache::kMaxIds + 1, 1);
  cache.put(key, too_many.data(), too_many.size());
  EXPECT_EQ(cache.find(key), nullptr);
}

}  // namespace
}  // namespace qvl::text
