#include "qvl/grammar/grammar.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"
#include "qvl/grammar/random_walk.h"
#include "qvl/grammar/token_sets.h"

namespace qvl::grammar {
namespace {

using testing_support::allowed_ids;
using testing_support::RandomModel;
using testing_support::small_vocabulary;
using testing_support::Walk;

void accept_text(const testing_support::Vocabulary& v, Grammar& grammar, std::string_view text) {
  for (const int32_t id : v.tokenizer.encode_text(text)) grammar.accept(id);
}

TEST(Grammar, RegexEndsWhereNothingMayFollow) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto& v = small_vocabulary();
  Grammar grammar = v.engine.regex("(yes|no)( indeed)?");
  EXPECT_FALSE(grammar.may_end());
  accept_text(v, grammar, "no");
  EXPECT_TRUE(grammar.may_end());
  EXPECT_FALSE(grammar.finished());
  accept_text(v, grammar, " indeed");
  EXPECT_TRUE(grammar.finished());
  EXPECT_TRUE(grammar.may_end());
  EXPECT_EQ(allowed_ids(v, grammar).size(), 2u);
  grammar.accept(v.end_ids[1]);
  EXPECT_TRUE(grammar.finished());
  EXPECT_THROW(grammar.accept(v.end_ids[0]), Error);
}

TEST(Grammar, LarkMayNameTokens) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto& v = small_vocabulary();
  const std::string box = "<[" + std::to_string(v.id("<|box_start|>")) + "]>";
  Grammar grammar = v.engine.lark("start: " + box + " NUMBER\nNUMBER: /[0-9]{1,3}/\n");
  EXPECT_EQ(allowed_ids(v, grammar), std::vector<int32_t>{v.id("<|box_start|>")});
  grammar.accept(v.id("<|box_start|>"));
  accept_text(v, grammar, "77");
  EXPECT_TRUE(grammar.may_end());
  accept_text(v, grammar, "7");
  EXPECT_TRUE(grammar.finished());
}

TEST(Grammar, RefusedTokenChangesNothing) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto& v = small_vocabulary();
  Grammar grammar = v.engine.json_schema({{"type", "integer"}});
  accept_text(v, grammar, "12");
  const std::vector<int32_t> before = allowed_ids(v, grammar);
  for (const int32_t id :
       {v.tokenizer.encode_text("x").at(0), v.id("<|im_start|>"), v.tokenizer.vocab_size(), -1, 1 << 30}) {
    EXPECT_THROW(grammar.accept(id), Error) << id;
  }
  EXPECT_EQ(allowed_ids(v, grammar), before);
  accept_text(v, grammar, "3");
  EXPECT_TRUE(grammar.may_end());
}

TEST(Grammar, ClonesGoTheirOwnWays) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto& v = small_vocabulary();
  Grammar first = v.engine.regex("a(bc|de)");
  accept_text(v, first, "a");
  Grammar second = first.clone();
  accept_text(v, first, "b");
  accept_text(v, second, "d");
  Grammar third = second.clone();
  accept_text(v, first, "c");
  accept_text(v, third, "e");
  EXPECT_TRUE(first.finished());
  EXPECT_FALSE(second.finished());
  EXPECT_TRUE(third.finished());
}

TEST(Grammar, ReasoningComesFirstAndIsFree) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto& v = small_vocabulary();
  Grammar grammar = v.engine.json_schema({{"type", "boolean"}});
  grammar.allow_reasoning();
  EXPECT_THROW(grammar.allow_reasoning(), Error);
  accept_text(v, grammar, "Is it } or not?\n\n");
  EXPECT_FALSE(grammar.may_end());
  grammar.accept(v.id("</think>"));
  accept_text(v, grammar, "\n\n");
  EXPECT_THROW(accept_text(v, grammar, "maybe"), Error);
  accept_text(v, grammar, "true");
  EXPECT_TRUE(grammar.finished());
  Grammar late = v.engine.json_schema({{"type", "boolean"}});
  accept_text(v, late, "t");
  EXPECT_THROW(late.allow_reasoning(), Error);
}

TEST(Grammar, LogitsMayBeWiderButNotNarrower) {
  QVL_NEED_GRAMMAR_ENGINE();
  const auto& v = small_vocabulary();
  Grammar grammar = v.engine.regex("[a-z]+");
  std::vector<float> narrow(static_cast<size_t>(v.tokenizer.vocab_size()) - 1, 1.0f);
  EXPECT_THROW(grammar.mask(narrow), Error);
  std::vector<float> wide(static_cast<size_t>(v.tokenizer.vocab_size()) + 100, 1.0f);
  grammar.mask(wide);
  for (size_t id = static_cast<size_t>(v.tokenizer.vocab_size()); id < wide.size(); ++id)
    EXPECT_LT(wide[id], -1e30f);
  EXPECT_EQ(wide[static_cast<size_t>(v.tokenizer.encode_text("q").at(0))], 1.0f);
}

TEST(Grammar, EveryTokenOfTextIsAllowedWhereAnyTextIs) {
  QVL_NEED_PUBLISHED_VOCABULARY();
  const auto& v = *testing_support::published_vocabulary();
  Grammar grammar = v.engine.regex("(?s:.*)");
  std::vector<float> logits(static_cast<size_t>(v.tokenizer.vocab_size()), 0.0f);
  grammar.mask(logits);
  // A character may be spread over tokens, so its first bytes alone are allowed; what cannot begin one is
  // not.
  int refused = 0;
  for (int32_t id = 0; id < v.tokenizer.vocab_size(); ++id) {
    const bool allowed = logits[static_cast<size_t>(id)] == 0.0f;
    if (v.tokenizer.is_added(id)) {
      EXPECT_EQ(allowed, id == v.end_ids[0] || id == v.end_ids[1]) << id;
    } else if (!allowed) {
      const auto lead = static_cast<unsigned char>(v.tokenizer.token_bytes(id)[0]);
      EXPECT_TRUE((lead & 0xC0) == 0x80 || lead >= 0xF5 || lead == 0xC0 || lead == 0xC1) << id;
      ++refused;
    }
  }
  EXPECT_GT(refused, 64);
  EXPECT_LT(refused, 2000);
}

TEST(TokenSets, KeepOnlyLeavesTheRestAlone) {
  TokenSet set(3, 0);
  for (const int32_t id : {0, 31, 32, 70}) insert(set, id);
  std::fill(set.begin() + 1, set.begin() + 2, ~uint32_t{0});
  for (const size_t size : {72u, 96u, 100u}) {
    std::vector<float> logits(size, 2.5f);
    keep_only(set, logits);
    for (size_t id = 0; id < size; ++id) {
      const bool kept = id == 0 || (id >= 31 && id < 64) || id == 70;
      EXPECT_EQ(logits[id] == 2.5f, kept) << id << " of " << size;
    }
  }
}

TEST(TokenSets, TagIsFollowedThroughTokens) {
  const auto tokenizer = text::Tokenizer::load(std::filesystem::path(QVL_SOURCE_DIR) / "models/small");
  const TagSpelling tag(tokenizer, "<tool_call>");
  EXPECT_EQ(tag.advance(0, "abc"), 0u);
  EXPECT_EQ(tag.advance(0, "a<to"), 3u);
  EXPECT_EQ(tag.advance(3, "ol_"), 6u);
  EXPECT_EQ(tag.advance(3, "<t"), 2u);
  EXPECT_EQ(tag.advance(3, "x"), 0u);
  EXPECT_EQ(tag.advance(10, ">"), 11u);
  EXPECT_EQ(tag.advance(11, "<"), 1u);
}

}  // namespace
}  // namespace qvl::grammar
