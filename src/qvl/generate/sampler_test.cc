// The sampler against a plain restatement that sorts the whole vocabulary in double, and drawn frequencies
// against the stated distribution.
#include "qvl/generate/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

std::vector<float> random_logits(size_t count, uint64_t seed, double spread) {
  Random random(seed);
  std::vector<float> logits(count);
  for (float& v : logits) v = static_cast<float>((random.next() - 0.5) * 2 * spread);
  return logits;
}

// Spec 7.6 as it is written: every step on the full vocabulary, ascending sort and cumulative sum for top-p.
std::vector<double> reference(const std::vector<float>& logits, const SamplingParams& p, int64_t limit,
                              const std::vector<int32_t>& prompt, const std::vector<int32_t>& generated) {
  const double off = -std::numeric_limits<double>::infinity();
  std::vector<double> x(logits.begin(), logits.end());
  for (size_t i = static_cast<size_t>(limit); i < x.size(); ++i) x[i] = off;
  std::map<int32_t, int> seen, counts;
  for (int32_t id : prompt) ++seen[id];
  for (int32_t id : generated) ++seen[id], ++counts[id];
  for (auto [id, n] : seen) x[id] = x[id] < 0 ? x[id] * p.repetition_penalty : x[id] / p.repetition_penalty;
  for (auto [id, n] : counts) x[id] -= p.presence_penalty + p.frequency_penalty * n;
  for (double& v : x) v /= p.temperature;
  if (p.top_k > 0 && p.top_k < static_cast<int64_t>(x.size())) {
    auto sorted = x;
    std::sort(sorted.rbegin(), sorted.rend());
    for (double& v : x)
      if (v < sorted[p.top_k - 1]) v = off;
  }
  auto softmax = [&] {
    const double m = *std::max_element(x.begin(), x.end());
    std::vector<double> out(x.size());
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += out[i] = std::exp(x[i] - m);
    for (double& v : out) v /= sum;
    return out;
  };
  if (p.top_p < 1) {
    const auto probability = softmax();
    std::vector<size_t> order(x.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return probability[a] != probability[b] ? probability[a] < probability[b] : a > b;
    });
    double cumulative = 0;
    for (size_t i = 0; i + 1 < order.size(); ++i) {
      cumulative += probability[order[i]];
      if (cumulative <= 1 - p.top_p) x[order[i]] = off;
    }
  }
  if (p.min_p > 0) {
    const auto probability = softmax();
    const double largest = *std::max_element(probability.begin(), probability.end());
    for (size_t i = 0; i < x.size(); ++i)
      if (probability[i] < p.min_p * largest) x[i] = off;
  }
  return softmax();
}

struct Case {
  const char* name;
  size_t vocabulary;
  int64_t limit;
  SamplingParams params;
};

TEST(Sampler, EqualsThePlainRestatement) {
  const std::vector<Case> cases = {
      {"plain", 1000, 1000, {}},
      {"temperature", 1000, 990, {.temperature = 0.7}},
      {"hot", 1000, 990, {.temperature = 3.5}},
      {"top_k", 1000, 990, {.temperature = 0.7, .top_k = 20}},
      {"top_k of one", 1000, 990, {.top_k = 1}},
      {"top_k above the vocabulary", 1000, 990, {.top_k = 5000}},
      {"top_p", 1000, 990, {.top_p = 0.8}},
      {"top_p wide", 5000, 4990, {.temperature = 2.0, .top_p = 0.999}},
      {"top_p zero", 1000, 990, {.top_p = 0.0}},
      {"min_p", 1000, 990, {.min_p = 0.05}},
      {"published", 152000, 151669, {.temperature = 0.7, .top_k = 20, .top_p = 0.8}},
      {"all",
       152000,
       151669,
       {.temperature = 1.3,
        .top_k = 900,
        .top_p = 0.95,
        .min_p = 0.01,
        .repetition_penalty = 1.2,
        .presence_penalty = 1.5,
        .frequency_penalty = 0.3}},
      {"penalties below one",
       1000,
       990,
       {.temperature = 0.9, .repetition_penalty = 0.8, .presence_penalty = -0.5, .frequency_penalty = -0.25}},
  };
  uint64_t seed = 1;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    for (double spread : {0.5, 6.0}) {
      auto logits = random_logits(c.vocabulary, ++seed, spread);
      const std::vector<int32_t> prompt = {3, 5, 5, 7, 900}, generated = {7, 11, 11, 11, 950};
      for (int32_t id : {3, 7, 11}) logits[id] = static_cast<float>(spread);
      Sampler sampler(c.params, 0, c.limit);
      sampler.add_prompt(prompt);
      for (int32_t id : generated) sampler.add_generated(id);
      const auto want = reference(logits, c.params, c.limit, prompt, generated);
      const auto got = sampler.distribution(logits);
      size_t next = 0;
      double sum = 0;
      for (size_t id = 0; id < want.size(); ++id) {
        if (want[id] == 0) continue;
        ASSERT_LT(next, got.size());
        ASSERT_EQ(got[next].id, static_cast<int32_t>(id));
        ASSERT_NEAR(got[next].probability, want[id], 2e-6 * want[id] + 1e-12);
        sum += got[next++].probability;
      }
      EXPECT_EQ(next, got.size());
      EXPECT_NEAR(sum, 1.0, 1e-9);
    }
  }
}

