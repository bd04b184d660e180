#include "qvl/generate/speculation.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::generate {
namespace {

constexpr int32_t kWall = -1;
// How many earlier places of the last pair are compared: enough for the phrases of a document, and a step's search
// stays below a few microseconds where one pair fills a prompt.
constexpr size_t kMaxPlaces = 64;

uint64_t pair_key(int32_t a, int32_t b) {
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b);
}

// A single token says little: of its places the latest few count, the older the less.
constexpr size_t kMaxSinglePlaces = 8;

// Before anything was counted, by length of the run and by how far places agree; the mean of both. Measured on nothing in
// particular: they only decide the first few drafts.
constexpr std::array<double, 6> kFirstByRun = {0.35, 0.5, 0.6, 0.7, 0.8, 0.9};
constexpr std::array<double, 4> kFirstByAgreement = {0.3, 0.65, 0.9, 0.95};
constexpr double kFirstWeight = 2;    // guesses that those count for
constexpr double kRateMemory = 48;    // guesses of one kind after which older ones fade
constexpr double kCostOfRow = 0.25;   // of a further row, while no step of several was measured
constexpr double kWorthIt = 1.02;
constexpr int64_t kFirstPauseSteps = 16;
constexpr int64_t kLongestPauseSteps = 1024;
constexpr int64_t kStepsWithoutPlain = 64;
constexpr int64_t kFirstSteps = 3;  // that need not wait for a step without guesses

}  // namespace

void validate(const Speculation& s) {
  if (s.mode != Speculation::Mode::kFixed) return;
  if (s.draft_tokens < 1 || s.draft_tokens > kMaxDraftTokens) {
    fail(ErrorCode::kInvalidArgument, "speculation", "tokens guessed at a time", cat("1..", kMaxDraftTokens),
         cat(s.draft_tokens));
  }
}

Drafter::Drafter(std::vector<int32_t> walls, size_t max_tokens)
    : walls_(std::move(walls)), max_tokens_(std::max(max_tokens, size_t{64})) {}

void Drafter::clear() {
  stream_.clear();
  timeline_.clear();
  last_one_.clear();
  last_pair_.clear();
  one_before_.clear();
  pair_before_.clear();
}

void Drafter::push(int32_t id) {
  const bool wall = id < 0 || std::find(walls_.begin(), walls_.end(), id) != walls_.end();
  if (wall) {
    if (stream_.empty() || stream_.back() == kWall) return;  // one wall for all tokens of a picture
    stream_.push_back(kWall);
    one_before_.push_back(-1);
    pair_before_.push_back(-1);
    return;
  }
  if (stream_.size() >= max_tokens_) forget_older_half();
  const auto place = static_cast<int32_t>(stream_.size());
  int32_t before = -1;
  if (place > 0 && stream_.back() != kWall) {
    const auto [entry, fresh] = last_pair_.try_emplace(pair_key(stream_.back(), id), place);
    if (!fresh) before = std::exchange(entry->second, place);
  }
  // The last token itself has no place in last_one_ before another one follows, see places().
  if (place > 0 && stream_.back() != kWall) {
    const auto [entry, fresh] = last_one_.try_emplace(stream_.back(), place - 1);
    if (!fresh) one_before_.back() = std::exchange(entry->second, place - 1);
  }
  stream_.push_back(id);
  one_before_.push_back(-1);
  pair_before_.push_back(before);
}

void Drafter::forget_older_half() {
  const std::vector<int32_t> kept(stream_.end() - static_cast<ptrdiff_t>(stream_.size() / 2), stream_.end());
  stream_.clear();
  last_one_.clear();
  last_pair_.clear();
  one_before_.clear();
  pair_before_.clear();
  for (int32_t id : kept) push(id);
}

void Drafter::append(int32_t id) {
  timeline_.push_back(id);
  push(id);
}

void Drafter::set_timeline(std::span<const int32_t> ids) {
  const auto [mine, theirs] = std::mismatch(timeline_.begin(), timeline_.end(), ids.begin(), ids.end());
  auto same = static_cast<size_t>(mine - timeline_.begin());
  if (same < timeline_.size()) {
    // Another branch. What it shares stays where it is; a run's length of it leads over to the new part.
    push(kWall);
    same -= std::min(same, static_cast<size_t>(kLongestMatch));
  }
  // Of more than fits, the end.
  same = std::max(same, ids.size() - std::min(ids.size(), max_tokens_ / 2));
  for (int32_t id : ids.subspan(same)) push(id);
  timeline_.assign(ids.begin(), ids.end());
}

