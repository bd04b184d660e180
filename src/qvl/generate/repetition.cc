#include "qvl/generate/repetition.h"

#include <algorithm>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::generate {
namespace {

void check(bool ok, const char* name, const std::string& expected, int64_t got) {
  if (!ok) fail(ErrorCode::kInvalidArgument, "repetition guard", name, expected, cat(got));
}

}  // namespace

RepetitionGuard::RepetitionGuard(const RepetitionLimits& limits) : limits_(limits) {
  check(limits.min_tokens >= 1, "min_tokens", "1 or more", limits.min_tokens);
  check(limits.min_rounds >= 2, "min_rounds", "2 or more", limits.min_rounds);
  check(limits.max_period >= 0 && limits.max_period <= kMaxPeriod, "max_period", cat("0..", kMaxPeriod),
        limits.max_period);
  ring_.resize(static_cast<size_t>(limits.max_period));
  matched_.resize(static_cast<size_t>(limits.max_period) + 1);
}

std::optional<Repetition> RepetitionGuard::push(int32_t id) {
  const int64_t longest = limits_.max_period;
  if (longest == 0) return std::nullopt;
  std::optional<Repetition> found;
  for (int64_t p = 1; p <= std::min(longest, count_); ++p) {
    int64_t& matched = matched_[static_cast<size_t>(p)];
    matched = ring_[static_cast<size_t>((count_ - p) % longest)] == id ? matched + 1 : 0;
    const int64_t tokens = matched + p;
    if (matched > 0 && !found && tokens >= std::max(limits_.min_tokens, limits_.min_rounds * p)) {
      found = {.period = p, .begin = count_ + 1 - tokens, .tokens = tokens};
    }
  }
  ring_[static_cast<size_t>(count_ % longest)] = id;
  ++count_;
  return found;
}

}  // namespace qvl::generate
