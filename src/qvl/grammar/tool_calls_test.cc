// Tool calls in the chat template's form: the name is a tool's, the arguments satisfy its schema, whatever a
// model prefers.
#include <gtest/gtest.h>

#include <map>

#include "qvl/base/error.h"
#include "qvl/grammar/random_walk.h"
#include "qvl/grammar/schema_validator.h"

namespace qvl::grammar {
namespace {

using testing_support::allowed_ids;
using testing_support::RandomModel;
using testing_support::SchemaValidator;
using testing_support::small_vocabulary;
using testing_support::Vocabulary;
using testing_support::Walk;

std::vector<Tool> tools() {
  return {
      {"get_weather",
       Json::parse(
           R"({"type":"object","properties":{"city":{"type":"string","maxLength":12},"days":{"type":"integer",
         "minimum":1,"maximum":14},"unit":{"enum":["C","F"]}},"required":["city"],"additionalProperties":false})"),
       true},
      {"get_weather_map", Json::parse(R"({"properties":{"box":{"$ref":"#/$defs/box"}},"required":["box"],
         "additionalProperties":false,"$defs":{"box":{"type":"array","items":{"type":"integer","minimum":0,
         "maximum":1000},"minItems":4,"maxItems":4}}})")},
      {"now", nullptr},
  };
}

// Calls of an answer that is nothing but calls; fails the test for anything else.
std::vector<std::pair<std::string, Json>> calls_of(const std::string& text) {
  std::vector<std::pair<std::string, Json>> calls;
  size_t at = 0;
  const std::string open = "<tool_call>\n", close = "\n</tool_call>";
  while (at < text.size()) {
    if (!calls.empty()) {
      EXPECT_EQ(text[at], '\n') << text;
      ++at;
    }
    EXPECT_EQ(text.compare(at, open.size(), open), 0) << text;
    const size_t end = text.find(close, at);
    if (end == std::string::npos) {
      ADD_FAILURE() << text;
      return calls;
    }
    const std::string body = text.substr(at + open.size(), end - at - open.size());
    const Json call = Json::parse(body, nullptr, false);
    EXPECT_FALSE(call.is_discarded()) << body;
    if (call.is_discarded()) return calls;
    EXPECT_EQ(call.size(), 2u) << body;
    // Byte for byte what the chat template would write of it in the next turn's prompt, up to the JSON of
    // arguments.
    const std::string head = "{\"name\": \"" + call.value("name", "") + "\", \"arguments\": ";
    EXPECT_TRUE(body.starts_with(head)) << body;
    calls.emplace_back(call.value("name", ""), call.at("arguments"));
    at = end + close.size();
  }
  return calls;
}

void expect_valid(const std::vector<std::pair<std::string, Json>>& calls) {
  std::map<std::string, Json> schemas;
  for (const Tool& tool : tools()) schemas[tool.name] = tool.parameters;
  schemas["now"] = Json::parse(R"({"type":"object","additionalProperties":false})");
  for (const auto& [name, arguments] : calls) {
    ASSERT_TRUE(schemas.contains(name)) << name;
    EXPECT_TRUE(arguments.is_object());
    EXPECT_EQ(SchemaValidator(schemas[name]).check(arguments), "") << name << " " << arguments;
  }
}

void walk_required(const Vocabulary& v, uint64_t seeds) {
  const Grammar start = v.engine.tool_calls(tools(), {.kind = ToolChoice::Kind::kRequired});
  std::map<std::string, int> seen;
  size_t most = 0;
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    Grammar grammar = start.clone();
    EXPECT_FALSE(grammar.may_end());
    const Walk walk = RandomModel(seed).walk(v, grammar);
    ASSERT_TRUE(walk.ended) << walk.text;
    ASSERT_EQ(walk.ids.front(), v.id("<tool_call>"));
    const auto calls = calls_of(walk.text);
    EXPECT_FALSE(calls.empty());
    expect_valid(calls);
    most = std::max(most, calls.size());
    for (const auto& [name, arguments] : calls) ++seen[name];
  }
  EXPECT_GT(most, 1u);
  EXPECT_GE(seen.size(), 2u);
}

