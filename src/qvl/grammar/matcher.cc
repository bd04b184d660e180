// The grammar engine, llguidance (an Earley parser over a lexer of derivatives, in Rust), through its C
// interface. The only file that sees its header.
#include "qvl/grammar/matcher.h"

#include <llguidance.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>

#include "qvl/base/error.h"

namespace qvl::grammar {
namespace {

// Compiling recurses as deep as a grammar nests and its references chain. What the limits of grammar.h let
// through was seen to take less than a tenth of this; pages that are not touched cost nothing.
constexpr size_t kCompilerStackBytes = size_t{256} << 20;

// Runs `work` to its end on a thread of its own; an exception comes back here.
void on_large_stack(const std::function<void()>& work) {
  struct Task {
    const std::function<void()>& work;
    std::exception_ptr error;
  } task{work, nullptr};
  const auto body = [](void* argument) -> void* {
    auto* t = static_cast<Task*>(argument);
    try {
      t->work();
    } catch (...) {
      t->error = std::current_exception();
    }
    return nullptr;
  };
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kCompilerStackBytes);
  pthread_t thread;
  const int failed = pthread_create(&thread, &attributes, body, &task);
  pthread_attr_destroy(&attributes);
  if (failed != 0) {
    fail(ErrorCode::kLimit, "grammar",
         std::string("no thread to compile the grammar: ") + std::strerror(failed));
  }
  pthread_join(thread, nullptr);
  if (task.error) std::rethrow_exception(task.error);
}

// The engine's message without the dump of its state, on one line.
std::string clean(std::string_view message) {
  for (const std::string_view dump : {"<non-verbose/>", "<state>", "<backtrace>"}) {
    message = message.substr(0, message.find(dump));
  }
  std::string out;
  for (const char c : message) {
    const bool blank = c == '\n' || c == '\r' || c == '\t' || c == ' ';
    if (!blank) {
      out += c;
    } else if (!out.empty() && out.back() != ' ') {
      out += ' ';
    }
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  constexpr size_t kLongest = 400;
  if (out.size() > kLongest) {
    size_t end = kLongest;
    while (end > 0 && (static_cast<unsigned char>(out[end]) & 0xC0) == 0x80) --end;
    out = out.substr(0, end) + "...";
  }
  return out;
}

// The engine has messages, no codes.
ErrorCode code_of(std::string_view message) {
  const auto has = [&](std::initializer_list<std::string_view> parts) {
    return std::any_of(parts.begin(), parts.end(),
                       [&](std::string_view p) { return message.find(p) != std::string_view::npos; });
  };
  if (has({"Unsatisfiable", "NoExtension"})) return ErrorCode::kInvalidArgument;
  if (has({"too big", "too large", "Too many", "too many", "TooComplex", "too complex", "exceed", "fuel",
           "limit", "Unable to determine"})) {
    return ErrorCode::kLimit;
  }
  if (has({"Unimplemented", "Unknown format", "not supported", "only supported", "unsupported",
           "Only absolute", "Unknown specification", "panic:"})) {
    return ErrorCode::kUnsupported;
  }
  return ErrorCode::kInvalidArgument;
}

[[noreturn]] void fail_engine(const char* raw) {
  const std::string message = clean(raw == nullptr ? "no reason given" : raw);
  if (message.find("NoExtension") != std::string::npos) {
    fail(ErrorCode::kInvalidArgument, "grammar", "no text satisfies the grammar from here on");
  }
  fail(code_of(message), "grammar", message);
}

const char* kind_name(GrammarKind kind) {
  switch (kind) {
    case GrammarKind::kRegex:
      return "regex";
    case GrammarKind::kJsonSchema:
      return "json_schema";
    case GrammarKind::kLark:
      return "lark";
  }
  return "lark";
}

void check_text(const std::string& text) {
  if (text.find('\0') != std::string::npos) {
    fail(ErrorCode::kInvalidArgument, "grammar", "the grammar contains a NUL byte");
  }
}

}  // namespace

struct MatcherFactory::Impl {
  Vocabulary vocabulary;
  LlgTokenizer* tokenizer = nullptr;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { llg_free_tokenizer(tokenizer); }

  LlgConstraintInit constraint() const {
    LlgConstraintInit init = {};
    llg_constraint_init_set_defaults(&init, tokenizer);
    init.log_stderr_level = 0;
    init.log_buffer_level = 0;
    init.ff_tokens_ok = false;
    init.backtrack_ok = false;
    init.limits.verbose_errors = false;
    // The engine's own bounds on steps stay (about 14 ms of lexing and 3 ms of parsing a token); those on
    // memory are lowered, a state of the lexer takes 1 to 2 kB.
    init.limits.max_lexer_states = 50'000;
    init.limits.max_grammar_size = 200'000;
    return init;
  }

