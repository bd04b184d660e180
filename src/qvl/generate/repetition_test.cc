#include "qvl/generate/repetition.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

std::optional<Repetition> feed(const std::vector<int32_t>& ids, const RepetitionLimits& limits = {}) {
  RepetitionGuard guard(limits);
  for (const int32_t id : ids) {
    if (const auto found = guard.push(id)) return found;
  }
  return std::nullopt;
}

// One id a character: the finest tokens a text can have, so the most rounds.
std::vector<int32_t> characters(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string times(const std::string& piece, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += piece;
  return out;
}

std::vector<int32_t> random_ids(std::mt19937& rng, int64_t n, int32_t distinct) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng() % static_cast<uint32_t>(distinct)));
  return ids;
}

TEST(RepetitionGuard, KeepsGenuineRepeats) {
  const std::map<std::string, std::string> samples = {
      {"a million", "The price is 1000000 and not 10000000."},
      {"a googol", "1" + times("0", 100)},
      {"digits of a serial number", times("77 ", 30)},
      {"77 77 77", "It says 77 77 77."},
      {"laughter", times("ha ", 60)},
      {"a long no", "N" + times("o", 300) + "!"},
      {"ruler", times("-", 120) + "\n" + times("=", 200) + "\n" + times("-", 120)},
      {"dot leaders", times("Chapter" + times(".", 90) + " 1\n", 5)},
      {"equal rows", "| a | b |\n|---|---|\n" + times("| 0 | 0 |\n", 40)},
      {"columns of a table", times("|---", 60) + "|"},
      {"empty rows", times("|   |   |   |\n", 32)},
      {"equal numbers", "[" + times("0, ", 120) + "0]"},
      {"equal floats", "[" + times("0.0, ", 90) + "0.0]"},
      {"refrain", times("Row, row, row your boat, gently down the stream.\n", 8)},
      {"base64 of zeros", times("A", 400) + "=="},
      {"white space", times(" ", 300) + "x"},
      {"counting", [] {
         std::string s;
         for (int i = 0; i < 2000; ++i) s += "item " + std::to_string(i) + ", ";
         return s;
       }()},
      {"form", times("Name: ______ Date: ______\n", 18)},
      {"csv", "a,b,c\n" + times("1,1,1\n", 80)},
      {"nested brackets", times("[", 200) + times("]", 200)},
      {"genome", times("ATATATAT", 50)},
  };
  for (const auto& [name, text] : samples) EXPECT_FALSE(feed(characters(text)).has_value()) << name;
}

TEST(RepetitionGuard, KeepsRandomText) {
  std::mt19937 rng(1);
  for (const int32_t distinct : {2, 3, 10, 1000}) {
    EXPECT_FALSE(feed(random_ids(rng, 20000, distinct)).has_value()) << distinct;
  }
}

TEST(RepetitionGuard, FindsLoopsOfEveryPeriod) {
  std::mt19937 rng(2);
  for (int64_t period = 1; period <= 128; ++period) {
    std::vector<int32_t> unit;
    // Distinct ids, so that no shorter period explains the loop.
    for (int64_t i = 0; i < period; ++i) unit.push_back(static_cast<int32_t>(1000 + i));
    std::vector<int32_t> ids = random_ids(rng, 37, 500);
    const auto lead = static_cast<int64_t>(ids.size());
    while (static_cast<int64_t>(ids.size()) < 4096) ids.insert(ids.end(), unit.begin(), unit.end());
    const std::optional<Repetition> found = feed(ids);
    ASSERT_TRUE(found.has_value()) << period;
    EXPECT_EQ(found->period, period);
    EXPECT_EQ(found->begin, lead) << period;
    // As soon as the limits say, not later.
    EXPECT_EQ(found->tokens, std::max<int64_t>(512, 10 * period)) << period;
    EXPECT_EQ(found->sensible_tokens(), lead + period);
    EXPECT_GE(found->rounds(), 10);
  }
}

TEST(RepetitionGuard, NamesTheShortestPeriodOfWordsThatRepeatInside) {
  // "ab ab ab ab c" is a unit of 13 with repeats inside.
  const std::optional<Repetition> found = feed(characters(times("ab ab ab ab c", 200)));
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->period, 13);
  const std::optional<Repetition> twice = feed(characters(times("abab", 300)));
  ASSERT_TRUE(twice.has_value());
  EXPECT_EQ(twice->period, 2);
}

TEST(RepetitionGuard, FindsLoopsThatModelsRunInto) {
  for (const std::string& unit :
       {std::string("The image shows a cat. "), std::string("0"), std::string("\n"), std::string("I see. I see. You see. "),
        std::string("| 12 | 13 | 14 |\n"), std::string("{\"a\": 1}, "),
        std::string("And then the man went to the house and opened the door and looked inside. ")}) {
    const std::optional<Repetition> found = feed(characters("Some text first: " + times(unit, 1200)));
    ASSERT_TRUE(found.has_value()) << unit;
    EXPECT_EQ(found->period, static_cast<int64_t>(unit.size())) << unit;
  }
}

TEST(RepetitionGuard, AChangeStartsTheCountAnew) {
  std::vector<int32_t> ids;
  for (int row = 0; row < 200; ++row) {
    for (int i = 0; i < 60; ++i) ids.push_back(5);
    ids.push_back(100 + row);
  }
  EXPECT_FALSE(feed(ids).has_value());
}

TEST(RepetitionGuard, LongerPeriodsThanTheLimitAreNotLookedAt) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 8000; ++i) ids.push_back(i % 200);
  EXPECT_FALSE(feed(ids).has_value());
  RepetitionLimits wide;
  wide.max_period = RepetitionGuard::kMaxPeriod;
  const auto found = feed(ids, wide);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->period, 200);
}

TEST(RepetitionGuard, CanBeSwitchedOffAndRefusesNonsense) {
  RepetitionLimits off;
  off.max_period = 0;
  EXPECT_FALSE(feed(std::vector<int32_t>(100000, 7), off).has_value());
  EXPECT_THROW(RepetitionGuard({.min_tokens = 0}), Error);
  EXPECT_THROW(RepetitionGuard({.min_rounds = 1}), Error);
  EXPECT_THROW(RepetitionGuard({.max_period = 257}), Error);
  EXPECT_THROW(RepetitionGuard({.max_period = -1}), Error);
}

}  // namespace
}  // namespace qvl::generate
