// For this room's tests: vocabularies, and a model that knows nothing, which chooses among the allowed tokens
// at random.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/grammar/grammar.h"
#include "qvl/text/tokenizer.h"

namespace qvl::grammar::testing_support {

struct Vocabulary {
  text::Tokenizer tokenizer;
  std::vector<int32_t> end_ids;
  GrammarEngine engine;

  explicit Vocabulary(const std::filesystem::path& folder)
      : tokenizer(text::Tokenizer::load(folder)),
        end_ids{tokenizer.require_token("<|im_end|>"), tokenizer.require_token("<|endoftext|>")},
        engine(tokenizer, end_ids) {}
  int32_t id(std::string_view token) const { return tokenizer.require_token(token); }
};

// The small model's 601 tokens.
inline const Vocabulary& small_vocabulary() {
  static const Vocabulary v(std::filesystem::path(QVL_SOURCE_DIR) / "models/small");
  return v;
}

// The published 151,669 tokens, which tests/parity/fetch_vocabulary.sh fetches; null where they are not.
inline const Vocabulary* published_vocabulary() {
  static const std::optional<Vocabulary> v = []() -> std::optional<Vocabulary> {
    const char* dir = std::getenv("QVL_PARITY_DIR");
    const std::filesystem::path folder =
        (dir != nullptr && *dir != '\0' ? std::filesystem::path(dir)
                                        : std::filesystem::path(QVL_SOURCE_DIR) / "build/third_party") /
        "qwen3-tokenizer";
    if (!std::filesystem::exists(folder / "tokenizer.json")) return std::nullopt;
    return std::optional<Vocabulary>(std::in_place, folder);
  }();
  return v ? &*v : nullptr;
}

inline bool is_required(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "1";
}

// Logits are wider than the vocabulary, as a checkpoint's are.
inline constexpr size_t kPadding = 267;

inline std::vector<int32_t> allowed_ids(const Vocabulary& v, Grammar& grammar) {
  std::vector<float> logits(static_cast<size_t>(v.tokenizer.vocab_size()) + kPadding, 0.0f);
  grammar.mask(logits);
  std::vector<int32_t> ids;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] == 0.0f) {
      ids.push_back(static_cast<int32_t>(id));
    } else {
      EXPECT_TRUE(std::isinf(logits[id]) && logits[id] < 0);
    }
  }
  EXPECT_FALSE(ids.empty());
  for (const int32_t id : ids) EXPECT_LT(id, v.tokenizer.vocab_size());
  return ids;
}

struct Walk {
  std::vector<int32_t> ids;  // without the end id
  std::string text;          // all bytes, added tokens as their text
  bool ended = false;
};

// Uniformly among all allowed tokens nothing would ever end, so one step in three takes a token that closes
// something if there is one, and after `patience` tokens nearly all do.
class RandomModel {
 public:
  explicit RandomModel(uint64_t seed) : random_(seed) {}

  Walk walk(const Vocabulary& v, Grammar& grammar, size_t most_tokens = 4000, size_t patience = 60) {
    Walk walk;
    while (walk.ids.size() < most_tokens) {
      const int32_t id = choose(v, allowed_ids(v, grammar), walk.ids.size() > patience);
      EXPECT_FALSE(v.tokenizer.token_bytes(id).empty());
      grammar.accept(id);
      if (is_end(v, id)) {
        EXPECT_TRUE(grammar.finished());
        walk.ended = true;
        return walk;
      }
      walk.ids.push_back(id);
      walk.text += v.tokenizer.token_bytes(id);
    }
    return walk;
  }

 private:
  static bool is_end(const Vocabulary& v, int32_t id) { return id == v.end_ids[0] || id == v.end_ids[1]; }
  static bool closes(const Vocabulary& v, int32_t id) {
    const std::string_view bytes = v.tokenizer.token_bytes(id);
    return is_end(v, id) || bytes == "\"" || bytes == "]" || bytes == "}" || bytes == "\"]" || bytes == "\"}";
  }
  int32_t pick(const std::vector<int32_t>& ids) {
    return ids[std::uniform_int_distribution<size_t>(0, ids.size() - 1)(random_)];
  }
  int32_t choose(const Vocabulary& v, const std::vector<int32_t>& allowed, bool impatient) {
    const double u = std::uniform_real_distribution<>(0, 1)(random_);
    if (u < (impatient ? 0.95 : 0.33)) {
      std::vector<int32_t> closing;
      for (const int32_t id : allowed) {
        if (closes(v, id)) closing.push_back(id);
      }
      if (!closing.empty()) return pick(closing);
    }
    return pick(allowed);
  }

  std::mt19937_64 random_;
};

}  // namespace qvl::grammar::testing_support

// Ends a test that needs the grammar engine where this program has none.
#define QVL_NEED_GRAMMAR_ENGINE()                                                                           \
  do {                                                                                                      \
    if (!qvl::grammar::is_available()) {                                                                    \
      if (qvl::grammar::testing_support::is_required("QVL_REQUIRE_GRAMMAR")) FAIL() << "no grammar engine"; \
      GTEST_SKIP() << "NOT TESTED: grammars. Run scripts/lib/llguidance.sh and build again";                \
    }                                                                                                       \
  } while (false)

// The same for the published vocabulary.
#define QVL_NEED_PUBLISHED_VOCABULARY()                                                             \
  do {                                                                                              \
    QVL_NEED_GRAMMAR_ENGINE();                                                                      \
    if (qvl::grammar::testing_support::published_vocabulary() == nullptr) {                         \
      if (qvl::grammar::testing_support::is_required("QVL_REQUIRE_PARITY"))                         \
        FAIL() << "no published vocabulary";                                                        \
      GTEST_SKIP() << "NOT TESTED: the published vocabulary. Run tests/parity/fetch_vocabulary.sh"; \
    }                                                                                               \
  } while (false)
