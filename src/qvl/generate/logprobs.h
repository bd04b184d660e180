// How likely the model thought a token and its alternatives, before anything that sampling does to the logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace qvl::generate {

inline constexpr int kMaxTopLogprobs = 20;

struct TokenLogprob {
  int32_t id = 0;
  double logprob = 0;  // natural logarithm; -infinity for a logit of -infinity
};

struct TokenLogprobs {
  TokenLogprob said;
  std::vector<TokenLogprob> top;  // the likeliest, likeliest first, lowest id among equals; `said` may be one of them
};

// Of token `said` and of the `top` likeliest of the ids below `id_limit`. logits: [V], raw; the softmax is over all V, its
// sum in float64. Throws kInvalidArgument for an id that has no logit or a `top` outside 0..kMaxTopLogprobs.
TokenLogprobs token_logprobs(std::span<const float> logits, int32_t said, int top, int64_t id_limit);

}  // namespace qvl::generate