TEST(Sampler, TiesWithTheKthLogitStay) {
  const std::vector<float> logits = {1, 3, 2, 2, 0, 2};
  Sampler sampler({.top_k = 2}, 0, 6);
  std::vector<int32_t> ids;
  for (const auto& c : sampler.distribution(logits)) ids.push_back(c.id);
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 2, 3, 5}));
}

TEST(Sampler, GreedyTakesTheFirstOfEqualsAndHonoursPenalties) {
  const std::vector<float> logits = {0, 4, 4, 3.9F, -1};
  Sampler plain({.greedy = true}, 0, 5);
  EXPECT_EQ(plain.sample(logits), 1);
  Sampler zero({.temperature = 0}, 0, 5);
  EXPECT_EQ(zero.sample(logits), 1);
  Sampler penalised({.greedy = true, .repetition_penalty = 2}, 0, 5);
  penalised.add_prompt(std::vector<int32_t>{1});
  EXPECT_EQ(penalised.sample(logits), 2);
  penalised.add_generated(2);
  EXPECT_EQ(penalised.sample(logits), 3);
}

TEST(Sampler, RepetitionCountsATokenOnceAndPresenceSparesThePrompt) {
  const std::vector<float> logits = {2, 1, 0};
  Sampler once({.repetition_penalty = 2}, 0, 3), twice({.repetition_penalty = 2}, 0, 3);
  once.add_prompt(std::vector<int32_t>{0});
  twice.add_prompt(std::vector<int32_t>{0, 0});
  twice.add_generated(0);
  EXPECT_DOUBLE_EQ(once.distribution(logits)[0].probability, twice.distribution(logits)[0].probability);
  Sampler presence({.presence_penalty = 5}, 0, 3), untouched({}, 0, 3);
  presence.add_prompt(std::vector<int32_t>{0});
  EXPECT_DOUBLE_EQ(presence.distribution(logits)[0].probability,
                   untouched.distribution(logits)[0].probability);
}

TEST(Sampler, NeverChoosesAnIdWithoutText) {
  std::vector<float> logits(100, 0.0F);
  logits[97] = 50;
  Sampler greedy({.greedy = true}, 0, 96);
  EXPECT_EQ(greedy.sample(logits), 0);
  Sampler drawn({}, 1, 96);
  for (int i = 0; i < 2000; ++i) EXPECT_LT(drawn.sample(logits), 96);
}

TEST(Sampler, BrokenLogitsAreAnError) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (bool greedy : {true, false}) {
      std::vector<float> logits(10, 1.0F);
      logits[4] = bad;
      Sampler sampler({.greedy = greedy}, 0, 10);
      try {
        sampler.sample(logits);
        FAIL();
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ErrorCode::kFormat);
        EXPECT_NE(std::string(e.what()).find("token 4"), std::string::npos) << e.what();
      }
    }
  }
  Sampler sampler({}, 0, 3);
  EXPECT_THROW(sampler.sample(std::vector<float>(3, -std::numeric_limits<float>::infinity())), Error);
}

TEST(Sampler, RejectsValuesOutOfRange) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<SamplingParams> bad = {
      {.temperature = -0.1},
      {.temperature = nan},
      {.top_k = -1},
      {.top_p = 1.01},
      {.top_p = nan},
      {.min_p = -0.1},
      {.min_p = 1.5},
      {.repetition_penalty = 0},
      {.repetition_penalty = -1},
      {.presence_penalty = nan},
      {.frequency_penalty = 1e9},
  };
  for (const auto& p : bad) EXPECT_THROW(validate(p), Error);
  EXPECT_NO_THROW(validate({}));
  EXPECT_NO_THROW(validate({.temperature = 0, .top_p = 0}));
}

// Pearson's statistic over the candidates; the bound is the 99.99 % quantile, and the seed is fixed.
TEST(Sampler, DrawsWithTheStatedProbabilities) {
  const auto logits = random_logits(40, 99, 2.0);
  Sampler sampler({.temperature = 0.8, .top_k = 15}, 4242, 40);
  const auto stated = sampler.distribution(logits);
  const std::vector<Sampler::Candidate> want(stated.begin(), stated.end());
  ASSERT_EQ(want.size(), 15U);
  std::map<int32_t, int> counts;
  const int draws = 100000;
  for (int i = 0; i < draws; ++i) ++counts[sampler.sample(logits)];
  double statistic = 0;
  int seen = 0;
  for (const auto& c : want) {
    const double expected = c.probability * draws;
    statistic += (counts[c.id] - expected) * (counts[c.id] - expected) / expected;
    seen += counts[c.id];
  }
  EXPECT_EQ(seen, draws);
  EXPECT_LT(statistic, 42.6);  // 14 degrees of freedom
  EXPECT_GT(statistic, 1.5);   // a suspiciously perfect fit would be a counter, not a draw
}