TEST(ToolCalls, RequiredAnswersAreValidCalls) {
  QVL_NEED_GRAMMAR_ENGINE();
  walk_required(small_vocabulary(), 60);
}

TEST(ToolCalls, RequiredAnswersAreValidCallsInThePublishedVocabulary) {
  QVL_NEED_PUBLISHED_VOCABULARY();
  walk_required(*testing_support::published_vocabulary(), 40);
}

TEST(ToolCalls, NamedIsOneCallOfThatTool) {
  QVL_NEED_GRAMMAR_ENGINE();
  const Vocabulary& v = small_vocabulary();
  const Grammar start =
      v.engine.tool_calls(tools(), {.kind = ToolChoice::Kind::kNamed, .name = "get_weather"});
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Grammar grammar = start.clone();
    const auto calls = calls_of(RandomModel(seed).walk(v, grammar).text);
    ASSERT_EQ(calls.size(), 1u);
    EXPECT_EQ(calls[0].first, "get_weather");
    expect_valid(calls);
  }
}

TEST(ToolCalls, OneCallWhereParallelOnesAreOff) {
  QVL_NEED_GRAMMAR_ENGINE();
  const Vocabulary& v = small_vocabulary();
  for (const auto kind : {ToolChoice::Kind::kRequired, ToolChoice::Kind::kAuto}) {
    Grammar grammar = v.engine.tool_calls(tools(), {.kind = kind, .parallel = false});
    grammar.accept(v.id("<tool_call>"));
    for (const int32_t id : v.tokenizer.encode_text("\n{\"name\": \"now\", \"arguments\": {}}\n"))
      grammar.accept(id);
    EXPECT_FALSE(grammar.finished());
    grammar.accept(v.id("</tool_call>"));
    EXPECT_TRUE(grammar.finished());
    std::vector<int32_t> ends = v.end_ids;
    std::sort(ends.begin(), ends.end());
    EXPECT_EQ(allowed_ids(v, grammar), ends);
  }
}

