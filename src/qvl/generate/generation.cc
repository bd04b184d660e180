#include "qvl/generate/generation.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/stopwatch.h"

namespace qvl::generate {
namespace {

// Whether to guess.
bool speculates(const engine::Engine& engine, const Speculation& speculation) {
  validate(speculation);
  if (speculation.mode == Speculation::Mode::kOff) return false;
  if (engine.decoder().decode_rows_are_independent()) return true;
  if (speculation.mode == Speculation::Mode::kFixed) {
    fail(ErrorCode::kUnsupported, "speculation",
         cat("the text engine (", engine.info().text, ") gives a token other logits when it is checked together with "
             "others, so answers would change"));
  }
  log_message(LogLevel::kInfo, cat("speculation is off: with the text engine ", engine.info().text,
                                   " tokens checked together would change answers"));
  return false;
}

// Of two answers in one step.
engine::TopLogits both(const engine::TopLogits& a, const engine::TopLogits& b) {
  if (a.covers(b)) return a;
  return b.covers(a) ? b : engine::TopLogits{};
}

GenerateOptions with_id_limit(const engine::Engine& engine, GenerateOptions options) {
  const int64_t vocabulary = engine.config().text.vocab_size;
  options.id_limit = options.id_limit > 0 ? std::min(options.id_limit, vocabulary) : vocabulary;
  return options;
}

}  // namespace

engine::TopLogits needed_logits(const engine::Engine& engine, const GenerateOptions& options) {
  if (options.constraint || options.top_logprobs || !options.logit_bias.empty()) return {};
  const int64_t count = logits_needed(options.sampling);
  if (count == 0) return {};
  return {count, with_id_limit(engine, options).id_limit};
}

Generation::Generation(Session& session, GenerateOptions options, SaidTokenFn on_token,
                       const std::atomic<bool>* cancel)
    : session_(session),
      options_(with_id_limit(*session.engine_, std::move(options))),
      on_token_(std::move(on_token)),
      cancel_(cancel),
      speculates_(speculates(*session.engine_, options_.speculation)),
      top_(needed_logits(*session_.engine_, options_)),
      sampler_(options_.sampling, options_.seed, options_.id_limit),
      start_(Clock::now()) {
  if (options_.max_tokens < 1)
    fail(ErrorCode::kInvalidArgument, "session", "max_tokens", "1 or more", cat(options_.max_tokens));
  if (options_.top_logprobs && (*options_.top_logprobs < 0 || *options_.top_logprobs > kMaxTopLogprobs)) {
    fail(ErrorCode::kInvalidArgument, "session", "top_logprobs", cat("0..", kMaxTopLogprobs),
         cat(*options_.top_logprobs));
  }
  sampler_.set_bias(options_.logit_bias);
  if (session_.logits_.empty())
    fail(ErrorCode::kInvalidArgument, "session", "generate", "a prefill before it", "none");
  if (!session_.top_.covers(top_))
    fail(ErrorCode::kInvalidArgument, "session", "generate", "a prefill with all logits that the answer needs", "others");
  sampler_.add_prompt(session_.ids_);
  if (speculates_) session_.drafter_.set_timeline(session_.ids_);
  known_ = session_.length();
  const Tensor logits = std::exchange(session_.logits_, Tensor());
  guarded([&] {
    if (options_.constraint && options_.constraint->finished()) return end(FinishReason::kStop, EndCause::kConstraint);
    say(logits.as<float>());
  });
}

Generation::~Generation() {
  if (!finished_) settle();
}

void Generation::end(FinishReason reason, EndCause cause) {
  done_ = true;
  result_.reason = reason;
  result_.cause = cause;
}

void Generation::guarded(const std::function<void()>& work) {
  try {
    work();
  } catch (...) {
    error_ = std::current_exception();
    done_ = true;
  }
}

bool Generation::is_end(int32_t id) const {
  return std::find(options_.end_ids.begin(), options_.end_ids.end(), id) != options_.end_ids.end();
}

void Generation::say(std::span<const float> logits) {
  const auto vocabulary = static_cast<size_t>(session_.engine_->config().text.vocab_size);
  row_ = 0;
  while (say_one(logits.subspan(row_ * vocabulary, vocabulary))) {
    ++row_;
    ++known_;
  }
}

bool Generation::say_one(std::span<const float> logits) {
  if (cancel_ && cancel_->load(std::memory_order_relaxed)) cancel();
  if (done_) return false;
  TokenConstraint* const constraint = options_.constraint.get();
  const std::optional<int32_t> next = constraint ? sampler_.sample(logits, *constraint) : sampler_.sample(logits);
  if (!next) {
    end(FinishReason::kStop, EndCause::kConstraint);
    return false;
  }
  const int32_t id = *next;
  sampler_.add_generated(id);
  if (constraint) constraint->accept(id);
  last_token_ = Clock::now();
  if (result_.ids.empty()) first_token_ = last_token_;
  result_.ids.push_back(id);
  if (options_.top_logprobs)
    result_.logprobs.push_back(token_logprobs(logits, id, *options_.top_logprobs, options_.id_limit));
  if (speculates_) session_.drafter_.append(id);
  const bool guessed = row_ < draft_.ids.size() && draft_.ids[row_] == id;
  if (row_ < draft_.ids.size()) session_.controller_.count_guess(draft_.evidence[row_], guessed);
  const bool accepted = guessed && row_ < checked_;
  result_.counts.accepted_tokens += accepted;

  if (is_end(id)) {
    end(FinishReason::kStop, EndCause::kEndToken);
    return false;
  }
  const SaidToken said{.id = id, .logprobs = options_.top_logprobs ? &result_.logprobs.back() : nullptr};
  const bool goes_on = !on_token_ || on_token_(said);
  if (done_) return false;  // cancelled from inside
  if (!goes_on) {
    end(FinishReason::kStop, EndCause::kCallback);
  } else if (constraint && constraint->finished()) {
    end(FinishReason::kStop, EndCause::kConstraint);
  } else if (static_cast<int64_t>(result_.ids.size()) >= options_.max_tokens) {
    end(FinishReason::kLength, EndCause::kMaxTokens);
  } else if (known_ + 1 >= session_.context_tokens()) {
    end(FinishReason::kLength, EndCause::kContext);
  }
  return !done_ && accepted;
}

int64_t Generation::next_rows(int64_t limit, int64_t other_rows) {
  if (limit < 1) fail(ErrorCode::kInvalidArgument, "decode step", "rows for an answer", "1 or more", cat(limit));
  if (done_) return 0;
  if (!wanted_) make_draft(other_rows);
  checked_ = std::min(*wanted_, static_cast<size_t>(limit - 1));
  return 1 + static_cast<int64_t>(checked_);
}

void Generation::make_draft(int64_t other_rows) {
  wanted_ = 0;
  if (!speculates_) return;
  // A guess beyond the last token to say, or beyond one that ends the answer, would be checked in vain.
  const int64_t left = options_.max_tokens - static_cast<int64_t>(result_.ids.size());
  draft_ = session_.drafter_.draft(std::min({kMaxDraftTokens, left - 1, session_.context_tokens() - 2 - known_}));
  const auto end = std::find_if(draft_.ids.begin(), draft_.ids.end(), [this](int32_t id) { return is_end(id); });
  const int64_t available = end - draft_.ids.begin();
  wanted_ = static_cast<size_t>(
      options_.speculation.mode == Speculation::Mode::kFixed
          ? std::min(options_.speculation.draft_tokens, available)
          : session_.controller_.choose(std::span(draft_.evidence).first(static_cast<size_t>(available)), other_rows));
}

std::vector<int32_t> Generation::step_ids() const {
  std::vector<int32_t> ids = {result_.ids.back()};
  ids.insert(ids.end(), draft_.ids.begin(), draft_.ids.begin() + static_cast<ptrdiff_t>(checked_));
  return ids;
}

void Generation::settle() {
  if (session_.length() > known_) session_.truncate(known_);
  draft_ = {};
  wanted_.reset();
  checked_ = row_ = 0;
}

void Generation::cancel() {
  if (!done_) end(FinishReason::kCancelled, EndCause::kCancelled);
}

GenerateResult Generation::finish() {
  if (std::exchange(finished_, true)) fail(ErrorCode::kInvalidArgument, "session", "the answer was taken already");
  cancel();
  settle();
  if (error_) std::rethrow_exception(error_);
  if (!result_.ids.empty()) {
    result_.first_token_ms = 1e3 * seconds_between(start_, first_token_);
    result_.decode_ms = 1e3 * seconds_between(first_token_, last_token_);
  }
  return std::move(result_);
}

// The parts of decode_step(): what it does to generations and their sessions.
struct DecodeStep {
  static void check(const engine::Engine& engine, std::span<Generation* const> generations) {
    constexpr std::string_view kWhere = "decode step";
    if (generations.empty() || static_cast<int64_t>(generations.size()) > engine::kMaxDecodeRows) {
      fail(ErrorCode::kInvalidArgument, kWhere, "answers", cat("1..", engine::kMaxDecodeRows), cat(generations.size()));
    }
    for (size_t i = 0; i < generations.size(); ++i) {
      const Generation* g = generations[i];
      if (!g || g->done_) fail(ErrorCode::kInvalidArgument, kWhere, cat("answer ", i), "one that is not done", "none");
      if (g->session_.engine_.get() != &engine)
        fail(ErrorCode::kInvalidArgument, kWhere, cat("answer ", i, " is made by another engine"));
      for (size_t j = 0; j < i; ++j) {
        if (&generations[j]->session_ == &g->session_)
          fail(ErrorCode::kInvalidArgument, kWhere, cat("answers ", j, " and ", i, " are on the same session"));
      }
    }
  }

