// Finds the loop that an answer is stuck in: the same tokens, round after round, so often and so long that no genuine
// text does it. Genuine repeats stay: 1000000, 77 77 77, equal rows of a table, rulers, arrays of equal numbers. Fed
// token by token behind the sampler.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace qvl::generate {

struct RepetitionLimits {
  // A loop of period p is one when the last max(min_tokens, min_rounds * p) tokens and more are rounds of p tokens: at
  // least min_rounds rounds of long units, and more of short ones (512 equal tokens, 64 equal rows of 8 tokens, 10 equal
  // paragraphs of 60).
  int64_t min_tokens = 512;
  int64_t min_rounds = 10;
  int64_t max_period = 128;  // tokens; <= RepetitionGuard::kMaxPeriod. 0: the guard is off
};

// A loop, in tokens of the answer.
struct Repetition {
  int64_t period = 0;  // the shortest that explains it
  int64_t begin = 0;   // index of the first token of the first round
  int64_t tokens = 0;  // from `begin` to the end of the answer

  int64_t rounds() const { return tokens / period; }
  // Tokens of the answer up to the end of the first round: what a reader would want to keep.
  int64_t sensible_tokens() const { return begin + period; }
};

class RepetitionGuard {
 public:
  static constexpr int64_t kMaxPeriod = 256;

  // Throws kInvalidArgument for limits below 1 (max_period: 0..kMaxPeriod), min_rounds below 2.
  explicit RepetitionGuard(const RepetitionLimits& limits = {});

  // Takes the next token of the answer. A loop when one is found: the caller ends the answer there. Nothing that was
  // said is taken back, so that a streamed answer and a whole one are the same; finish_reason is "length" (the answer is
  // not complete), and the reply says where the loop began. max_period comparisons a call, fixed memory.
  std::optional<Repetition> push(int32_t id);

 private:
  RepetitionLimits limits_;
  std::vector<int32_t> ring_;     // the last max_period ids
  std::vector<int64_t> matched_;  // by period: how many of the last ids equal the one a period before
  int64_t count_ = 0;
};

}  // namespace qvl::generate
