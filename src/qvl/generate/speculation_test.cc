// Guesses: the longest run, the most recent place, walls, memory; and when they are worth a step.
#include "qvl/generate/speculation.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

constexpr int32_t kPad = 60;
using Ids = std::vector<int32_t>;

Drafter drafter(const Ids& timeline) {
  Drafter d({kPad});
  d.set_timeline(timeline);
  return d;
}

Ids guess(const Drafter& d, int64_t limit = 4) {
  return d.draft(limit).ids;
}

TEST(Drafter, ContinuesTheLongestRun) {
  // "2 3" came twice; after "1 2 3" came 4.
  const Drafter d = drafter({1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2, 3});
  const Drafter::Draft draft = d.draft(3);
  EXPECT_EQ(draft.ids, (Ids{4, 5, 9}));
  ASSERT_EQ(draft.evidence.size(), 3U);
  EXPECT_EQ(draft.evidence[0].match_tokens, 3);
  EXPECT_EQ(draft.evidence[2].match_tokens, 5);
  EXPECT_EQ(guess(d, 1), Ids{4});
  EXPECT_EQ(guess(d, 0), Ids{});
}

TEST(Drafter, AmongEqualRunsTakesTheMostRecent) {
  EXPECT_EQ(guess(drafter({1, 2, 30, 1, 2, 31, 5, 1, 2}), 1), Ids{31});
  EXPECT_EQ(guess(drafter({2, 30, 4, 2, 31, 5, 2}), 1), Ids{31});  // a single token
  EXPECT_EQ(drafter({2, 30, 4, 2, 31, 5, 2}).draft(1).evidence[0].match_tokens, 1);
}

TEST(Drafter, SaysHowFarEarlierPlacesAgree) {
  // "1 2" went on as 3 4, 3 5 and 6; the latest of the longest runs (all of two tokens) is chosen.
  const Drafter::Draft pair = drafter({9, 1, 2, 6, 1, 2, 3, 5, 8, 1, 2, 3, 4, 7, 1, 2}).draft(3);
  EXPECT_EQ(pair.ids, (Ids{3, 4, 7}));
  EXPECT_EQ(pair.evidence[0].places, 3);
  EXPECT_DOUBLE_EQ(pair.evidence[0].share, 2.0 / 3);
  EXPECT_EQ(pair.evidence[1].places, 2);  // those that said 3
  EXPECT_DOUBLE_EQ(pair.evidence[1].share, 0.5);
  EXPECT_EQ(pair.evidence[2].places, 1);
  EXPECT_DOUBLE_EQ(pair.evidence[2].share, 1);
  // The places of a single token count the less the older they are: 1 for 31, 1/2 + 1/3 for 30.
  const Drafter::Draft single = drafter({2, 30, 4, 2, 30, 5, 2, 31, 6, 2}).draft(1);
  EXPECT_EQ(single.ids, Ids{31});
  EXPECT_EQ(single.evidence[0].places, 3);
  EXPECT_DOUBLE_EQ(single.evidence[0].share, 1 / (1 + 0.5 + 1.0 / 3));
  // What only a picture follows is no place, and a picture agrees with nothing.
  const Drafter::Draft wall = drafter({1, 2, kPad, 1, 2, 3, kPad, 1, 2, 3, 4, 1, 2}).draft(2);
  EXPECT_EQ(wall.evidence[0].places, 2);
  EXPECT_DOUBLE_EQ(wall.evidence[1].share, 0.5);
  // A place that reaches the end is taken to repeat itself.
  const Drafter::Draft repeated = drafter({4, 4, 4}).draft(4);
  EXPECT_EQ(repeated.ids, (Ids{4, 4, 4, 4}));
  EXPECT_DOUBLE_EQ(repeated.evidence[3].share, 1);
}

TEST(Drafter, WithoutAnEarlierPlaceThereIsNoGuess) {
  EXPECT_EQ(guess(drafter({})), Ids{});
  EXPECT_EQ(guess(drafter({5})), Ids{});
  EXPECT_EQ(guess(drafter({1, 2, 3})), Ids{});
}

TEST(Drafter, ARepetitionIsGuessedToGoOn) {
  EXPECT_EQ(guess(drafter({9, 1, 2, 3, 1, 2, 3}), 7), (Ids{1, 2, 3, 1, 2, 3, 1}));
  EXPECT_EQ(guess(drafter({4, 4}), 5), (Ids{4, 4, 4, 4, 4}));
}