// Of the tokens up to the end and those up to and including `other`.
int64_t Drafter::common_run(int64_t other) const {
  const auto end = static_cast<int64_t>(stream_.size()) - 1;
  int64_t n = 0;
  while (n < kLongestMatch && other - n >= 0) {
    const int32_t id = stream_[static_cast<size_t>(end - n)];
    if (id == kWall || id != stream_[static_cast<size_t>(other - n)]) break;
    ++n;
  }
  return n;
}

Drafter::Places Drafter::places() const {
  Places out;
  int32_t place = pair_before_.back();
  for (size_t i = 0; i < kMaxPlaces && place >= 0; ++i, place = pair_before_[static_cast<size_t>(place)]) {
    if (stream_[static_cast<size_t>(place) + 1] == kWall) continue;
    out.all.push_back({place, 1});
    if (out.match_tokens == kLongestMatch) continue;
    const int64_t run = common_run(place);
    if (run > out.match_tokens) {
      out.match_tokens = run;
      out.chosen = place;
    }
  }
  if (!out.all.empty()) return out;
  const auto found = last_one_.find(stream_.back());
  if (found == last_one_.end()) return out;
  out.chosen = place = found->second;
  out.match_tokens = common_run(place);
  for (size_t i = 0; i < kMaxSinglePlaces && place >= 0; ++i, place = one_before_[static_cast<size_t>(place)]) {
    out.all.push_back({place, 1 / static_cast<double>(i + 1)});
  }
  return out;
}

Drafter::Draft Drafter::draft(int64_t limit) const {
  if (stream_.empty() || limit < 1 || stream_.back() == kWall) return {};
  Places from = places();
  const auto end = static_cast<int64_t>(stream_.size()) - 1;
  // What followed a place, repeated once it reaches the end.
  const auto after = [&](int64_t place, int64_t i) {
    const int64_t at = place + 1 + i;
    return stream_[static_cast<size_t>(at <= end ? at : place + 1 + i % (end - place))];
  };
  Draft out;
  for (int64_t i = 0; i < limit && from.chosen >= 0; ++i) {
    const int32_t id = after(from.chosen, i);
    if (id == kWall) break;
    const size_t before = from.all.size();
    double all = 0, agreeing = 0;
    std::erase_if(from.all, [&](const Places::Place& p) {
      const bool agrees = after(p.at, i) == id;
      all += p.weight;
      if (agrees) agreeing += p.weight;
      return !agrees;
    });
    out.ids.push_back(id);
    out.evidence.push_back({from.match_tokens + i, static_cast<int64_t>(before), agreeing / all});
  }
  return out;
}

double DraftController::Times::median() const {
  std::array<double, 7> sorted = ms;
  const size_t n = std::min(count, ms.size());
  std::sort(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(n));
  return n == 0 ? 0 : sorted[(n - 1) / 2];
}

DraftController::DraftController() : pause_steps_(kFirstPauseSteps) {
  static_assert(kFirstByRun.size() == kRuns && kFirstByAgreement.size() + 1 == kAgreements);  // one place: the run alone
  for (size_t i = 0; i < rates_.size(); ++i) {
    const double by_run = kFirstByRun[i / kAgreements];
    const size_t agreement = i % kAgreements;
    const double first = agreement < kFirstByAgreement.size() ? (by_run + kFirstByAgreement[agreement]) / 2 : by_run;
    rates_[i] = {first * kFirstWeight, kFirstWeight};
  }
}

size_t DraftController::bucket(const Evidence& e) {
  const int64_t run = e.match_tokens;
  const size_t by_run = run <= 1 ? 0 : run == 2 ? 1 : run <= 4 ? 2 : run <= 8 ? 3 : run < Drafter::kLongestMatch ? 4 : 5;
  // Of several places most go on otherwise, fewer, a few, or none.
  const size_t by_agreement = e.places <= 1 ? 4 : e.share < 0.5 ? 0 : e.share < 0.8 ? 1 : e.share < 1 ? 2 : 3;
  return by_run * kAgreements + by_agreement;
}

