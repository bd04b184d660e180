// One grammar at work on one text, and the vocabulary it is about: the grammar engine (llguidance) behind our
// types and errors. Internal to this room; what others use is grammar.h. matcher.cc needs the engine's
// library, matcher_stub.cc stands in where it was not built.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qvl::grammar {

// What the engine knows of a tokenizer.
struct Vocabulary {
  // By id. Empty: never allowed. Tokens that only a grammar that names them may produce start with
  // kSpecialMarker, a byte that no UTF-8 text contains.
  std::vector<std::string> tokens;
  std::vector<int32_t> end_ids;  // at least one
  // The ids of ordinary text, as a prompt's text is encoded; called from any thread. May throw; the engine
  // then leaves the choice of tokens to the model.
  std::function<std::vector<int32_t>(std::string_view)> tokenize;
};
inline constexpr char kSpecialMarker = '\xFF';

// The vocabulary in the engine's form. Immutable; matchers on it may be made and used in different threads.
class MatcherFactory {
 public:
  // Throws kUnsupported without the engine, kInvalidArgument for end ids outside the vocabulary.
  explicit MatcherFactory(Vocabulary vocabulary);
  ~MatcherFactory();
  MatcherFactory(const MatcherFactory&) = delete;
  MatcherFactory& operator=(const MatcherFactory&) = delete;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

enum class GrammarKind { kRegex, kJsonSchema, kLark };

// What the engine says of a grammar without running it: what it leaves unenforced (kJsonSchema with
// "lenient"), empty for nothing. Throws as Matcher does.
std::string grammar_warnings(const MatcherFactory& factory, GrammarKind kind, const std::string& text);

// The position of one text in one grammar. Not thread-safe; copies (clone) are independent of each other.
class Matcher {
 public:
  // Compiles `text`. Throws kInvalidArgument for a grammar that is wrong or that nothing satisfies,
  // kUnsupported for what the engine cannot enforce (the message names it), kLimit for one that is too large
  // or too costly.
  Matcher(std::shared_ptr<const MatcherFactory> factory, GrammarKind kind, const std::string& text);
  Matcher(Matcher&&) noexcept;
  Matcher& operator=(Matcher&&) noexcept;
  ~Matcher();

  Matcher clone() const;

  // Sets the bits of the ids that may come next, [ceil(vocabulary size / 32)] words, id i at bit i % 32 of
  // word i / 32. Where nothing more may come: the end ids. Throws kLimit if the grammar is too costly here.
  void allowed(std::span<uint32_t> bits);
  // Appends a token that is not an end id. Throws kInvalidArgument if it may not come next; the matcher is of
  // no more use then.
  void accept(int32_t id);
  // The text is complete as it is.
  bool accepts_end();
  // The text is complete and nothing may follow.
  bool at_end() const;

 private:
  struct Impl;
  explicit Matcher(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// True if this program contains the engine.
bool engine_is_built_in();

}  // namespace qvl::grammar