TEST(Drafter, PicturesAreWalls) {
  // A guess ends before a picture, a run does not reach over it, and what only a picture follows is no place.
  EXPECT_EQ(guess(drafter({1, 2, 3, kPad, kPad, 4, 1, 2})), Ids{3});
  EXPECT_EQ(drafter({1, kPad, 2, 3, 1, kPad, kPad, 2}).draft(4).evidence[0].match_tokens, 1);
  EXPECT_EQ(guess(drafter({1, kPad, 5, 1})), Ids{});
  EXPECT_EQ(guess(drafter({7, 1, 2, 9, 7, 1, kPad, 7, 1})), (Ids{2, 9, 7, 1}));
  EXPECT_EQ(guess(drafter({1, 2, 1, kPad})), Ids{});
  // A picture of a million tokens costs one place.
  EXPECT_EQ(drafter(Ids(1000, kPad)).remembered_tokens(), 0U);
  Ids one = {1};
  one.resize(1000, kPad);
  EXPECT_EQ(drafter(one).remembered_tokens(), 2U);
}

TEST(Drafter, AppendingEqualsSettingTheWholeTimeline) {
  Drafter d({kPad});
  d.set_timeline(Ids{1, 2, 3});
  Ids all = {1, 2, 3};
  uint32_t state = 7;
  for (int i = 0; i < 2000; ++i) {
    state = state * 1664525 + 1013904223;
    const auto id = static_cast<int32_t>(state >> 29);
    d.append(id);
    all.push_back(id);
    const Drafter::Draft a = d.draft(6), b = drafter(all).draft(6);
    ASSERT_EQ(a.ids, b.ids) << i;
    ASSERT_EQ(a.evidence.size(), a.ids.size());
    ASSERT_EQ(b.evidence.size(), a.ids.size());
    for (size_t k = 0; k < a.ids.size(); ++k) {
      ASSERT_EQ(a.evidence[k].match_tokens, b.evidence[k].match_tokens) << i;
      ASSERT_EQ(a.evidence[k].places, b.evidence[k].places) << i;
      ASSERT_EQ(a.evidence[k].share, b.evidence[k].share) << i;
    }
    if (i > 100) i += 50;
  }
}

// The same by trying every place.
TEST(Drafter, EqualsTheExhaustiveSearch) {
  Ids all;
  uint32_t state = 11;
  for (int i = 0; i < 300; ++i) {
    state = state * 1664525 + 1013904223;
    const auto v = static_cast<int32_t>(state >> 28);  // 0..15
    all.push_back(v == 15 ? kPad : v % 6);
    const auto n = static_cast<int64_t>(all.size());
    const auto at = [&](int64_t p) { return all[static_cast<size_t>(p)]; };
    int64_t longest = 0, place = -1;
    for (int64_t p = n - 2; p >= 0; --p) {
      if (at(p + 1) == kPad) continue;
      int64_t run = 0;
      while (run <= p && run < Drafter::kLongestMatch && at(p - run) == at(n - 1 - run) && at(p - run) != kPad) ++run;
      if (run > longest) longest = run, place = p;
    }
    const Drafter::Draft draft = drafter(all).draft(1);
    ASSERT_EQ(draft.evidence.empty() ? 0 : draft.evidence[0].match_tokens, longest) << i;
    ASSERT_EQ(draft.ids, longest > 0 ? Ids{at(place + 1)} : Ids{}) << i;
  }
}

TEST(Drafter, RemembersOtherConversations) {
  Drafter d({kPad});
  d.set_timeline(Ids{1, 2, 3});
  for (int32_t id : {10, 11, 12}) d.append(id);
  const size_t before = d.remembered_tokens();
  // The next turn goes on with the same timeline and adds what is new.
  d.set_timeline(Ids{1, 2, 3, 10, 11, 12, 4, 5});
  EXPECT_EQ(d.remembered_tokens(), before + 2);
  // Another question with the same beginning: the answer to the first is guessed.
  d.set_timeline(Ids{1, 2, 3});
  EXPECT_EQ(guess(d, 3), (Ids{10, 11, 12}));
  // A branch leads over from what is shared: "3 10" is known before 40.
  d.set_timeline(Ids{1, 2, 3, 10, 40, 41});
  d.set_timeline(Ids{7, 3, 10});
  EXPECT_EQ(guess(d, 1), Ids{40});
  d.clear();
  EXPECT_EQ(d.remembered_tokens(), 0U);
  d.set_timeline(Ids{1, 2, 3});
  EXPECT_EQ(guess(d), Ids{});
}

