#include "qvl/text/unicode.h"

#include <gtest/gtest.h>

#include "qvl/text/nfc.h"

namespace qvl::text {
namespace {

std::string sanitized(std::string_view s) {
  std::string out;
  append_sanitized(s, out);
  return out;
}

std::string nfc(std::string_view s) {
  std::string buffer;
  return std::string(normalize_nfc(s, buffer));
}

TEST(Utf8, EveryCodePointSurvivesTheRoundTrip) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string s;
    append_utf8(c, s);
    const Utf8Unit unit = next_utf8_unit(s);
    ASSERT_EQ(unit.kind, Utf8Unit::Kind::kValid) << std::hex << static_cast<uint32_t>(c);
    ASSERT_EQ(unit.length_bytes, static_cast<int>(s.size()));
    ASSERT_EQ(decode_valid(s.data()).code_point, c);
    // Cut anywhere, it is incomplete and not invalid.
    for (size_t n = 1; n < s.size(); ++n) {
      const Utf8Unit cut = next_utf8_unit(std::string_view(s).substr(0, n));
      ASSERT_EQ(cut.kind, Utf8Unit::Kind::kIncomplete);
      ASSERT_EQ(cut.length_bytes, static_cast<int>(n));
    }
  }
}

TEST(Utf8, MaximalInvalidPartsBecomeOneReplacementEach) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(sanitized("a\x80z"), "a" + r + "z");
  EXPECT_EQ(sanitized("\xC0\x80"), r + r);  // overlong: neither byte can start anything
  EXPECT_EQ(sanitized("\xE0\x80\x80"), r + r + r);
  EXPECT_EQ(sanitized("\xED\xA0\x80"), r + r + r);          // a surrogate
  EXPECT_EQ(sanitized("\xF4\x90\x80\x80"), r + r + r + r);  // above U+10FFFF
  EXPECT_EQ(sanitized("\xF0\x9F\x98"
                      "a"),
            r + "a");  // three good bytes of four
  EXPECT_EQ(sanitized("\xF0\x9F\x98"), r);
  EXPECT_EQ(sanitized("\xE2\x82\xE2\x82\xAC"), r + "\xE2\x82\xAC");
  EXPECT_EQ(sanitized("\xFF\xFE"), r + r);
  EXPECT_EQ(sanitized("0123456789abcdef\xF1"), "0123456789abcdef" + r);
  EXPECT_FALSE(is_valid_utf8("0123456789abcdef\xF1"));
  EXPECT_TRUE(
      is_valid_utf8("0123456789abcdef\xF0\x9F\x98\x80"
                    "0123456789"));
  EXPECT_TRUE(is_valid_utf8(""));
}

TEST(CharTable, KnowsTheClassesOfThePattern) {
  const CharTable& t = CharTable::get();
  for (const char32_t c :
       {U'a', U'Z', U'\u00E9', U'\u4E2D', U'\uD55C', U'\u0E01', U'\U0002A6DF', U'\U00016D40'}) {
    EXPECT_EQ(t.char_class(c), CharClass::kLetter) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {U'0', U'\u00BD', U'\u0663', U'\u216B', U'\U0001D7D8', U'\u3007'}) {
    EXPECT_EQ(t.char_class(c), CharClass::kNumber) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {U'\t', U'\n', U'\v', U'\f', U'\r', U' ', U'\u0085', U'\u00A0', U'\u1680',
                           U'\u2000', U'\u200A', U'\u2028', U'\u2029', U'\u202F', U'\u205F', U'\u3000'}) {
    EXPECT_EQ(t.char_class(c), CharClass::kWhiteSpace) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {U'_', U'\u001C', U'\u200B', U'\u180E', U'\uFEFF', U'\u0301', U'\u20E3',
                           U'\U0001F600', U'\U000E0100', U'\U0010FFFF', U'\u0378'}) {
    EXPECT_EQ(t.char_class(c), CharClass::kOther) << static_cast<uint32_t>(c);
  }
}

TEST(Nfc, LeavesNormalTextWhereItIs) {
  std::string buffer;
  for (const std::string_view s : {"", "plain ascii, quite long so that the fast path runs",
                                   "caf\u00E9 \u4E2D\u6587 \uD55C\uAE00 \U0001F600 \u0416"}) {
    const std::string_view out = normalize_nfc(s, buffer);
    EXPECT_EQ(out.data(), s.data());
    EXPECT_EQ(out, s);
  }
}

TEST(Nfc, ComposesDecomposesAndReorders) {
  EXPECT_EQ(nfc("e\u0301"), "\u00E9");
  EXPECT_EQ(nfc("xyz e\u0301 xyz e\u0301"), "xyz \u00E9 xyz \u00E9");
  EXPECT_EQ(nfc("\u212B\u2126\u212A"), "\u00C5\u03A9K");  // singletons
  EXPECT_EQ(nfc("q\u0307\u0323"), "q\u0323\u0307");       // order by class
  EXPECT_EQ(nfc("\u1E9B\u0323"), "\u1E9B\u0323");
  EXPECT_EQ(nfc("\u00E9\u0323"), "\u1EB9\u0301");  // splits, sorts, joins anew
  EXPECT_EQ(nfc("a\u0315\u0300\u05AE\u0300\u0062"),
            "\u00E0\u05AE\u0300\u0315\u0062");  // NormalizationTest.txt
  EXPECT_EQ(nfc("\u0301a"), "\u0301a");         // nothing to join with
  EXPECT_EQ(nfc("a\u0327\u0301"), "\u00E1\u0327");
  EXPECT_EQ(nfc("\u0344"), "\u0308\u0301");  // never composed again
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093C");
  EXPECT_EQ(nfc("\uF900"), "\u8C48");
  EXPECT_EQ(nfc("\U0002F800"), "\u4E3D");
  EXPECT_EQ(nfc("\u0DD9\u0DCF\u0DCA"), "\u0DDD");
  EXPECT_EQ(nfc("\U00011099\U000110BA"), "\U0001109A");
}

TEST(Nfc, HangulIsComposedByRule) {
  EXPECT_EQ(nfc("\u1112\u1161\u11AB"), "\uD55C");
  EXPECT_EQ(nfc("\uD558\u11AB"), "\uD55C");
  EXPECT_EQ(nfc("\uD55C\u11AB"), "\uD55C\u11AB");  // has a final already
  EXPECT_EQ(nfc("\u1112\u1161\u11A7"), "\uD558\u11A7");
  EXPECT_EQ(nfc("\u1161\u11AB"), "\u1161\u11AB");
}

TEST(Nfc, ManyMarksStayFastAndStable) {
  std::string s = "a";
  for (int i = 0; i < 50000; ++i) s += i % 2 ? "\u0301" : "\u0323";
  const std::string once = nfc(s);
  EXPECT_EQ(once.substr(0, 5), "\u1EA1\u0323");
  EXPECT_EQ(nfc(once), once);
}

}  // namespace
}  // namespace qvl::text
