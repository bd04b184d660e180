// Constrained decoding: which tokens may come next so that an answer is JSON, follows a schema or is a tool
// call in Qwen3-VL's form (spec 7.4). Used between the decoder's logits and the sampler, one token at a time.
//
//   engine = GrammarEngine(tokenizer, end_ids)        once a tokenizer, shared by everyone
//   grammar = engine.json_schema(schema)              once a request, or once and then clone()
//   loop: grammar.mask(logits); id = sample(logits); grammar.accept(id); until an end id or
//   grammar.finished()
//
// Tokens of the tokenizer's added list (<|im_end|>, <|image_pad|>, <think>, ...) appear in an answer only
// where its grammar names them; ids without text, among them those of logits wider than the vocabulary,
// never.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/text/tokenizer.h"

namespace qvl::grammar {

// False if this program was built without the grammar engine (scripts/lib/llguidance.sh): GrammarEngine then
// throws.
bool is_available();

// Blanks between the tokens of JSON. All three are bounded, so that no answer drowns in them.
enum class Whitespace {
  kFlexible,  // at each place nothing, one space, or a line break with an indentation of at most 32: the
              // model's choice
  kSpaced,    // ", " and ": ", as chat templates write JSON
  kCompact,   // none
};

struct JsonOptions {
  Whitespace whitespace = Whitespace::kFlexible;
  // A keyword or format that cannot be enforced: true, an error that names it; false, the rest is enforced and
  // Grammar::unenforced() names it.
  bool strict = true;
};

struct Tool {
  std::string name;     // 1 to 64 of a-z A-Z 0-9 _ -
  Json parameters;      // a schema of objects; null: no arguments
  bool strict = false;  // as in JsonOptions
};

struct ToolChoice {
  enum class Kind {
    kAuto,      // text, calls, both, neither; what begins as a call becomes a valid one
    kRequired,  // one call at least, and nothing but calls
    kNamed,     // one call of the tool `name`
  };
  Kind kind = Kind::kAuto;
  std::string name;
  bool parallel = true;  // more than one call in an answer (kAuto, kRequired)
};

// The position of one answer in one grammar. Not thread-safe; instances are independent of each other, clones
// too.
class Grammar {
 public:
  Grammar(Grammar&&) noexcept;
  Grammar& operator=(Grammar&&) noexcept;
  ~Grammar();

  // An independent copy at the same position.
  Grammar clone() const;

  // For models that think first (the prompt ends in "<think>\n"): everything up to the token </think> is free
  // but may not end; then come the template's two line breaks and the grammar (with ToolChoice::kAuto, free
  // text). To be called before the first token. Throws kUnsupported without a token </think>.
  void allow_reasoning();

  // Sets the logits of ids that may not come next to minus infinity; at least one stays. [V], V at least the
  // tokenizer's vocab_size(). Throws kLimit where the grammar is too costly to go on.
  void mask(std::span<float> logits);
  // The token that was chosen; an end id ends the answer. Throws kInvalidArgument for one that may not come
  // next.
  void accept(int32_t id);

  // An end id may come next: the answer so far is complete.
  bool may_end();
  // Only an end id may come next, or one has come.
  bool finished() const;

  // What of its schemas is not enforced, in the engine's words, because they were not strict; empty: nothing.
  const std::string& unenforced() const;

  struct Impl;
  explicit Grammar(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

// A tokenizer prepared for grammars. Immutable; every method may be called from any thread at once. Cheap to
// copy (shared). Making one takes under a second for 151,669 tokens.
//
// Every grammar is checked before it is returned: kInvalidArgument for one that is wrong or that no answer
// satisfies, kUnsupported for what cannot be enforced (named), kLimit for one that is too large or too
// costly.
class GrammarEngine {
 public:
  // `end_ids`: the tokens that end an answer (spec 7.6), one at least. Throws kUnsupported without the
  // engine.
  GrammarEngine(text::Tokenizer tokenizer, std::span<const int32_t> end_ids);

  // Any JSON object.
  Grammar json_object(const JsonOptions& options = {}) const;
  // JSON that follows `schema` (draft 2020-12; earlier ones by "$schema"). Properties come in the schema's
  // order, additional ones last. `where` names the schema in messages.
  Grammar json_schema(const Json& schema, const JsonOptions& options = {},
                      std::string_view where = "schema") const;
  // The whole answer matches (Rust's regex syntax, without look-around).
  Grammar regex(std::string_view pattern) const;
  // A context-free grammar in llguidance's variant of Lark, with %json and tokens by number, <[151657]>.
  Grammar lark(std::string_view grammar) const;
  // Calls as the chat template shows them, arguments valid by their tool's schema. Throws kInvalidArgument
  // for no tools, a name that is none of the tools' or occurs twice; kUnsupported for a tokenizer without
  // <tool_call>.
  Grammar tool_calls(std::span<const Tool> tools, const ToolChoice& choice = {}) const;

  struct Impl;

 private:
  std::shared_ptr<const Impl> impl_;
};

}  // namespace qvl::grammar