TEST(Drafter, ForgetsTheOldest) {
  Drafter d({kPad}, 64);
  for (int32_t i = 0; i < 1000; ++i) {
    d.append(1000 + i);
    ASSERT_LE(d.remembered_tokens(), 65U);
  }
  d.append(1990);
  EXPECT_EQ(guess(d, 2), (Ids{1991, 1992}));
  d.append(1100);
  EXPECT_EQ(guess(d), Ids{});
  // More than fits at once: its end.
  Ids longer(500);
  for (size_t i = 0; i < longer.size(); ++i) longer[i] = static_cast<int32_t>(5000 + i);
  longer.push_back(5495);
  d.set_timeline(longer);
  EXPECT_EQ(guess(d, 2), (Ids{5496, 5497}));
  EXPECT_LE(d.remembered_tokens(), 65U);
}

// ---- when to check

// One place speaks for a run of `match` tokens.
Evidence single(int64_t match) {
  return {.match_tokens = match};
}
// A draft of so many guesses, all after a run of `match`.
std::vector<Evidence> draft_after(int64_t match, int64_t guesses) {
  return std::vector<Evidence>(static_cast<size_t>(guesses), single(match));
}

TEST(DraftController, ChecksLikelyGuessesAndLeavesUnlikelyOnes) {
  DraftController c;
  for (int i = 0; i < 100; ++i) c.count_guess(single(1), false);
  for (int i = 0; i < 100; ++i) c.count_guess(single(4), true);
  EXPECT_EQ(c.choose(draft_after(1, 15)), 0);
  // Longer drafts are tried one after the other.
  EXPECT_EQ(c.choose(draft_after(4, 15)), 1);
  c.count_step(1, 10);
  c.count_step(2, 10);
  EXPECT_EQ(c.choose(draft_after(4, 15)), 3);
  c.count_step(4, 10.5);
  EXPECT_EQ(c.choose(draft_after(4, 15)), 7);
  EXPECT_EQ(c.choose(draft_after(4, 2)), 2);
  EXPECT_EQ(c.choose(draft_after(4, 0)), 0);
  EXPECT_LT(c.acceptance(single(1)), 0.05);
  EXPECT_GT(c.acceptance(single(4)), 0.95);
}

// The same run is worth more where places agree.
TEST(DraftController, PlacesThatDisagreeSpeakAgainstAGuess) {
  const Evidence contested{.match_tokens = 2, .places = 5, .share = 0.3}, agreed{.match_tokens = 2, .places = 5, .share = 1};
  DraftController c;
  EXPECT_LT(c.acceptance(contested), c.acceptance(agreed));
  for (int i = 0; i < 100; ++i) {
    c.count_guess(contested, i % 10 == 0);
    c.count_guess(agreed, true);
  }
  for (int64_t rows = 1; rows <= 8; ++rows) c.count_step(rows, 10 * (1 + 0.2 * static_cast<double>(rows - 1)));
  c.count_step(1, 10);
  EXPECT_EQ(c.choose(std::vector{contested}), 0);
  // Checked as far as they are sure, and no further.
  EXPECT_EQ(c.choose(std::vector{agreed, agreed, contested, agreed}), 2);
}

// One step of `rows` rows costs 1 + slope * (rows - 1).
void run_steps(DraftController& c, double slope, int64_t match, double truth, int steps, int64_t* checked) {
  uint32_t state = 5;
  for (int i = 0; i < steps; ++i) {
    const int64_t k = c.choose(draft_after(match, 8));
    *checked += k;
    c.count_step(k + 1, 10 * (1 + slope * static_cast<double>(k)));
    for (int64_t j = 0; j <= k; ++j) {
      state = state * 1664525 + 1013904223;
      const bool hit = (state >> 8) * 0x1.0p-24 < truth;
      c.count_guess(single(match), hit);
      if (!hit) break;
    }
  }
}

TEST(DraftController, StopsWhereRowsCostAsMuchAsSteps) {
  DraftController c;
  int64_t first = 0, later = 0;
  run_steps(c, 1.0, 3, 0.8, 20, &first);
  run_steps(c, 1.0, 3, 0.8, 1000, &later);
  EXPECT_GT(first, 0);
  // Doubts at 16, 32, 64, ... steps.
  EXPECT_LE(later, 8 * 8);
  EXPECT_GT(later, 0);
  // The same guesses where further rows are nearly free.
  DraftController cheap;
  int64_t checked = 0;
  run_steps(cheap, 0.05, 3, 0.8, 1000, &checked);
  EXPECT_GT(checked, 3000);
}

TEST(DraftController, StopsWhereGuessesAreBadAndGoesOnWhenTheyGetGood) {
  DraftController c;
  int64_t bad = 0, good = 0;
  run_steps(c, 0.2, 2, 0.02, 50, &bad);
  bad = 0;
  run_steps(c, 0.2, 2, 0.02, 500, &bad);
  EXPECT_LE(bad, 10);
  run_steps(c, 0.2, 2, 0.95, 60, &good);
  good = 0;
  run_steps(c, 0.2, 2, 0.95, 100, &good);
  EXPECT_GT(good, 200);
}

