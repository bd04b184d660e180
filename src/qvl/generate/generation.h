// One answer in the making on a session that was filled with a prompt: the sampler, what was said, the guesses to check.
// Several of them, each on its own session, are stepped together by decode_step(): the weights, which are what a step
// waits for, are read once for all. Session::generate() is this with one answer; a server keeps as many as it has requests
// (continuous batching: answers come and go between two steps). What an answer says does not depend, to the bit, on
// which others are stepped with it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "qvl/engine/engine.h"
#include "qvl/generate/sampler.h"
#include "qvl/generate/session.h"
#include "qvl/generate/speculation.h"

namespace qvl::generate {

// Called with every token but an end token, in the order they are said; returns false to stop (kStop; the token stays part
// of the answer).
using SaidTokenFn = std::function<bool(const SaidToken& token)>;

// The logits that an answer with these options looks at: the greatest few where it is greedy or has a top_k, and nothing needs all
// of them (penalties, a bias, a constraint, log-probabilities).
engine::TopLogits needed_logits(const engine::Engine& engine, const GenerateOptions& options);

// Not thread-safe: everything, decode_step() included, happens on one thread at a time; only *cancel may be set from
// anywhere. While it lives nothing else may change its session, which must outlive it.
class Generation {
 public:
  // Continues the session's last prefill: the first token is chosen here, from the prefill's logits, and handed to
  // on_token. `cancel`, which may be null, is looked at before every token. Throws kInvalidArgument for options out of
  // range, without a prefill before it or after one with fewer logits than needed_logits(), kUnsupported for Speculation::kFixed when the decoder's rows are not
  // independent. Whatever goes wrong later, in the first token too (damaged logits, an exception of on_token or of the
  // constraint), ends this answer alone and is thrown by finish().
  Generation(Session& session, GenerateOptions options, SaidTokenFn on_token,
             const std::atomic<bool>* cancel = nullptr);
  // As finish() without its result.
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // True: there is nothing left to step.
  bool done() const { return done_; }
  // Rows of the next step, 1..limit: the token said last, and guesses to check behind it. 0 when done. `other_rows`: rows
  // that other answers have in the same step. How many guesses are worth checking is decided by the first call after a
  // step; each call cuts that to its limit, and what the last call said is what the step takes. Throws kInvalidArgument
  // for a limit below 1.
  int64_t next_rows(int64_t limit = engine::kMaxDecodeRows, int64_t other_rows = 0);
  // Ends the answer where it is (kCancelled). Not from inside decode_step(), except from this answer's own on_token.
  void cancel();
  // What was said by now. Afterwards this is done and the session holds the prompt and what was said but its last token
  // (all of it, where the answer was cancelled between a step and its token).
  // Called once. Throws what ended the answer.
  GenerateResult finish();

  // What was said so far, an end token included.
  const std::vector<int32_t>& ids() const { return result_.ids; }

 private:
  friend struct DecodeStep;

  void end(FinishReason reason, EndCause cause);
  // Runs `work`; what it throws ends the answer.
  void guarded(const std::function<void()>& work);
  // Says tokens from rows of logits [rows, V] as long as they are what was guessed.
  void say(std::span<const float> logits);
  // Says one token; true when the next row of the same logits follows it.
  bool say_one(std::span<const float> logits);
  bool is_end(int32_t id) const;
  // Decides `wanted_`.
  void make_draft(int64_t other_rows);
  // The rows of the next step.
  std::vector<int32_t> step_ids() const;
  // Cuts the session to what was said but its last token.
  void settle();

  Session& session_;
  GenerateOptions options_;
  SaidTokenFn on_token_;
  const std::atomic<bool>* cancel_;
  bool speculates_;
  engine::TopLogits top_;
  Sampler sampler_;
  GenerateResult result_;
  std::exception_ptr error_;
  bool done_ = false;
  bool finished_ = false;

  int64_t known_ = 0;  // positions of the cache that hold the prompt and what was said
  // Guesses behind the token said last. Of those, how many are worth checking (unknown: not decided yet), and how many the
  // next step, or the one being read, checks.
  Drafter::Draft draft_;
  std::optional<size_t> wanted_;
  size_t checked_ = 0;
  size_t row_ = 0;  // of the logits being read

  std::chrono::steady_clock::time_point start_, first_token_, last_token_;
};

struct StepResult {
  int64_t rows = 0;    // of the decoder's call
  int64_t tokens = 0;  // said by all answers together
  double ms = 0;       // the decoder's
};

// One step of all `generations`, which are different ones, none of them done, at most kMaxDecodeRows, on sessions of
// `engine`: one call of the decoder, then each says what its rows give, in their order. How many guesses each checks is
// decided here, so that all fit and each has about the same room; where next_rows() was called since the last step, its
// answer stands as long as all fit. Throws kInvalidArgument for what does not fit these words, and what the decoder throws
// (kCancelled when hooks.progress says so): then nothing was said, and the answers can be stepped again or cancelled.
StepResult decode_step(const engine::Engine& engine, std::span<Generation* const> generations,
                       const engine::StageHooks& hooks = {});

// Steps one answer alone until it is done. `cancel`, which may be null, also interrupts a step.
void run_alone(const engine::Engine& engine, Generation& generation, const std::atomic<bool>* cancel);

}  // namespace qvl::generate
