#include "qvl/generate/logprobs.h"

#include <algorithm>
#include <cmath>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::generate {

TokenLogprobs token_logprobs(std::span<const float> logits, int32_t said, int top, int64_t id_limit) {
  const auto count = static_cast<int64_t>(logits.size());
  if (said < 0 || said >= count) {
    fail(ErrorCode::kInvalidArgument, "logprobs", "token id", cat("0..", count - 1), cat(said));
  }
  if (top < 0 || top > kMaxTopLogprobs) {
    fail(ErrorCode::kInvalidArgument, "logprobs", "number of alternatives", cat("0..", kMaxTopLogprobs), cat(top));
  }
  const double largest = static_cast<double>(*std::ranges::max_element(logits));
  double sum = 0;
  for (float v : logits) sum += std::exp(static_cast<double>(v) - largest);
  const double log_sum = largest + std::log(sum);
  const auto entry = [&](int32_t id) {
    return TokenLogprob{id, static_cast<double>(logits[static_cast<size_t>(id)]) - log_sum};
  };

  TokenLogprobs out{.said = entry(said), .top = {}};
  // The best so far, likeliest first; a later one is better only when it is larger.
  const int64_t limit = std::min(count, id_limit);
  const auto wanted = static_cast<size_t>(std::min<int64_t>(top, limit));
  std::vector<int32_t> best;
  const auto likelier = [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; };
  for (int32_t id = 0; wanted > 0 && id < limit; ++id) {
    if (best.size() == wanted) {
      if (!likelier(id, best.back())) continue;
      best.pop_back();
    }
    best.insert(std::ranges::upper_bound(best, id, likelier), id);
  }
  for (int32_t id : best) out.top.push_back(entry(id));
  return out;
}

}  // namespace qvl::generate