TEST(DraftController, ADisturbedMeasurementIsForgiven) {
  DraftController c;
  for (int i = 0; i < 20; ++i) c.count_step(1, 10);
  for (int64_t rows = 2; rows <= 9; ++rows) c.count_step(rows, 500);
  EXPECT_EQ(c.choose(draft_after(3, 8)), 0);
  int64_t checked = 0;
  run_steps(c, 0.05, 3, 0.9, 2000, &checked);
  EXPECT_GT(checked, 4000);
  EXPECT_LE(c.cost(4), 1.5);
}

TEST(DraftController, TheCostOfOneRowStaysMeasured) {
  DraftController c;
  int singles = 0;
  for (int i = 0; i < 650; ++i) {
    const int64_t k = c.choose(draft_after(16, 8));
    singles += k == 0;
    c.count_step(k + 1, 10);
    c.count_guess(single(16), true);
    if (i == 0) c.count_step(1, 10);
  }
  EXPECT_GE(singles, 9);
  EXPECT_LE(singles, 12);
}

// Rows of other answers in every step: a guess must pay for their waiting, too.
TEST(DraftController, AGuessPaysForAllAnswersOfAStep) {
  // Rows are nearly free: guesses pay alone and in company. Rows cost as much as steps: they never do.
  for (const double slope : {0.01, 1.0}) {
    for (const int64_t others : {0, 1, 3}) {
      DraftController c;
      int64_t checked = 0;
      uint32_t state = 5;
      for (int i = 0; i < 600; ++i) {
        const int64_t k = c.choose(draft_after(3, 8), others);
        if (i >= 100) checked += k;
        c.count_step(k + 1, 10 * (1 + slope * static_cast<double>(k + others)), others);
        for (int64_t j = 0; j <= k; ++j) {
          state = state * 1664525 + 1013904223;
          const bool hit = (state >> 8) * 0x1.0p-24 < 0.8;
          c.count_guess(single(3), hit);
          if (!hit) break;
        }
      }
      if (slope < 0.5) {
        EXPECT_GT(checked, 1000) << others;
      } else {
        EXPECT_LE(checked, 60) << others;
      }
    }
  }
  // In between: four tokens for 1.6 times the time pay an answer alone. In the company of seven they pay as long as what
  // they add to the step is less than their share of its tokens.
  DraftController c;
  for (int i = 0; i < 100; ++i) c.count_guess(single(3), true);
  for (int64_t rows = 1; rows <= 16; ++rows) c.count_step(rows, 10 * (1 + 0.2 * static_cast<double>(rows - 1)));
  c.count_step(1, 10);
  EXPECT_GT(c.choose(draft_after(3, 3), 0), 0);
  EXPECT_GT(c.choose(draft_after(3, 3), 7), 0);  // 11 tokens for 3.0, against 8 for 2.4
  DraftController bad;
  for (int i = 0; i < 100; ++i) bad.count_guess(single(3), i % 3 == 0);
  for (int64_t rows = 1; rows <= 16; ++rows) bad.count_step(rows, 10 * (1 + 0.2 * static_cast<double>(rows - 1)));
  bad.count_step(1, 10);
  EXPECT_GT(bad.choose(draft_after(3, 3), 0), 0);   // 1.33 tokens for 1.2
  EXPECT_EQ(bad.choose(draft_after(3, 3), 12), 0);  // 13.33 for 3.6, against 13 for 3.4
}

// Steps in company tell nothing about a step alone, yet guesses go on: plain steps count, not single rows.
TEST(DraftController, AnAnswerThatIsNeverAloneStillGuesses) {
  DraftController c;
  int64_t checked = 0, plain = 0;
  for (int i = 0; i < 400; ++i) {
    const int64_t k = c.choose(draft_after(16, 4), 3);
    checked += k;
    plain += k == 0;
    c.count_step(k + 1, 10 + 0.1 * static_cast<double>(k), 3);
    c.count_guess(single(16), true);
  }
  EXPECT_GT(checked, 1000);
  EXPECT_GE(plain, 5);
  EXPECT_LE(plain, 20);
}

TEST(Speculation, NumbersOutOfRangeAreRefused) {
  using Mode = Speculation::Mode;
  EXPECT_NO_THROW(validate({Mode::kFixed, 1}));
  EXPECT_NO_THROW(validate({Mode::kFixed, 15}));
  EXPECT_THROW(validate({Mode::kFixed, 0}), Error);
  EXPECT_THROW(validate({Mode::kFixed, 16}), Error);
}

}  // namespace
}  // namespace qvl::generate