  // Decides the guesses of those that are not decided; returns all rows.
  static int64_t plan(std::span<Generation* const> generations) {
    const auto count = static_cast<int64_t>(generations.size());
    int64_t rows = 0, undecided = 0;
    for (const Generation* g : generations) {
      rows += 1 + static_cast<int64_t>(g->checked_);
      undecided += !g->wanted_;
    }
    const bool all_anew = rows > engine::kMaxDecodeRows;
    if (all_anew) rows = undecided = count;
    for (Generation* g : generations) {
      if (g->wanted_ && !all_anew) continue;
      // Room that those before left goes to those behind.
      const int64_t room = (engine::kMaxDecodeRows - rows) / undecided--;
      rows += g->next_rows(1 + room, rows - 1) - 1;
    }
    return rows;
  }

  // The rows are in the cache: so the session knows, and the answer how it came about.
  static void count(Generation& g, std::span<const int32_t> ids, int64_t other_rows, double ms) {
    Session& session = g.session_;
    session.ids_.insert(session.ids_.end(), ids.begin(), ids.end());
    session.visual_of_.resize(session.ids_.size(), -1);
    session.controller_.count_step(static_cast<int64_t>(ids.size()), ms, other_rows);
    ++g.result_.counts.steps;
    g.result_.counts.drafted_tokens += static_cast<int64_t>(g.checked_);
    ++g.known_;
  }

