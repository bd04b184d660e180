#include "qvl/grammar/grammar.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/grammar/matcher.h"
#include "qvl/grammar/schema.h"
#include "qvl/grammar/token_sets.h"
#include "qvl/grammar/tool_grammar.h"

namespace qvl::grammar {
namespace {

constexpr size_t kMaxRegexBytes = size_t{16} << 10;
constexpr size_t kMaxLarkBytes = size_t{64} << 10;

void check_size(std::string_view text, size_t most, std::string_view what) {
  if (text.size() > most) {
    fail(ErrorCode::kLimit, "grammar", what, "at most " + std::to_string(most) + " bytes",
         std::to_string(text.size()));
  }
}

}  // namespace

struct GrammarEngine::Impl {
  text::Tokenizer tokenizer;
  TokenSets sets;
  std::shared_ptr<const MatcherFactory> factory;
  std::vector<int32_t> line_break, two_line_breaks;

  Impl(text::Tokenizer t, std::span<const int32_t> end_ids)
      : tokenizer(std::move(t)),
        sets(tokenizer, end_ids),
        factory(std::make_shared<MatcherFactory>(make_vocabulary(tokenizer, end_ids))),
        line_break(tokenizer.encode_text("\n")),
        two_line_breaks(tokenizer.encode_text("\n\n")) {}
};

// An answer goes through phases; in kMatched the engine's grammar decides, in all others sets of tokens do.
struct Grammar::Impl {
  enum class Phase {
    kReasoning,     // before </think>
    kFixed,         // `fixed` has what comes, then `after_fixed`
    kText,          // free text that may begin a call
    kMatched,       // inside `matcher`
    kBetweenCalls,  // a further call or the end
    kComplete,      // an end id is all that may come
    kEnded,
  };

  std::shared_ptr<const GrammarEngine::Impl> engine;
  Phase phase = Phase::kMatched;
  std::optional<Matcher> matcher;
  std::optional<Matcher> call;  // of tool calls: a call's grammar at its beginning
  ToolChoice::Kind choice = ToolChoice::Kind::kAuto;
  bool parallel = false;
  std::vector<int32_t> fixed;  // the next one first
  Phase after_fixed = Phase::kMatched;
  Phase after_reasoning = Phase::kMatched;
  size_t tag_matched = 0;  // of a call's tag, spelled in free text
  bool started = false;
  std::string unenforced;
  TokenSet set;  // what may come next; scratch of mask()

  explicit Impl(std::shared_ptr<const GrammarEngine::Impl> e) : engine(std::move(e)) {}

  std::unique_ptr<Impl> clone() const {
    auto copy = std::make_unique<Impl>(engine);
    copy->phase = phase;
    if (matcher) copy->matcher = matcher->clone();
    if (call) copy->call = call->clone();
    copy->choice = choice;
    copy->parallel = parallel;
    copy->fixed = fixed;
    copy->after_fixed = after_fixed;
    copy->after_reasoning = after_reasoning;
    copy->tag_matched = tag_matched;
    copy->started = started;
    copy->unenforced = unenforced;
    return copy;
  }

  void expect(std::vector<int32_t> ids, Phase next) {
    fixed = std::move(ids);
    after_fixed = next;
    phase = fixed.empty() ? next : Phase::kFixed;
  }

  // kMatched, or beyond it if the grammar is at its end.
  void enter_matched() {
    phase = Phase::kMatched;
    if (matcher->at_end()) leave_matched();
  }
  void leave_matched() {
    matcher.reset();
    if (!call || !parallel) {
      phase = Phase::kComplete;
    } else if (choice == ToolChoice::Kind::kAuto) {
      tag_matched = 0;
      phase = Phase::kText;
    } else {
      phase = Phase::kBetweenCalls;
    }
  }
  void begin_call() {
    matcher = call->clone();
    enter_matched();
  }