TEST(ToolCalls, AutoLeavesTextFreeAndHoldsCalls) {
  QVL_NEED_GRAMMAR_ENGINE();
  const Vocabulary& v = small_vocabulary();
  Grammar grammar = v.engine.tool_calls(tools());
  EXPECT_TRUE(grammar.may_end());
  EXPECT_FALSE(grammar.finished());
  for (const int32_t id : v.tokenizer.encode_text("Any { text < is } \"fine\".\n")) grammar.accept(id);
  const std::vector<int32_t> in_text = allowed_ids(v, grammar);
  const auto may_come = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  EXPECT_TRUE(may_come(in_text, v.id("<tool_call>")));
  EXPECT_TRUE(may_come(in_text, v.id("<|im_end|>")));
  for (const char* token :
       {"</tool_call>", "<tool_response>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>"}) {
    EXPECT_FALSE(may_come(in_text, v.id(token))) << token;
  }
  EXPECT_GT(in_text.size(), 500u);

  grammar.accept(v.id("<tool_call>"));
  EXPECT_FALSE(grammar.may_end());
  for (const int32_t id : allowed_ids(v, grammar)) EXPECT_EQ(v.tokenizer.token_bytes(id)[0], '\n');
  EXPECT_THROW(grammar.accept(v.id("<|im_end|>")), Error);
  for (const int32_t id :
       v.tokenizer.encode_text("\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"")) {
    grammar.accept(id);
  }
  for (const int32_t id : v.tokenizer.encode_text("Pune\", \"days\": 14}}\n")) grammar.accept(id);
  EXPECT_EQ(allowed_ids(v, grammar), std::vector<int32_t>{v.id("</tool_call>")});
  grammar.accept(v.id("</tool_call>"));
  EXPECT_TRUE(grammar.may_end());
  EXPECT_EQ(allowed_ids(v, grammar), in_text);
  grammar.accept(v.id("<|im_end|>"));
  EXPECT_TRUE(grammar.finished());
}

// Written out in ordinary characters the tag would look like a call to whoever reads the text, and be none.
TEST(ToolCalls, TextCannotSpellTheTag) {
  QVL_NEED_PUBLISHED_VOCABULARY();
  const Vocabulary& v = *testing_support::published_vocabulary();
  const Grammar start = v.engine.tool_calls(tools());
  for (const std::string_view text : {"a <tool_call", "<<tool_call", "<tool_<tool_call"}) {
    Grammar grammar = start.clone();
    for (const int32_t id : v.tokenizer.encode_text(text)) grammar.accept(id);
    size_t refused = 0;
    std::vector<float> logits(static_cast<size_t>(v.tokenizer.vocab_size()), 0.0f);
    grammar.mask(logits);
    for (int32_t id = 0; id < v.tokenizer.vocab_size(); ++id) {
      if (v.tokenizer.is_added(id) || !v.tokenizer.token_bytes(id).starts_with(">")) continue;
      EXPECT_NE(logits[static_cast<size_t>(id)], 0.0f) << v.tokenizer.token_bytes(id);
      ++refused;
    }
    EXPECT_GT(refused, 10u);
    grammar.accept(v.tokenizer.encode_text("s").at(0));
    grammar.accept(v.tokenizer.encode_text(">").at(0));
    EXPECT_TRUE(grammar.may_end());
  }
  Grammar grammar = start.clone();
  EXPECT_THROW(for (const int32_t id : v.tokenizer.encode_text("<tool_call>")) grammar.accept(id), Error);
}

TEST(ToolCalls, AfterReasoning) {
  QVL_NEED_GRAMMAR_ENGINE();
  const Vocabulary& v = small_vocabulary();
  Grammar grammar = v.engine.tool_calls(tools(), {.kind = ToolChoice::Kind::kRequired});
  grammar.allow_reasoning();
  for (const int32_t id : v.tokenizer.encode_text("Which city? {}\n")) grammar.accept(id);
  EXPECT_FALSE(grammar.may_end());
  EXPECT_THROW(grammar.accept(v.id("<tool_call>")), Error);
  EXPECT_THROW(grammar.accept(v.id("<|im_end|>")), Error);
  grammar.accept(v.id("</think>"));
  for (const int32_t id : v.tokenizer.encode_text("\n\n")) {
    EXPECT_EQ(allowed_ids(v, grammar), std::vector<int32_t>{id});
    grammar.accept(id);
  }
  EXPECT_EQ(allowed_ids(v, grammar), std::vector<int32_t>{v.id("<tool_call>")});

  Grammar free_text = v.engine.tool_calls(tools());
  free_text.allow_reasoning();
  EXPECT_FALSE(free_text.may_end());
  free_text.accept(v.id("</think>"));
  EXPECT_TRUE(free_text.may_end());
}

ErrorCode code_of(const std::vector<Tool>& list, const ToolChoice& choice, std::string* message = nullptr) {
  try {
    small_vocabulary().engine.tool_calls(list, choice);
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::kIo;
}

TEST(ToolCalls, WrongToolsAreNamed) {
  QVL_NEED_GRAMMAR_ENGINE();
  const ToolChoice any;
  std::string message;
  EXPECT_EQ(code_of({}, any), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of({{"a", nullptr}, {"a", nullptr}}, any, &message), ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("\"a\""), std::string::npos);
  EXPECT_EQ(code_of({{"say \"hi\"", nullptr}}, any), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of({{"", nullptr}}, any), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of({{"a", Json::parse(R"({"type":"array"})")}}, any), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of({{"a", 7}}, any), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(tools(), {.kind = ToolChoice::Kind::kNamed, .name = "no_such"}, &message),
            ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("no_such"), std::string::npos);
  EXPECT_EQ(code_of(std::vector<Tool>(200, Tool{"a", nullptr}), any), ErrorCode::kLimit);

  const Json unique =
      Json::parse(R"({"type":"object","properties":{"tags":{"type":"array","uniqueItems":true}}})");
  EXPECT_EQ(code_of({{"tag", unique, true}}, any, &message), ErrorCode::kUnsupported);
  EXPECT_NE(message.find("uniqueItems"), std::string::npos) << message;
  EXPECT_NO_THROW(small_vocabulary().engine.tool_calls(std::vector<Tool>{{"tag", unique, false}}));
}

}  // namespace
}  // namespace qvl::grammar