  static StepResult run(const engine::Engine& engine, std::span<Generation* const> generations,
                        const engine::StageHooks& hooks) {
    check(engine, generations);
    StepResult out;
    out.rows = plan(generations);
    std::vector<int32_t> ids;
    std::vector<int64_t> positions;
    std::vector<engine::DecodeShare> shares;
    for (const Generation* g : generations) {
      const std::vector<int32_t> mine = g->step_ids();
      ids.insert(ids.end(), mine.begin(), mine.end());
      positions.resize(ids.size());
      std::iota(positions.end() - static_cast<ptrdiff_t>(mine.size()), positions.end(),
                g->session_.length() + g->session_.delta_);
      shares.push_back({g->session_.cache_.get(), static_cast<int64_t>(mine.size())});
    }
    const Tensor embeds = engine.embed().embed(ids);
    engine::DecoderInput input;
    input.embeds = &embeds;
    for (auto& axis : input.positions) axis = positions;
    input.decode = true;
    input.top = generations.front()->top_;
    for (const Generation* g : generations) input.top = both(input.top, g->top_);
    const auto start = Clock::now();
    const Tensor logits = engine.decoder().decode_together(input, shares, hooks);
    out.ms = ms_since(start);

    // Every session is whole before anyone is called back.
    size_t row = 0;
    for (size_t i = 0; i < generations.size(); ++i) {
      const auto rows = static_cast<size_t>(shares[i].rows);
      count(*generations[i], std::span(ids).subspan(row, rows), out.rows - shares[i].rows, out.ms);
      row += rows;
    }
    row = 0;
    const auto width = static_cast<size_t>(logits.dim(1));
    for (size_t i = 0; i < generations.size(); ++i) {
      Generation& g = *generations[i];
      const auto rows = static_cast<size_t>(shares[i].rows);
      const size_t said = g.result_.ids.size();
      g.guarded([&] { g.say(logits.as<float>().subspan(row * width, rows * width)); });
      g.settle();
      out.tokens += static_cast<int64_t>(g.result_.ids.size() - said);
      row += rows;
    }
    return out;
  }
};

StepResult decode_step(const engine::Engine& engine, std::span<Generation* const> generations,
                       const engine::StageHooks& hooks) {
  return DecodeStep::run(engine, generations, hooks);
}

void run_alone(const engine::Engine& engine, Generation& generation, const std::atomic<bool>* cancel) {
  const auto cancelled = [cancel] { return cancel && cancel->load(std::memory_order_relaxed); };
  engine::StageHooks hooks;
  if (cancel) hooks.progress = [&](int64_t, int64_t) { return !cancelled(); };
  Generation* const alone[] = {&generation};
  while (!generation.done()) {
    try {
      decode_step(engine, alone, hooks);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kCancelled || !cancelled()) throw;
      generation.cancel();
    }
  }
}

}  // namespace qvl::generate
