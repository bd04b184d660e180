#include "qvl/generate/stop_strings.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

struct Shown {
  std::string text;
  bool stopped;
};

// Feeds `text` in pieces of `size` bytes, as tokens would bring it.
Shown feed(std::vector<std::string> stops, std::string_view text, size_t size) {
  StopStrings matcher(std::move(stops));
  Shown shown;
  for (size_t i = 0; i < text.size() && !matcher.stopped(); i += size)
    shown.text += matcher.push(text.substr(i, size));
  shown.stopped = matcher.stopped();
  shown.text += matcher.flush();
  return shown;
}

TEST(StopStrings, FindsThemAtEverySplit) {
  for (size_t size = 1; size <= 20; ++size) {
    SCOPED_TRACE(size);
    const Shown a = feed({"END"}, "one ENEND two", size);
    EXPECT_EQ(a.text, "one EN");
    EXPECT_TRUE(a.stopped);
    const Shown b = feed({"END"}, "one EN two E", size);
    EXPECT_EQ(b.text, "one EN two E");
    EXPECT_FALSE(b.stopped);
    const Shown c = feed({"aab"}, "aaaab!", size);
    EXPECT_EQ(c.text, "aa");
    const Shown d = feed({"\n\n", "</s>"}, "x\n</s>\n\n", size);
    EXPECT_EQ(d.text, "x\n");
  }
}

TEST(StopStrings, TheEarliestOfSeveralWins) {
  EXPECT_EQ(feed({"cd", "bcde"}, "abcdef", 6).text, "a");
  EXPECT_EQ(feed({"x"}, "x", 1).text, "");
  EXPECT_TRUE(feed({"x"}, "x", 1).stopped);
}

TEST(StopStrings, HoldsBackOnlyWhatCouldBecomeOne) {
  StopStrings matcher({"STOP"});
  EXPECT_EQ(matcher.push("abc"), "abc");
  EXPECT_EQ(matcher.push("dST"), "d");
  EXPECT_EQ(matcher.push("Oops"), "STOops");
  EXPECT_EQ(matcher.push("STO"), "");
  EXPECT_EQ(matcher.push("P and more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopStrings, NoneMeansEverythingPasses) {
  StopStrings matcher({});
  EXPECT_EQ(matcher.push("abc"), "abc");
  EXPECT_EQ(matcher.flush(), "");
  EXPECT_THROW(StopStrings({""}), Error);
}

TEST(StopStrings, TellsWhichOneItWas) {
  StopStrings matcher({"three", "two", "two three"});
  matcher.push("one tw");
  EXPECT_EQ(matcher.found(), "");
  matcher.push("o three");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.found(), "two");
}

}  // namespace
}  // namespace qvl::generate
