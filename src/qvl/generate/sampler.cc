// Sampling, spec 7.6. The vocabulary has 152 thousand entries, so nothing here sorts all of it: top-k uses a
// heap of k values, top-p sorts a growing head of the list until its mass is reached.
#include "qvl/generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/greatest.h"

namespace qvl::generate {
namespace {

void check(bool ok, const char* name, const char* expected, double got) {
  if (!ok) fail(ErrorCode::kInvalidArgument, "sampling", name, expected, cat(got));
}

bool by_id(const Sampler::Candidate& a, const Sampler::Candidate& b) {
  return a.id < b.id;
}

bool likelier(const Sampler::Candidate& a, const Sampler::Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
}

bool nothing_is_left(std::span<const float> logits) {
  return std::ranges::all_of(logits, [](float v) { return v == -INFINITY; });
}

}  // namespace

void validate(const SamplingParams& p) {
  // Written so that NaN fails every one of them.
  check(p.temperature >= 0 && p.temperature <= 100, "temperature", "0..100", p.temperature);
  check(p.top_k >= 0, "top_k", "0 (off) or more", static_cast<double>(p.top_k));
  check(p.top_p >= 0 && p.top_p <= 1, "top_p", "0..1", p.top_p);
  check(p.min_p >= 0 && p.min_p <= 1, "min_p", "0..1", p.min_p);
  check(p.repetition_penalty > 0 && p.repetition_penalty <= 100, "repetition_penalty",
        "more than 0, at most 100", p.repetition_penalty);
  check(p.presence_penalty >= -100 && p.presence_penalty <= 100, "presence_penalty", "-100..100",
        p.presence_penalty);
  check(p.frequency_penalty >= -100 && p.frequency_penalty <= 100, "frequency_penalty", "-100..100",
        p.frequency_penalty);
}

int64_t logits_needed(const SamplingParams& p) {
  // Penalties reorder what they meet.
  if (p.repetition_penalty != 1.0 || p.presence_penalty != 0 || p.frequency_penalty != 0) return 0;
  return p.greedy || p.temperature == 0 ? 1 : p.top_k;
}

Sampler::Sampler(const SamplingParams& params, uint64_t seed, int64_t id_limit)
    : params_(params), random_(seed), id_limit_(id_limit) {
  validate(params);
  if (id_limit < 1) {
    fail(ErrorCode::kInvalidArgument, "sampling", "ids that have text", "1 or more", cat(id_limit));
  }
}

void Sampler::add_prompt(std::span<const int32_t> ids) {
  if (params_.repetition_penalty != 1.0) seen_.insert(ids.begin(), ids.end());
}

void Sampler::add_generated(int32_t id) {
  if (params_.repetition_penalty != 1.0) seen_.insert(id);
  if (params_.presence_penalty != 0 || params_.frequency_penalty != 0) ++generated_counts_[id];
}

void Sampler::set_bias(const std::map<int32_t, float>& bias) {
  for (const auto& [id, value] : bias) {
    if (id < 0 || id >= id_limit_)
      fail(ErrorCode::kInvalidArgument, "sampling", "token of a logit bias", cat("0..", id_limit_ - 1), cat(id));
    if (!std::isfinite(value))
      fail(ErrorCode::kInvalidArgument, "sampling", cat("logit bias of token ", id), "a finite number", cat(value));
  }
  bias_ = bias;
}

std::span<const float> Sampler::penalised(std::span<const float> logits, TokenConstraint* constraint) {
  logits =
      logits.first(static_cast<size_t>(std::min<int64_t>(id_limit_, static_cast<int64_t>(logits.size()))));
  if (!all_below_infinity(logits)) {
    const auto bad = std::ranges::find_if(logits, [](float v) { return !(v < INFINITY); });
    fail(ErrorCode::kFormat, "sampling", cat("logit of token ", bad - logits.begin()), "a finite number", cat(*bad),
         "are the weights damaged?");
  }
  if (nothing_is_left(logits)) fail(ErrorCode::kFormat, "sampling", "logits", "a finite number", "none");
  if (seen_.empty() && generated_counts_.empty() && bias_.empty() && !constraint) return logits;

  logits_.assign(logits.begin(), logits.end());
  const auto count = static_cast<int32_t>(logits_.size());
  for (const auto& [id, value] : bias_) {
    if (id < count) logits_[static_cast<size_t>(id)] += value;
  }
  const auto penalty = static_cast<float>(params_.repetition_penalty);
  for (int32_t id : seen_) {
    if (id < 0 || id >= count) continue;
    float& v = logits_[static_cast<size_t>(id)];
    v = v < 0 ? v * penalty : v / penalty;
  }
  for (const auto& [id, n] : generated_counts_) {
    if (id < 0 || id >= count) continue;
    logits_[static_cast<size_t>(id)] -=
        static_cast<float>(params_.presence_penalty + params_.frequency_penalty * static_cast<double>(n));
  }
  if (constraint) constraint->apply(logits_);
  return logits_;
}

// While the filters run, Candidate::probability holds logit / temperature until keep_top_p turns it into
// weights.
void Sampler::keep_top_k() {
  const auto k =
      static_cast<size_t>(std::min<int64_t>(params_.top_k, static_cast<int64_t>(candidates_.size())));
  if (k == 0 || k == candidates_.size()) return;
  std::vector<double> heap;
  heap.reserve(k);
  for (const Candidate& c : candidates_) {
    if (heap.size() < k) {
      heap.push_back(c.probability);
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    } else if (c.probability > heap.front()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      heap.back() = c.probability;
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }
  const double smallest = heap.front();
  std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < smallest; });
}