  // The engine asks how forced text is tokenised. Returning nothing is a valid answer: it then allows every
  // token that begins the forced text.
  static size_t tokenize(const void* self, const uint8_t* bytes, size_t size, uint32_t* out,
                         size_t room) noexcept {
    try {
      const auto* impl = static_cast<const Impl*>(self);
      const std::vector<int32_t> ids =
          impl->vocabulary.tokenize({reinterpret_cast<const char*>(bytes), size});
      std::copy_n(ids.begin(), std::min(room, ids.size()), out);
      return ids.size();
    } catch (...) {
      return 0;
    }
  }
};

MatcherFactory::MatcherFactory(Vocabulary vocabulary) : impl_(std::make_unique<Impl>()) {
  impl_->vocabulary = std::move(vocabulary);
  const Vocabulary& v = impl_->vocabulary;
  const auto size = static_cast<int32_t>(v.tokens.size());
  if (v.end_ids.empty()) fail(ErrorCode::kInvalidArgument, "grammar", "end ids", "at least one", "none");
  for (const int32_t id : v.end_ids) {
    if (id < 0 || id >= size) {
      fail(ErrorCode::kInvalidArgument, "grammar", "end id", "below " + std::to_string(size),
           std::to_string(id));
    }
  }
  std::vector<uint32_t> lengths;
  lengths.reserve(v.tokens.size());
  std::string bytes;
  for (const std::string& token : v.tokens) {
    lengths.push_back(static_cast<uint32_t>(token.size()));
    bytes += token;
  }
  const std::vector<uint32_t> ends(v.end_ids.begin(), v.end_ids.end());

  LlgTokenizerInitV2 init = {};
  init.struct_size = sizeof(init);
  init.vocab_size = static_cast<uint32_t>(size);
  init.tok_eos = ends[0];
  init.tok_eos_extra = ends.size() > 1 ? ends.data() + 1 : nullptr;
  init.tok_eos_extra_count = static_cast<uint32_t>(ends.size() - 1);
  init.token_lens = lengths.data();
  init.token_bytes = reinterpret_cast<const uint8_t*>(bytes.data());
  init.tokenize_assumes_string = true;  // ours repairs what is not UTF-8
  init.tokenize_fn = &Impl::tokenize;
  init.tokenize_user_data = impl_.get();
  std::array<char, 512> error = {};
  impl_->tokenizer = llg_new_tokenizer_v2(&init, error.data(), error.size());
  if (impl_->tokenizer == nullptr) fail_engine(error.data());
}

MatcherFactory::~MatcherFactory() = default;

std::string grammar_warnings(const MatcherFactory& factory, GrammarKind kind, const std::string& text) {
  check_text(text);
  std::string message;
  on_large_stack([&] {
    const LlgConstraintInit init = factory.impl().constraint();
    std::array<char, 4096> said = {};
    const int32_t verdict =
        llg_validate_grammar(&init, kind_name(kind), text.c_str(), said.data(), said.size());
    if (verdict < 0) fail_engine(said.data());
    if (verdict > 0) message = clean(said.data());
  });
  return message;
}

struct Matcher::Impl {
  std::shared_ptr<const MatcherFactory> factory;  // outlives the engine's matcher
  LlgMatcher* matcher = nullptr;

  Impl(std::shared_ptr<const MatcherFactory> f, LlgMatcher* m) : factory(std::move(f)), matcher(m) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { llg_free_matcher(matcher); }

  void check() const {
    if (llg_matcher_is_error(matcher)) fail_engine(llg_matcher_get_error(matcher));
  }
};

Matcher::Matcher(std::shared_ptr<const MatcherFactory> factory, GrammarKind kind, const std::string& text)
    : impl_(std::make_unique<Impl>(std::move(factory), nullptr)) {
  check_text(text);
  on_large_stack([&] {
    const LlgConstraintInit init = impl_->factory->impl().constraint();
    impl_->matcher = llg_new_matcher(&init, kind_name(kind), text.c_str());
    impl_->check();
    // What cannot begin is refused now, not at the first token; and the lexer's first states are there.
    std::vector<uint32_t> bits(llg_matcher_get_mask_byte_size(impl_->matcher) / sizeof(uint32_t));
    allowed(bits);
  });
}
Matcher::Matcher(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Matcher::Matcher(Matcher&&) noexcept = default;
Matcher& Matcher::operator=(Matcher&&) noexcept = default;
Matcher::~Matcher() = default;

Matcher Matcher::clone() const {
  impl_->check();
  return Matcher(std::make_unique<Impl>(impl_->factory, llg_clone_matcher(impl_->matcher)));
}

void Matcher::allowed(std::span<uint32_t> bits) {
  if (llg_matcher_compute_mask_into(impl_->matcher, bits.data(), bits.size_bytes()) != 0) {
    fail_engine(llg_matcher_get_error(impl_->matcher));
  }
}

void Matcher::accept(int32_t id) {
  const auto token = static_cast<uint32_t>(id);
  const int32_t valid = llg_matcher_validate_tokens(impl_->matcher, &token, 1);
  if (valid < 0) fail_engine(llg_matcher_get_error(impl_->matcher));
  if (valid == 0) {
    fail(ErrorCode::kInvalidArgument, "grammar", "token " + std::to_string(id) + " may not come next");
  }
  if (llg_matcher_consume_token(impl_->matcher, token) != 0)
    fail_engine(llg_matcher_get_error(impl_->matcher));
}

bool Matcher::accepts_end() {
  const bool accepts = llg_matcher_is_accepting(impl_->matcher);
  impl_->check();
  return accepts;
}

bool Matcher::at_end() const {
  impl_->check();
  return llg_matcher_is_stopped(impl_->matcher);
}

bool engine_is_built_in() {
  return true;
}

}  // namespace qvl::grammar