  void allowed(TokenSet& out) {
    const TokenSets& sets = engine->sets;
    switch (phase) {
      case Phase::kReasoning:
        out = sets.reasoning;
        break;
      case Phase::kFixed:
        out.assign(sets.ends.size(), 0);
        insert(out, fixed.front());
        break;
      case Phase::kText:
        out = sets.free_text;
        sets.call_tag.remove_completing(tag_matched, out);
        break;
      case Phase::kMatched:
        out.assign(sets.ends.size(), 0);
        matcher->allowed(out);
        break;
      case Phase::kBetweenCalls:
        out = sets.ends;
        insert(out, engine->line_break.front());
        break;
      case Phase::kComplete:
      case Phase::kEnded:
        out = sets.ends;
        break;
    }
  }

  bool may_end() {
    switch (phase) {
      case Phase::kReasoning:
      case Phase::kFixed:
        return false;
      case Phase::kMatched:
        return !call && matcher->accepts_end();
      case Phase::kText:
      case Phase::kBetweenCalls:
      case Phase::kComplete:
      case Phase::kEnded:
        return true;
    }
    return false;
  }

  void accept(int32_t id) {
    const TokenSets& sets = engine->sets;
    if (phase == Phase::kEnded)
      fail(ErrorCode::kInvalidArgument, "grammar", "a token after the end of the answer");
    if (id < 0 || id >= engine->tokenizer.vocab_size() ||
        (contains(sets.ends, id) ? !may_end() : !may_continue_with(id))) {
      fail(ErrorCode::kInvalidArgument, "grammar", "token " + std::to_string(id) + " may not come next");
    }
    started = true;
    if (contains(sets.ends, id)) {
      phase = Phase::kEnded;
      return;
    }
    switch (phase) {
      case Phase::kReasoning:
        if (id == sets.think_close) end_reasoning();
        break;
      case Phase::kFixed:
        fixed.erase(fixed.begin());
        if (fixed.empty()) end_fixed();
        break;
      case Phase::kText:
        if (id == sets.call_open) {
          begin_call();
        } else {
          tag_matched = sets.call_tag.advance(tag_matched, engine->tokenizer.token_bytes(id));
        }
        break;
      case Phase::kMatched:
        matcher->accept(id);
        if (matcher->at_end()) leave_matched();
        break;
      case Phase::kBetweenCalls: {
        std::vector<int32_t> next(engine->line_break.begin() + 1, engine->line_break.end());
        next.push_back(*sets.call_open);
        expect(std::move(next), Phase::kMatched);
        break;
      }
      case Phase::kComplete:
      case Phase::kEnded:
        break;
    }
  }

  // In kMatched the matcher itself refuses.
  bool may_continue_with(int32_t id) {
    if (phase == Phase::kMatched) return true;
    allowed(set);
    return contains(set, id);
  }

  void end_reasoning() {
    switch (after_reasoning) {
      case Phase::kText:
        phase = Phase::kText;
        break;
      case Phase::kFixed:
        fixed.insert(fixed.begin(), engine->two_line_breaks.begin(), engine->two_line_breaks.end());
        phase = Phase::kFixed;
        break;
      default:
        expect(engine->two_line_breaks, after_reasoning);
    }
  }