// Sorted ascending, a token is dropped where the cumulative probability is <= 1 - p: the same as dropping it
// when everything likelier already sums to at least p.
void Sampler::keep_top_p() {
  if (params_.top_p >= 1.0) return;
  double total = 0;
  for (const Candidate& c : candidates_) total += c.probability;
  const double wanted = params_.top_p * total;
  size_t head = std::min<size_t>(64, candidates_.size());
  for (;;) {
    const auto middle = candidates_.begin() + static_cast<ptrdiff_t>(head);
    if (head < candidates_.size()) std::nth_element(candidates_.begin(), middle, candidates_.end(), likelier);
    std::sort(candidates_.begin(), middle, likelier);
    double before = 0;
    for (size_t i = 0; i < head; ++i) {
      if (i > 0 && before >= wanted) {
        candidates_.resize(i);
        std::sort(candidates_.begin(), candidates_.end(), by_id);
        return;
      }
      before += candidates_[i].probability;
    }
    if (head == candidates_.size()) break;
    head = std::min(head * 8, candidates_.size());
  }
  std::sort(candidates_.begin(), candidates_.end(), by_id);
}

void Sampler::keep_min_p() {
  if (params_.min_p <= 0) return;
  double largest = 0;
  for (const Candidate& c : candidates_) largest = std::max(largest, c.probability);
  std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < params_.min_p * largest; });
}

std::span<const Sampler::Candidate> Sampler::distribution(std::span<const float> logits) {
  return filtered(penalised(logits, nullptr));
}

std::span<const Sampler::Candidate> Sampler::filtered(std::span<const float> logits) {
  candidates_.clear();
  if (is_greedy()) {
    const auto best = std::ranges::find(logits, greatest(logits));
    candidates_.push_back({static_cast<int32_t>(best - logits.begin()), 1.0});
    return candidates_;
  }
  // Of a vocabulary, all but some chunks are below what the top k reach: as many chunks as that reach it.
  std::vector<float> chunks;
  for (size_t c = 0; c < chunk_count(logits); ++c) chunks.push_back(greatest(chunk_of(logits, c)));
  const auto k = static_cast<size_t>(params_.top_k);
  const float reached = k > 0 && k <= chunks.size() ? nth_greatest(chunks, k) : -INFINITY;
  for (size_t c = 0; c < chunks.size(); ++c) {
    if (chunks[c] < reached) continue;
    const std::span<const float> chunk = chunk_of(logits, c);
    for (size_t i = 0; i < chunk.size(); ++i) {
      if (chunk[i] == -INFINITY || chunk[i] < reached) continue;
      candidates_.push_back({static_cast<int32_t>(c * kGreatestChunk + i), static_cast<double>(chunk[i]) / params_.temperature});
    }
  }
  keep_top_k();
  double largest = -INFINITY;
  for (const Candidate& c : candidates_) largest = std::max(largest, c.probability);
  for (Candidate& c : candidates_) c.probability = std::exp(c.probability - largest);
  keep_top_p();
  keep_min_p();
  double total = 0;
  for (const Candidate& c : candidates_) total += c.probability;
  for (Candidate& c : candidates_) c.probability /= total;
  return candidates_;
}

int32_t Sampler::sample(std::span<const float> logits) {
  return draw(distribution(logits));
}

std::optional<int32_t> Sampler::sample(std::span<const float> logits, TokenConstraint& constraint) {
  const std::span<const float> allowed = penalised(logits, &constraint);
  if (nothing_is_left(allowed)) return std::nullopt;
  return draw(filtered(allowed));
}

int32_t Sampler::draw(std::span<const Candidate> candidates) {
  if (is_greedy()) return candidates.front().id;
  double rest = random_.next();
  for (const Candidate& c : candidates) {
    rest -= c.probability;
    if (rest < 0) return c.id;
  }
  // Rounding may leave a sum a hair below the draw; the last token that can occur takes it.
  const auto last = std::find_if(candidates.rbegin(), candidates.rend(),
                                 [](const Candidate& c) { return c.probability > 0; });
  return last->id;
}

}  // namespace qvl::generate