// Pins the stream: these values follow from the published MT19937-64 and must never change, or a seed would
// mean another answer in the next release.
TEST(Sampler, ASeedMeansTheSameStreamEverywhere) {
  std::mt19937_64 published;  // default seed 5489; its 10000th value is given in the C++ standard
  published.discard(9999);
  EXPECT_EQ(published(), 9981545732273789042ULL);
  Random random(5489);
  double value = 0;
  for (int i = 0; i < 10000; ++i) value = random.next();
  EXPECT_EQ(value, static_cast<double>(9981545732273789042ULL >> 11) / 9007199254740992.0);

  const auto logits = random_logits(500, 7, 3.0);
  Sampler a({}, 17, 500), b({}, 17, 500), c({}, 18, 500);
  std::vector<int32_t> x, y, z;
  for (int i = 0; i < 50; ++i)
    x.push_back(a.sample(logits)), y.push_back(b.sample(logits)), z.push_back(c.sample(logits));
  EXPECT_EQ(x, y);
  EXPECT_NE(x, z);
}

// ---- bias and constraints

// Lets some ids through.
struct Only final : TokenConstraint {
  explicit Only(std::vector<int32_t> let) : ids(std::move(let)) {}
  void apply(std::span<float> logits) override {
    size = logits.size();
    for (size_t i = 0; i < logits.size(); ++i) {
      if (std::find(ids.begin(), ids.end(), static_cast<int32_t>(i)) == ids.end()) logits[i] = -INFINITY;
    }
  }
  void accept(int32_t) override {}
  bool finished() const override { return false; }
  std::vector<int32_t> ids;
  size_t size = 0;
};

TEST(Sampler, BiasComesBeforePenaltiesAndTemperature) {
  const auto logits = random_logits(50, 11, 3);
  std::vector<float> biased = logits;
  biased[7] += 2.5F;
  biased[8] -= 4.0F;
  const SamplingParams params{.temperature = 0.7, .top_k = 12, .top_p = 0.9, .repetition_penalty = 1.3};
  Sampler with(params, 1, 40), without(params, 1, 40);
  with.set_bias({{7, 2.5F}, {8, -4.0F}});
  for (Sampler* s : {&with, &without}) s->add_prompt(std::vector<int32_t>{7, 8, 9});
  const auto a = with.distribution(logits);
  const auto b = without.distribution(biased);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].id, b[i].id);
    EXPECT_EQ(a[i].probability, b[i].probability);
  }
  EXPECT_THROW(with.set_bias({{40, 1.0F}}), Error);
  EXPECT_THROW(with.set_bias({{-1, 1.0F}}), Error);
  EXPECT_THROW(with.set_bias({{3, NAN}}), Error);
}

TEST(Sampler, AConstraintActsBeforeTopKAndTopP) {
  const auto logits = random_logits(50, 12, 5);
  std::vector<int32_t> order(50);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] < logits[b]; });
  // The least likely ones: none of them is among the four likeliest of all.
  Only some({order[0], order[1], order[2]});
  Sampler sampler({.temperature = 3.0, .top_k = 4, .top_p = 0.999}, 5, 50);
  std::map<int32_t, int> drawn;
  for (int i = 0; i < 3000; ++i) ++drawn[sampler.sample(logits, some).value()];
  EXPECT_EQ(some.size, 50U);
  ASSERT_EQ(drawn.size(), 3U);
  double total = 0;
  for (int32_t id : some.ids) total += std::exp(static_cast<double>(logits[id]) / 3);
  for (int32_t id : some.ids)
    EXPECT_NEAR(drawn[id] / 3000.0, std::exp(static_cast<double>(logits[id]) / 3) / total, 0.04);
}

TEST(Sampler, NothingLetThroughIsNoTokenAndNoRandomNumber) {
  const auto logits = random_logits(50, 13, 2);
  Only none({}), all({});
  for (int32_t i = 0; i < 50; ++i) all.ids.push_back(i);
  Sampler a({.temperature = 1.0}, 9, 45), b({.temperature = 1.0}, 9, 45);
  Only textless({47});  // it has no text
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(a.sample(logits, none), std::nullopt);
    EXPECT_EQ(a.sample(logits, textless), std::nullopt);
    EXPECT_EQ(none.size, 45U);
    EXPECT_EQ(a.sample(logits, all), b.sample(logits));
  }
  Sampler greedy({.greedy = true}, 9, 45);
  EXPECT_EQ(greedy.sample(logits, none), std::nullopt);
  // Damaged logits are an error whatever is let through.
  std::vector<float> damaged = logits;
  damaged[3] = NAN;
  EXPECT_THROW(a.sample(damaged, none), Error);
  EXPECT_THROW(a.sample(std::vector<float>(50, -INFINITY), all), Error);
}

}  // namespace
}  // namespace qvl::generate