double DraftController::acceptance(const Evidence& evidence) const {
  const Rate& r = rates_[bucket(evidence)];
  return r.hits / r.trials;
}

double DraftController::one_row_ms() const {
  for (int64_t r = 1; r < static_cast<int64_t>(times_.size()); ++r) {
    const Times& t = times_[static_cast<size_t>(r)];
    if (t.count > 0) return t.median() / (1 + kCostOfRow * static_cast<double>(r - 1));
  }
  return 0;
}

double DraftController::cost(int64_t rows) const {
  if (rows <= 1) return 1;
  const double one = one_row_ms();
  // A further row costs what it did in the nearest size that was measured.
  double row = kCostOfRow;
  int64_t distance = INT64_MAX;
  for (int64_t r = 2; one > 0 && r < static_cast<int64_t>(times_.size()); ++r) {
    const Times& t = times_[static_cast<size_t>(r)];
    if (t.count == 0 || std::abs(r - rows) >= distance) continue;
    distance = std::abs(r - rows);
    row = std::max(0.0, t.median() / one - 1) / static_cast<double>(r - 1);
  }
  double cost = 1 + row * static_cast<double>(rows - 1);
  // Fewer rows never cost more: of two measurements that disagree the larger one was disturbed.
  for (int64_t r = rows + 1; one > 0 && r < static_cast<int64_t>(times_.size()); ++r) {
    const Times& t = times_[static_cast<size_t>(r)];
    if (t.count > 0) cost = std::min(cost, std::max(1.0, t.median() / one));
  }
  return cost;
}

DraftController::Choice DraftController::best(std::span<const Evidence> available, int64_t other_rows,
                                              bool measured_costs) const {
  Choice out;
  double reached = 1, tokens = 1;
  const auto cost_of = [&](int64_t rows) {
    return measured_costs ? cost(rows) : 1 + kCostOfRow * static_cast<double>(rows - 1);
  };
  const int64_t plain = other_rows + 1;
  // Steps grow from one size to its double, so that a first try where rows are dear costs little.
  const int64_t tried = 2 * largest_step_ - plain;
  for (int64_t k = 1; k <= std::min({static_cast<int64_t>(available.size()), kMaxDraftTokens, tried}); ++k) {
    reached *= acceptance(available[static_cast<size_t>(k) - 1]);
    tokens += reached;
    const double gain =
        (static_cast<double>(other_rows) + tokens) / static_cast<double>(plain) * cost_of(plain) / cost_of(plain + k);
    if (gain > std::max(out.gain, kWorthIt)) out = {k, gain};
  }
  return out;
}

int64_t DraftController::choose(std::span<const Evidence> available, int64_t other_rows) {
  if (available.empty()) return 0;
  // The cost of a step without guesses changes as the context grows and as others come and go; it is only known from such
  // steps.
  if (steps_ - last_plain_ >= (plain_steps_ > 0 ? kStepsWithoutPlain : kFirstSteps)) return 0;
  const Choice choice = best(available, other_rows, true);
  if (probing_) {
    probing_ = false;
    pause_steps_ = choice.draft_tokens > 0 ? kFirstPauseSteps : std::min(2 * pause_steps_, kLongestPauseSteps);
  }
  if (choice.draft_tokens > 0) return choice.draft_tokens;
  const Choice hoped = best(available, other_rows, false);
  // Bad guesses stay unchecked until they get better. Costs may have been those of a disturbed moment.
  if (hoped.draft_tokens == 0 || steps_ - last_checked_ < pause_steps_) return 0;
  probing_ = true;
  return hoped.draft_tokens;
}

void DraftController::count_guess(const Evidence& evidence, bool came_true) {
  Rate& r = rates_[bucket(evidence)];
  if (r.trials >= kRateMemory) {
    r.hits *= (kRateMemory - 1) / r.trials;
    r.trials = kRateMemory - 1;
  }
  r.trials += 1;
  r.hits += came_true;
}

void DraftController::count_step(int64_t rows, double ms, int64_t other_rows) {
  const int64_t all = std::clamp<int64_t>(rows + other_rows, 1, kMaxDraftTokens + 1);
  times_[static_cast<size_t>(all)].add(ms);
  (rows <= 1 ? last_plain_ : last_checked_) = ++steps_;
  plain_steps_ += rows <= 1;
  largest_step_ = std::max(largest_step_, all);
}

}  // namespace qvl::generate
