#include "qvl/serve/tool_calls.h"

#include <gtest/gtest.h>

#include <random>

#include "qvl/base/json.h"

namespace qvl::serve {
namespace {

using Kind = AnswerEvent::Kind;
using Reasoning = SplitterOptions::Reasoning;

struct Split {
  std::string reasoning;
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;
  bool operator==(const Split&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Split& s) {
  out << "reasoning=[" << s.reasoning << "] content=[" << s.content << "]";
  for (const auto& [name, arguments] : s.calls) out << " " << name << "(" << arguments << ")";
  return out;
}

void add(Split& split, const std::vector<AnswerEvent>& events) {
  for (const AnswerEvent& e : events) {
    EXPECT_FALSE(e.text.empty());
    switch (e.kind) {
      case Kind::kReasoning:
        split.reasoning += e.text;
        break;
      case Kind::kContent:
        split.content += e.text;
        break;
      case Kind::kToolCall:
        EXPECT_EQ(e.index, static_cast<int64_t>(split.calls.size()));
        split.calls.emplace_back(e.name, e.text);
    }
  }
}

Split split_in(const std::string& text, const SplitterOptions& options, size_t piece) {
  AnswerSplitter splitter(options);
  Split out;
  for (size_t at = 0; at < text.size(); at += piece) add(out, splitter.push(text.substr(at, piece)));
  add(out, splitter.finish());
  return out;
}

// The same whatever the pieces are.
Split split(const std::string& text, const SplitterOptions& options) {
  const Split whole = split_in(text, options, std::max<size_t>(text.size(), 1));
  for (const size_t piece : {1, 2, 3, 5, 7, 11}) EXPECT_EQ(split_in(text, options, piece), whole) << piece << " bytes a piece: " << text;
  return whole;
}

const SplitterOptions kTools = {.reasoning = Reasoning::kNone, .tools = {"get", "set"}};
const SplitterOptions kBegun = {.reasoning = Reasoning::kBegun, .tools = {}};
const SplitterOptions kMayBegin = {.reasoning = Reasoning::kMayBegin, .tools = {}};

std::string call(const std::string& json) {
  return "<tool_call>\n" + json + "\n</tool_call>";
}

TEST(AnswerSplitter, OrdinaryTextPassesAtOnce) {
  AnswerSplitter plain({});
  EXPECT_EQ(plain.push("a < b\n")[0].text, "a < b\n");
  AnswerSplitter tools(kTools);
  EXPECT_EQ(tools.push("Hello")[0].text, "Hello");
  EXPECT_TRUE(tools.push("\n<tool").empty());  // may become a call
  EXPECT_EQ(tools.push("s> are good")[0].text, "\n<tools> are good");
}

TEST(AnswerSplitter, ACallInTheTemplatesForm) {
  EXPECT_EQ(split(call(R"({"name": "get", "arguments": {"city": "Pune", "n": 1.0}})"), kTools), (Split{"", "", {{"get", R"({"city": "Pune", "n": 1.0})"}}}));
  EXPECT_EQ(split("Let me look.\n" + call(R"({"name": "get", "arguments": {}})"), kTools), (Split{"", "Let me look.", {{"get", "{}"}}}));
}

TEST(AnswerSplitter, SeveralCallsAndTextBehind) {
  const std::string two = call(R"({"name": "get", "arguments": {"a": 1}})") + "\n" + call(R"({"arguments": {"b": "</tool_call>"}, "name": "set"})");
  EXPECT_EQ(split(two + "\n", kTools), (Split{"", "", {{"get", R"({"a": 1})"}, {"set", R"({"b": "</tool_call>"})"}}}));
  EXPECT_EQ(split(two + "\nDone.", kTools), (Split{"", "Done.", {{"get", R"({"a": 1})"}, {"set", R"({"b": "</tool_call>"})"}}}));
}

TEST(AnswerSplitter, ArgumentsMayBeAStringThatHoldsAnObject) {
  EXPECT_EQ(split(call(R"({"name": "get", "arguments": "{\"a\": 1}"})"), kTools), (Split{"", "", {{"get", R"({"a": 1})"}}}));
}

TEST(AnswerSplitter, MalformedCallsComeBackAsTheyWere) {
  for (const std::string& json : {std::string("{\"name\": \"get\", \"arguments\": {\"a\": }}"), std::string("{\"name\": \"get\"}"), std::string("{\"name\": 5, \"arguments\": {}}"),
                                  std::string("{\"name\": \"unknown\", \"arguments\": {}}"), std::string("{\"name\": \"get\", \"arguments\": [1]}"),
                                  std::string("{\"name\": \"get\", \"arguments\": \"text\"}"), std::string("{\"name\": \"get\", \"arguments\": {}, \"id\": 1}"),
                                  std::string("{\"name\": \"get\", \"arguments\": {}} and more"), std::string("get(1)"), std::string(""),
                                  std::string("{\"name\": \"get\", \"arguments\": {\"a\": \"\\ud800\"}}"), std::string("{\"name\": \"get\", \"name\": \"set\"}"),
                                  std::string("{\"name\": \"get\", \"arguments\": {\"a\": \"x}}")}) {
    const std::string text = "Text. \n" + call(json) + "\n tail";
    EXPECT_EQ(split(text, kTools), (Split{"", text, {}})) << json;
  }
}

TEST(AnswerSplitter, AGoodCallBehindABadOne) {
  const std::string bad = call("{\"name\": }");
  EXPECT_EQ(split(bad + "\n" + call(R"({"name": "get", "arguments": {}})"), kTools), (Split{"", bad, {{"get", "{}"}}}));
  // And white space between calls stays when the second is none.
  EXPECT_EQ(split(call(R"({"name": "get", "arguments": {}})") + "\n" + bad, kTools), (Split{"", "\n" + bad, {{"get", "{}"}}}));
}

TEST(AnswerSplitter, AnAnswerThatEndsInACall) {
  // The end token came instead of the closing tag: nothing is missing.
  for (const char* tail : {"", "\n", "\n</tool", "\n</tool_call"}) {
    EXPECT_EQ(split("<tool_call>\n{\"name\": \"get\", \"arguments\": {}}" + std::string(tail), kTools), (Split{"", "", {{"get", "{}"}}})) << tail;
  }
  // Cut off inside the JSON: text.
  const std::string cut = "Well\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": \"</tool_call>";
  EXPECT_EQ(split(cut, kTools), (Split{"", cut, {}}));
  EXPECT_EQ(split("a <tool_c", kTools), (Split{"", "a <tool_c", {}}));
  EXPECT_EQ(split("a \n\n", kTools), (Split{"", "a \n\n", {}}));
}

TEST(AnswerSplitter, WithoutToolsTagsAreText) {
  const std::string text = call(R"({"name": "get", "arguments": {}})");
  EXPECT_EQ(split(text, {}), (Split{"", text, {}}));
}

TEST(AnswerSplitter, OneCallWhenNoneMayBeParallel) {
  SplitterOptions one = kTools;
  one.max_calls = 1;
  const std::string get = call(R"({"name": "get", "arguments": {}})");
  EXPECT_EQ(split(get + "\n" + get + "\nmore", one), (Split{"", "", {{"get", "{}"}}}));
  AnswerSplitter splitter(one);
  splitter.push(get.substr(0, get.size() - 1));
  EXPECT_FALSE(splitter.done());
  splitter.push(">");
  EXPECT_TRUE(splitter.done());
  EXPECT_TRUE(splitter.push("x").empty());
  EXPECT_TRUE(splitter.finish().empty());
}

TEST(AnswerSplitter, ReasoningThatThePromptBegan) {
  EXPECT_EQ(split("Hm.\nYes.\n</think>\n\nFour.", kBegun), (Split{"Hm.\nYes.", "Four.", {}}));
  EXPECT_EQ(split("\nHm.</think>Four.", kBegun), (Split{"Hm.", "Four.", {}}));
  EXPECT_EQ(split("</think>\n\n{\"a\": 1}", kBegun), (Split{"", "{\"a\": 1}", {}}));
  EXPECT_EQ(split("never closed </thin", kBegun), (Split{"never closed </thin", "", {}}));
  EXPECT_EQ(split("a </think> b </think> c", kBegun), (Split{"a ", " b </think> c", {}}));
  AnswerSplitter splitter(kBegun);
  EXPECT_TRUE(splitter.in_reasoning());
  EXPECT_EQ(splitter.push("one\n")[0].text, "one");  // the newline may be the template's
  EXPECT_EQ(splitter.push("two")[0].text, "\ntwo");
  splitter.push("</think>");
  EXPECT_FALSE(splitter.in_reasoning());
}

TEST(AnswerSplitter, ReasoningThatTheAnswerBegins) {
  EXPECT_EQ(split("<think>\nHm.\n</think>\n\nFour.", kMayBegin), (Split{"Hm.", "Four.", {}}));
  EXPECT_EQ(split("\n <think>Hm.</think>Four.", kMayBegin), (Split{"Hm.", "Four.", {}}));
  EXPECT_EQ(split("I <think> so.</think>", kMayBegin), (Split{"", "I <think> so.</think>", {}}));
  EXPECT_EQ(split(" <thin", kMayBegin), (Split{"", " <thin", {}}));
  EXPECT_EQ(split("", kMayBegin), (Split{}));
}

TEST(AnswerSplitter, JsonNeverLandsInReasoning) {
  const std::string json = "{\"text\": \"<think>x</think>\"}";
  EXPECT_EQ(split(json, {}), (Split{"", json, {}}));
  EXPECT_EQ(split(json, kMayBegin), (Split{"", json, {}}));
}

TEST(AnswerSplitter, ReasoningAndThenACall) {
  SplitterOptions options = kTools;
  options.reasoning = Reasoning::kBegun;
  EXPECT_EQ(split("I must <tool_call> now.\n</think>\n\n" + call(R"({"name": "get", "arguments": {}})"), options), (Split{"I must <tool_call> now.", "", {{"get", "{}"}}}));
}

TEST(AnswerSplitter, LongArgumentsTakeLinearTime) {
  AnswerSplitter splitter(kTools);
  splitter.push("<tool_call>\n{\"name\": \"set\", \"arguments\": {\"text\": \"");
  for (int i = 0; i < 400000; ++i) splitter.push("word ");
  const std::vector<AnswerEvent> events = splitter.push("\"}}\n</tool_call>");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_GT(events[0].text.size(), 2000000u);
}

// Nothing is lost and nothing depends on the pieces, whatever the text is.
TEST(AnswerSplitter, AnyTextInAnyPieces) {
  const std::vector<std::string> atoms = {"<tool_call>", "</tool_call>", "<think>", "</think>", "\n", " ", "{\"name\": \"get\", \"arguments\": {}}", "{\"name\": \"get\", \"arguments\": {\"a\": \"", "\"}}",
                                          "text", "<", "</", "tool_call>", "é", "{", "}", "\"", "\\"};
  std::mt19937 rng(3);
  for (int round = 0; round < 4000; ++round) {
    std::string text;
    for (uint32_t k = 0; k < 2 + rng() % 10; ++k) text += atoms[rng() % atoms.size()];
    SplitterOptions options = rng() % 2 == 0 ? kTools : SplitterOptions{};
    options.reasoning = static_cast<Reasoning>(rng() % 3);
    const Split whole = split_in(text, options, text.size());
    ASSERT_EQ(split_in(text, options, 1), whole) << text;
    ASSERT_EQ(split_in(text, options, 1 + rng() % 6), whole) << text;
    for (const auto& [name, arguments] : whole.calls) ASSERT_TRUE(Json::accept(arguments)) << text;
    if (whole.calls.empty() && options.reasoning == Reasoning::kNone) {
      ASSERT_EQ(whole.content, text);
    }
  }
}

}  // namespace
}  // namespace qvl::serve
