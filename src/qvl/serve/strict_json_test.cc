#include "qvl/serve/strict_json.h"

#include <gtest/gtest.h>

#include <string>

#include "qvl/serve/api_error.h"

namespace qvl::serve {
namespace {

// "code param" of the refusal; "" when it was taken.
std::string refusal(std::string_view body, const JsonLimits& limits = {}) {
  try {
    parse_strict_json(body, limits);
  } catch (const ApiError& e) {
    EXPECT_EQ(e.status, 400);
    return e.code + " " + e.param;
  }
  return "";
}

TEST(StrictJson, TakesWhatIsJsonAndKeepsIt) {
  const std::string text = R"({"b":[1,-2,3.5,1e3,18446744073709551615,true,false,null,"é\n😀",[],{}],"a":{"x":{"y":[{"z":""}]}}})";
  const Json value = parse_strict_json(text);
  EXPECT_EQ(value, Json::parse(text));
  EXPECT_EQ(value.begin().key(), "b");  // the order of keys is kept
  EXPECT_EQ(value.dump(), Json::parse(text).dump());
  EXPECT_EQ(parse_strict_json("\"\\ud83d\\ude00\""), "😀");
  EXPECT_EQ(parse_strict_json(" 5 "), 5);
}

TEST(StrictJson, RefusesWhatIsNot) {
  for (const char* text : {"", "{", "[1,]", "{\"a\":1,}", "{a:1}", "nul", "1 2", "NaN", "Infinity", "'a'", "\"a", "\"\\ud83d\"", "\"\\ude00\"",
                           "\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "\"\x01\"", "1e999", "-1e999", "01", "+1", "// x\n1", "[1]]"}) {
    EXPECT_EQ(refusal(text), "invalid_json ") << text;
  }
}

TEST(StrictJson, RefusesAKeyThatStandsTwiceByItsPlace) {
  EXPECT_EQ(refusal(R"({"a":1,"a":1})"), "duplicate_key a");
  EXPECT_EQ(refusal(R"({"m":[{"x":1},{"c":{"u":1,"v":2,"u":3}}]})"), "duplicate_key m[1].c.u");
  EXPECT_EQ(refusal(R"([[{"a":1,"\u0061":2}]])"), "duplicate_key [0][0].a");
  EXPECT_EQ(refusal(R"({"a":{"b":1},"b":{"b":1},"c":[{"b":1},{"b":1}]})"), "");
}

TEST(StrictJson, DepthAndNumberAreBounded) {
  EXPECT_EQ(refusal(std::string(64, '[') + std::string(64, ']')), "");
  EXPECT_EQ(refusal(std::string(65, '[') + std::string(65, ']')), "invalid_json ");
  EXPECT_EQ(refusal(std::string(1 << 22, '[')), "invalid_json ");
  EXPECT_EQ(refusal("[1,2,3]", {.max_depth = 64, .max_values = 4}), "");
  EXPECT_EQ(refusal("[1,2,3]", {.max_depth = 64, .max_values = 3}), "invalid_json ");
}

TEST(StrictJson, ManyKeysTakeNoSquareOfTime) {
  std::string text = "{";
  for (int i = 0; i < 300000; ++i) text += (i == 0 ? "\"k" : ",\"k") + std::to_string(i) + "\":0";
  EXPECT_EQ(refusal(text + "}"), "");
}

TEST(StrictJson, TheMessageSaysWhereButNotAllThatWasRead) {
  try {
    parse_strict_json("{\"a\": \"" + std::string(100000, 'x') + "\x01\"}");
    FAIL();
  } catch (const ApiError& e) {
    EXPECT_LT(std::string(e.what()).size(), 400u);
    EXPECT_NE(std::string(e.what()).find("100008"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace qvl::serve
