// Chooses the next token from the logits of one position: bias, penalties, what a constraint lets through, temperature,
// top-k, top-p, min-p, draw, in the order of spec 7.6. Last step of every decode iteration (session.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "qvl/generate/constraint.h"

namespace qvl::generate {

struct SamplingParams {
  bool greedy = false;              // the largest logit after the penalties; the lowest id among equals
  double temperature = 1.0;         // 0 means greedy
  int64_t top_k = 0;                // 0: off. Ties with the k-th logit stay
  double top_p = 1.0;               // 1: off. 0 keeps the one likeliest token
  double min_p = 0.0;               // 0: off. Relative to the likeliest token
  double repetition_penalty = 1.0;  // 1: off. Prompt and answer, once per distinct token
  double presence_penalty = 0.0;    // 0: off. Answer only
  double frequency_penalty = 0.0;   // 0: off. Answer only, times the number of occurrences
};

// Throws kInvalidArgument "[sampling] top_p: expected 0..1, got 1.5" and the like.
void validate(const SamplingParams& params);

// How many of the greatest logits sample() looks at, ties with the last of them included; 0: all.
int64_t logits_needed(const SamplingParams& params);

// A seeded stream of reals in [0, 1). The Mersenne Twister's output is fixed by the C++ standard and the
// conversion is exact, so a seed means the same stream on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double next() { return static_cast<double>(engine_() >> 11) * 0x1.0p-53; }

 private:
  std::mt19937_64 engine_;
};

class Sampler {
 public:
  struct Candidate {
    int32_t id;
    double probability;
  };

  // Ids >= `id_limit` have logits but no text and are never chosen (spec 7.2). Throws as validate().
  Sampler(const SamplingParams& params, uint64_t seed, int64_t id_limit);

  // Tokens of the prompt and of the answer, for the penalties.
  void add_prompt(std::span<const int32_t> ids);
  void add_generated(int32_t id);

  // Added to the logits first. Throws kInvalidArgument for an id without text or a value that is not finite.
  void set_bias(const std::map<int32_t, float>& bias);

  // logits: [V], V >= 1. Throws kFormat when one is NaN or +infinity or when none is finite (a broken
  // checkpoint). Consumes one random number unless greedy.
  int32_t sample(std::span<const float> logits);
  // Likewise among those that the constraint lets through (asked once); none when that is nothing, no random number is
  // consumed then.
  std::optional<int32_t> sample(std::span<const float> logits, TokenConstraint& constraint);

  // The distribution that sample() draws from, ascending ids, probabilities summing to 1. One entry when
  // greedy. Valid until the next call.
  std::span<const Candidate> distribution(std::span<const float> logits);

  bool is_greedy() const { return params_.greedy || params_.temperature == 0; }

 private:
  // With `constraint`, which may be null, and its -infinities, which may be all.
  std::span<const float> penalised(std::span<const float> logits, TokenConstraint* constraint);
  // Of what penalised() made.
  std::span<const Candidate> filtered(std::span<const float> logits);
  int32_t draw(std::span<const Candidate> candidates);
  void keep_top_k();
  void keep_top_p();
  void keep_min_p();

  SamplingParams params_;
  Random random_;
  int64_t id_limit_;
  std::unordered_set<int32_t> seen_;
  std::unordered_map<int32_t, int64_t> generated_counts_;
  std::map<int32_t, float> bias_;
  std::vector<float> logits_;
  std::vector<Candidate> candidates_;
};

}  // namespace qvl::generate