  void end_fixed() {
    if (after_fixed != Phase::kMatched) {
      phase = after_fixed;
    } else if (call) {
      begin_call();
    } else {
      enter_matched();
    }
  }
};

bool is_available() {
  return engine_is_built_in();
}

Grammar::Grammar(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Grammar::Grammar(Grammar&&) noexcept = default;
Grammar& Grammar::operator=(Grammar&&) noexcept = default;
Grammar::~Grammar() = default;

Grammar Grammar::clone() const {
  return Grammar(impl_->clone());
}

void Grammar::allow_reasoning() {
  if (!impl_->engine->sets.think_close) {
    fail(ErrorCode::kUnsupported, "grammar", "this tokenizer has no token </think>");
  }
  if (impl_->started || impl_->phase == Impl::Phase::kReasoning) {
    fail(ErrorCode::kInvalidArgument, "grammar", "reasoning is allowed once, before the first token");
  }
  impl_->after_reasoning = std::exchange(impl_->phase, Impl::Phase::kReasoning);
}

void Grammar::mask(std::span<float> logits) {
  if (logits.size() < static_cast<size_t>(impl_->engine->tokenizer.vocab_size())) {
    fail(ErrorCode::kMismatch, "grammar", "logits",
         "at least " + std::to_string(impl_->engine->tokenizer.vocab_size()), std::to_string(logits.size()));
  }
  impl_->allowed(impl_->set);
  keep_only(impl_->set, logits);
}

void Grammar::accept(int32_t id) {
  impl_->accept(id);
}
bool Grammar::may_end() {
  return impl_->may_end();
}
bool Grammar::finished() const {
  return impl_->phase == Impl::Phase::kComplete || impl_->phase == Impl::Phase::kEnded;
}

const std::string& Grammar::unenforced() const {
  return impl_->unenforced;
}

GrammarEngine::GrammarEngine(text::Tokenizer tokenizer, std::span<const int32_t> end_ids)
    : impl_(std::make_shared<const Impl>(std::move(tokenizer), end_ids)) {}

namespace {

Grammar compile(const std::shared_ptr<const GrammarEngine::Impl>& engine, GrammarKind kind,
                const std::string& text, bool strict = true) {
  auto impl = std::make_unique<Grammar::Impl>(engine);
  if (!strict) impl->unenforced = grammar_warnings(*engine->factory, kind, text);
  impl->matcher.emplace(engine->factory, kind, text);
  impl->enter_matched();
  return Grammar(std::move(impl));
}

}  // namespace

Grammar GrammarEngine::json_object(const JsonOptions& options) const {
  return json_schema({{"type", "object"}}, options);
}

Grammar GrammarEngine::json_schema(const Json& schema, const JsonOptions& options,
                                   std::string_view where) const {
  const std::string text = prepare_schema(schema, options, where);
  return compile(impl_, GrammarKind::kJsonSchema, text, options.strict);
}

Grammar GrammarEngine::regex(std::string_view pattern) const {
  check_size(pattern, kMaxRegexBytes, "regular expression");
  return compile(impl_, GrammarKind::kRegex, std::string(pattern));
}

Grammar GrammarEngine::lark(std::string_view grammar) const {
  check_size(grammar, kMaxLarkBytes, "Lark grammar");
  return compile(impl_, GrammarKind::kLark, std::string(grammar));
}

Grammar GrammarEngine::tool_calls(std::span<const Tool> tools, const ToolChoice& choice) const {
  const TokenSets& sets = impl_->sets;
  if (!sets.call_open || !sets.call_close) {
    fail(ErrorCode::kUnsupported, "tools", "this tokenizer has no tokens <tool_call> and </tool_call>");
  }
  const std::string text = tool_call_grammar(tools, choice, *sets.call_close);
  auto impl = std::make_unique<Grammar::Impl>(impl_);
  if (std::any_of(tools.begin(), tools.end(), [](const Tool& t) { return !t.strict; })) {
    impl->unenforced = grammar_warnings(*impl_->factory, GrammarKind::kLark, text);
  }
  impl->call.emplace(impl_->factory, GrammarKind::kLark, text);
  impl->choice = choice.kind;
  impl->parallel = choice.parallel && choice.kind != ToolChoice::Kind::kNamed;
  if (choice.kind == ToolChoice::Kind::kAuto) {
    impl->phase = Grammar::Impl::Phase::kText;
  } else {
    impl->expect({*sets.call_open}, Grammar::Impl::Phase::kMatched);
  }
  return Grammar(std::move(impl));
}

}  // namespace qvl::grammar
