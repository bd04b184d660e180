#include "qvl/generate/json_span.h"

#include <gtest/gtest.h>

#include <string>

#include "qvl/base/json.h"

namespace qvl::generate {
namespace {

TEST(JsonSpan, FindsTheEndOfAWholeValue) {
  EXPECT_EQ(json_value_end(R"({"a": [1, 2.5e-3, "x\"}", null, true]} tail)", 0), 38u);
  EXPECT_EQ(json_value_end("see [] here", 4), 6u);
  EXPECT_EQ(json_value_end("{}", 0), 2u);
  EXPECT_EQ(json_value_end("-0.5,", 0), 4u);
  EXPECT_EQ(json_value_end("\"\\u00e9\\n\"", 0), 10u);
}

TEST(JsonSpan, RefusesWhatIsCutOffOrBroken) {
  for (const char* text : {"{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "[1,", "[1", "\"abc", "\"\\", "\"\\u12", "{a:1}",
                           "{'a':1}", "[1,]", "{\"a\":1,}", "01x]", "tru", "-", "1.", "1e", "+1", "", "\"\\x\"", "\"a\nb\""}) {
    const std::optional<size_t> end = json_value_end(text, 0);
    // A number may end before what makes the rest wrong: "01x]" is 0.
    EXPECT_EQ(end.has_value(), std::string(text) == "01x]") << text;
  }
}

TEST(JsonSpan, AgreesWithAFullParserOnEveryBeginning) {
  const std::string whole = R"({"bbox_2d": [12, 3.5, -4e2, 0], "label": "a \"b\" \u00e9 é", "x": {"y": [[], {}, [null, false]]}})";
  for (size_t n = 0; n <= whole.size(); ++n) {
    const std::string part = whole.substr(0, n);
    EXPECT_EQ(json_value_end(part, 0).has_value(), Json::accept(part)) << part;
  }
}

TEST(JsonSpan, TellsCutOffFromBroken) {
  const std::string whole = R"({"a": [1, -2.5e+3, "x\"\u00e9"], "b": {"c": [true, false, null, {}, []]}})";
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_EQ(scan_json_value(whole.substr(0, n), 0).state, JsonScan::State::kCutOff) << whole.substr(0, n);
  }
  for (const char* text : {"{a", "{\"a\" 1", "[1 2", "[1,]", "\"\\x", "\"\n", "tru3", "-x", "1.x", "}", "{\"a\": nul]", "[1}"}) {
    EXPECT_EQ(scan_json_value(text, 0).state, JsonScan::State::kBroken) << text;
  }
}

TEST(JsonSpan, DepthIsBounded) {
  EXPECT_TRUE(json_value_end(std::string(64, '[') + std::string(64, ']'), 0).has_value());
  EXPECT_FALSE(json_value_end(std::string(65, '[') + std::string(65, ']'), 0).has_value());
  EXPECT_FALSE(json_value_end(std::string(1 << 20, '['), 0).has_value());
}

TEST(JsonSpan, MembersAreAsWritten) {
  const auto members = json_members(" {\"name\": \"f\", \"arguments\": {\"a\":  1.0}}\n");
  ASSERT_TRUE(members.has_value());
  ASSERT_EQ(members->size(), 2u);
  EXPECT_EQ((*members)[0].first, "name");
  EXPECT_EQ((*members)[0].second, "\"f\"");
  EXPECT_EQ((*members)[1].second, "{\"a\":  1.0}");
  EXPECT_FALSE(json_members("{} x").has_value());
  EXPECT_FALSE(json_members("[1]").has_value());
  EXPECT_TRUE(json_members("{}")->empty());
}

}  // namespace
}  // namespace qvl::generate
