#include "qvl/serve/openai_request.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "qvl/serve/openapi.h"
#include "qvl/serve/schema_check.h"

namespace qvl::serve {
namespace {

namespace fs = std::filesystem;

ServerFacts test_facts() {
  ServerFacts facts;
  facts.model_ids = {"qvl-small", "qvl"};
  facts.vocabulary = 1000;
  facts.context_tokens = 4096;
  return facts;
}

// Requests as real programs send them, with what is expected of each.
struct Recorded {
  std::string name;
  Json file;
  bool completions() const { return file.at("endpoint") == "completions"; }
  std::string body() const { return file.contains("raw") ? file.at("raw").get<std::string>() : file.at("body").dump(); }
  ServerFacts facts() const {
    ServerFacts f = test_facts();
    if (!file.contains("facts")) return f;
    for (const auto& [key, value] : file.at("facts").items()) {
      if (key == "thinking") f.variant = text::TemplateVariant::kThinking;
      if (key == "has_grammar") f.has_grammar = value.get<bool>();
      if (key == "accept_any_model") f.accept_any_model = value.get<bool>();
    }
    return f;
  }
};

std::vector<Recorded> recorded() {
  std::vector<Recorded> out;
  for (const auto& entry : fs::directory_iterator(fs::path(QVL_SOURCE_DIR) / "tests/serve/requests")) {
    if (entry.path().extension() == ".json") out.push_back({entry.path().stem().string(), parse_json_file(entry.path())});
  }
  std::sort(out.begin(), out.end(), [](const Recorded& a, const Recorded& b) { return a.name < b.name; });
  return out;
}

Json optional_json(const std::optional<int64_t>& v) {
  return v ? Json(*v) : Json();
}

std::string text_of(const text::Message& m) {
  std::string out;
  for (const text::ContentPart& p : m.parts) out += p.text;
  return out;
}

std::string choice_name(const ToolChoice& choice) {
  switch (choice.kind) {
    case ToolChoice::Kind::kNone:
      return "none";
    case ToolChoice::Kind::kAuto:
      return "auto";
    case ToolChoice::Kind::kRequired:
      return "required";
    case ToolChoice::Kind::kNamed:
      return "named:" + choice.name;
  }
  return "?";
}

// What the "ok" of a recorded request may ask about.
Json outcome(const CommonRequest& r) {
  Json bias = Json::array();
  for (const auto& [id, value] : r.logit_bias) bias.push_back({id, value});
  return {{"max_tokens", optional_json(r.max_tokens)}, {"stream", r.stream}, {"include_usage", r.include_usage}, {"n", r.n},
          {"stop", r.stop.size()}, {"seed", r.seed ? Json(*r.seed) : Json()}, {"logit_bias", bias}};
}

Json outcome(const ChatRequest& r) {
  static const std::map<ResponseFormat::Kind, std::string> formats = {
      {ResponseFormat::Kind::kText, "text"}, {ResponseFormat::Kind::kJsonObject, "json_object"}, {ResponseFormat::Kind::kJsonSchema, "json_schema"}};
  Json out = outcome(static_cast<const CommonRequest&>(r));
  out["messages"] = r.messages.size();
  out["texts"] = Json::array();
  for (const text::Message& m : r.messages) out["texts"].push_back(text_of(m));
  out["media"] = Json::array();
  for (const MediaRef& m : r.media) {
    out["media"].push_back({{"video", m.is_video}, {"url", m.url}, {"frames", m.frames.size()}, {"fps", m.fps ? Json(*m.fps) : Json()}, {"detail", m.detail},
                            {"min_pixels", optional_json(m.pixels.min_pixels)}, {"max_pixels", optional_json(m.pixels.max_pixels)}, {"param", m.param}, {"message", m.message}});
  }
  out["tools"] = r.tools.size();
  out["tool_choice"] = choice_name(r.tool_choice);
  out["parallel"] = r.parallel_tool_calls;
  out["response_format"] = formats.at(r.response_format.kind);
  out["thinking"] = r.thinking;
  out["grounding"] = r.grounding;
  out["top_logprobs"] = r.top_logprobs;
  return out;
}

Json outcome(const CompletionRequest& r) {
  Json out = outcome(static_cast<const CommonRequest&>(r));
  out["prompts"] = r.prompts.size();
  out["logprobs"] = optional_json(r.logprobs);
  return out;
}

// The outcome, or the error as {"error": {"status", "param", "code"}}. Anything else that is thrown fails the test.
Json run(const std::string& body, bool completions, const ServerFacts& facts) {
  try {
    return completions ? outcome(parse_completion_request(body, facts)) : outcome(parse_chat_request(body, facts));
  } catch (const ApiError& e) {
    return {{"error", {{"status", e.status}, {"param", e.param.empty() ? Json() : Json(e.param)}, {"code", e.code}, {"message", e.what()}}}};
  }
}

Json chat(const std::string& body, const ServerFacts& facts = test_facts()) {
  return run(body, false, facts);
}

// {"model": "m", "messages": [...], `more`}.
std::string body_with(const std::string& more) {
  return R"({"messages":[{"role":"user","content":"Hi"}])" + (more.empty() ? "" : "," + more) + "}";
}

// "code param".
std::string refusal(const std::string& body, const ServerFacts& facts = test_facts()) {
  const Json out = chat(body, facts);
  if (!out.contains("error")) return "";
  const Json& param = out["error"]["param"];
  return out["error"]["code"].get<std::string>() + " " + (param.is_null() ? "" : param.get<std::string>());
}

void expect_part(const Json& want, const Json& got, const std::string& name) {
  for (const auto& [key, value] : want.items()) {
    ASSERT_TRUE(got.contains(key)) << name << ": " << key;
    if (value.is_array() && key == "media") {
      ASSERT_EQ(value.size(), got[key].size()) << name;
      for (size_t i = 0; i < value.size(); ++i) expect_part(value[i], got[key][i], name);
    } else {
      EXPECT_EQ(value, got[key]) << name << ": " << key;
    }
  }
}

TEST(OpenAiRequest, RecordedRequestsOfRealPrograms) {
  const std::vector<Recorded> all = recorded();
  ASSERT_GE(all.size(), 80u);
  for (const Recorded& r : all) {
    const Json got = run(r.body(), r.completions(), r.facts());
    const Json& expect = r.file.at("expect");
    if (expect.contains("ok")) {
      ASSERT_FALSE(got.contains("error")) << r.name << ": " << got.dump();
      expect_part(expect["ok"], got, r.name);
    } else {
      ASSERT_TRUE(got.contains("error")) << r.name;
      expect_part(expect["error"], got["error"], r.name);
    }
  }
}

TEST(OpenAiRequest, WhatIsTakenIsWhatTheDescriptionSays) {
  for (const Recorded& r : recorded()) {
    if (!r.file["expect"].contains("ok")) continue;
    const testing::SchemaCheck check(Json::parse(openapi_json(r.facts())));
    EXPECT_EQ(check.check(r.file.at("body"), r.completions() ? "CompletionRequest" : "ChatRequest"), "") << r.name;
  }
}

TEST(OpenAiRequest, SamplingValues) {
  const ChatRequest r = parse_chat_request(
      body_with(R"("temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.1,"repetition_penalty":1.1,"presence_penalty":-2,"frequency_penalty":2,"seed":18446744073709551615)"), test_facts());
  EXPECT_EQ(r.sampling.temperature, 0.0);
  EXPECT_EQ(r.sampling.top_p, 0.5);
  EXPECT_EQ(r.sampling.top_k, 0);
  EXPECT_EQ(r.sampling.min_p, 0.1);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.1);
  EXPECT_EQ(r.sampling.presence_penalty, -2.0);
  EXPECT_EQ(r.sampling.frequency_penalty, 2.0);
  EXPECT_EQ(r.seed, UINT64_MAX);
  EXPECT_FALSE(r.sampling.greedy);
  EXPECT_EQ(parse_chat_request(body_with(R"("priority":7)"), test_facts()).priority, 7);
  EXPECT_EQ(parse_chat_request(body_with(R"("priority":null)"), test_facts()).priority, 0);
  EXPECT_EQ(parse_chat_request(body_with(R"("seed":-1)"), test_facts()).seed, UINT64_MAX);
  EXPECT_EQ(parse_chat_request(body_with(R"("seed":5.0,"n":2.0,"max_tokens":1e3)"), test_facts()).max_tokens, 1000);
  const ChatRequest none = parse_chat_request(body_with(""), test_facts());
  EXPECT_FALSE(none.sampling.temperature || none.sampling.top_k || none.seed || none.max_tokens);
  EXPECT_TRUE(none.repetition_guard);
}

TEST(OpenAiRequest, ValuesOutOfRange) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("temperature":-0.1)", "decimal_below_min_value temperature"},
      {R"("top_p":1.01)", "decimal_above_max_value top_p"},
      {R"("top_k":-2)", "integer_below_min_value top_k"},
      {R"("top_k":1.5)", "invalid_type top_k"},
      {R"("min_p":2)", "decimal_above_max_value min_p"},
      {R"("repetition_penalty":0)", "decimal_below_min_value repetition_penalty"},
      {R"("presence_penalty":2.1)", "decimal_above_max_value presence_penalty"},
      {R"("n":9)", "integer_above_max_value n"},
      {R"("n":99999999999999999999999)", "integer_above_max_value n"},
      {R"("n":18446744073709551615)", "integer_above_max_value n"},
      {R"("n":true)", "invalid_type n"},
      {R"("max_tokens":0)", "integer_below_min_value max_tokens"},
      {R"("max_tokens":-1)", "integer_below_min_value max_tokens"},
      {R"("max_tokens":5,"max_completion_tokens":6)", "invalid_value max_tokens"},
      {R"("priority":-1)", "integer_below_min_value priority"},
      {R"("priority":1001)", "integer_above_max_value priority"},
      {R"("priority":"low")", "invalid_type priority"},
      {R"("seed":1e30)", "integer_above_max_value seed"},
      {R"("seed":"1")", "invalid_type seed"},
      {R"("stop":"")", "invalid_value stop"},
      {R"("stop":["a",""])", "invalid_value stop[1]"},
      {R"("stop":[1])", "invalid_type stop[0]"},
      {R"("stop":5)", "invalid_type stop"},
      {R"("logprobs":5)", "invalid_type logprobs"},
      {R"("logprobs":true,"top_logprobs":21)", "integer_above_max_value top_logprobs"},
      {R"("logit_bias":{"a":1})", "invalid_value logit_bias.a"},
      {R"("logit_bias":{"1000":1})", "invalid_value logit_bias.1000"},
      {R"("logit_bias":{"-1":1})", "invalid_value logit_bias.-1"},
      {R"("logit_bias":{"1":101})", "decimal_above_max_value logit_bias.1"},
      {R"("logit_bias":{"1":1,"01":1})", "invalid_value logit_bias"},
      {R"("logit_bias":[1])", "invalid_type logit_bias"},
      {R"("stream":1)", "invalid_type stream"},
      {R"("stream":true,"stream_options":{"x":1})", "unknown_parameter stream_options.x"},
      {R"("stream":true,"stream_options":{"include_obfuscation":true})", "unsupported_value stream_options.include_obfuscation"},
      {R"("stream":true,"stream_options":true)", "invalid_type stream_options"},
      {R"("min_pixels":0)", "integer_below_min_value min_pixels"},
      {R"("max_pixels":99999999)", "integer_above_max_value max_pixels"},
      {R"("min_pixels":10,"max_pixels":5)", "invalid_value min_pixels"},
      {R"("min_pixels":10,"mm_processor_kwargs":{"max_pixels":50})", "invalid_value mm_processor_kwargs"},
      {R"("mm_processor_kwargs":{"size":1})", "unknown_parameter mm_processor_kwargs.size"},
      {R"("grounding":"percent")", "invalid_value grounding"},
      {R"("chat_template_kwargs":{"enable_thinking":true})", "unsupported_value chat_template_kwargs.enable_thinking"},
      {R"("chat_template_kwargs":{"enable_thinking":"no"})", "invalid_type chat_template_kwargs.enable_thinking"},
      {R"("chat_template_kwargs":{"thinking":false})", "unknown_parameter chat_template_kwargs.thinking"},
      {R"("reasoning_effort":"most")", "invalid_value reasoning_effort"},
      {R"("service_tier":"flex")", "unsupported_value service_tier"},
      {R"("service_tier":"slow")", "invalid_value service_tier"},
      {R"("verbosity":"low")", "unsupported_value verbosity"},
      {R"("modalities":["text","audio"])", "unsupported_value modalities[1]"},
      {R"("prompt_cache_retention":"24h")", "unsupported_value prompt_cache_retention"},
      {R"("metadata":{"a":1})", "invalid_type metadata.a"},
      {R"("user":1)", "invalid_type user"},
      {R"("response_format":{"type":"xml"})", "invalid_value response_format.type"},
      {R"("response_format":{"type":"json_object","schema":{}})", "unknown_parameter response_format.schema"},
      {R"("response_format":{"type":"text","json_schema":{"name":"a","schema":{}}})", "invalid_value response_format.json_schema"},
      {R"("response_format":{"type":"json_schema"})", "missing_required_parameter response_format.json_schema"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}})", "invalid_value response_format.json_schema.name"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"a","schema":[]}})", "invalid_type response_format.json_schema.schema"},
      {R"("response_format":"json")", "invalid_type response_format"},
      {R"("tool_choice":"required")", "invalid_value tool_choice"},
      {R"("tool_choice":"any")", "invalid_value tool_choice"},
      {R"("tool_choice":{"type":"function","function":{"name":"f"}})", "invalid_value tool_choice.function.name"},
      {R"("tools":{})", "invalid_type tools"},
      {R"("tools":[{"type":"function"}])", "missing_required_parameter tools[0].function"},
      {R"("tools":[{"type":"function","function":{"name":"a.b"}}])", "invalid_value tools[0].function.name"},
      {R"("tools":[{"type":"function","function":{"name":"a","parameters":1}}])", "invalid_type tools[0].function.parameters"},
      {R"("tools":[{"type":"function","function":{"name":"a"}},{"type":"function","function":{"name":"a"}}])", "invalid_value tools[1].function.name"},
      {R"("tools":[{"type":"function","function":{"name":"a"}}],"tool_choice":{"type":"function","function":{"name":"b"}})", "invalid_value tool_choice.function.name"},
      {R"("tools":[{"type":"function","function":{"name":"a"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"none","tools":[]}})", "invalid_value tool_choice.allowed_tools.mode"},
      {R"("logprobs":null,"audio":{})", "unsupported_parameter audio"},
      {"\"" + std::string(1000, 'k') + "\":1", "unknown_parameter " + std::string(80, 'k')},
  };
  for (const auto& [more, want] : cases) EXPECT_EQ(refusal(body_with(more)), want) << more;
}

TEST(OpenAiRequest, MessagesOfTheWrongForm) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("x")", "invalid_type messages[0]"},
      {R"({"content":"a"})", "missing_required_parameter messages[0].role"},
      {R"({"role":"alien","content":"a"})", "invalid_value messages[0].role"},
      {R"({"role":"function","name":"f","content":"a"})", "unsupported_value messages[0].role"},
      {R"({"role":"user"})", "missing_required_parameter messages[0].content"},
      {R"({"role":"user","content":null})", "invalid_type messages[0].content"},
      {R"({"role":"user","content":5})", "invalid_type messages[0].content"},
      {R"({"role":"user","content":[]})", "empty_array messages[0].content"},
      {R"({"role":"user","content":["a"]})", "invalid_type messages[0].content[0]"},
      {R"({"role":"user","content":[{"text":"a"}]})", "missing_required_parameter messages[0].content[0].type"},
      {R"({"role":"user","content":[{"type":"text"}]})", "missing_required_parameter messages[0].content[0].text"},
      {R"({"role":"user","content":[{"type":"text","text":"a","cache_control":{}}]})", "unknown_parameter messages[0].content[0].cache_control"},
      {R"({"role":"user","content":[{"type":"refusal","refusal":"a"}]})", "invalid_value messages[0].content[0].type"},
      {R"({"role":"user","content":[{"type":"image_url","image_url":{"url":""}}]})", "invalid_value messages[0].content[0].image_url.url"},
      {R"({"role":"user","content":[{"type":"image_url","image_url":{"url":"a","detail":"medium"}}]})", "invalid_value messages[0].content[0].image_url.detail"},
      {R"({"role":"user","content":[{"type":"image_url","image_url":[]}]})", "invalid_type messages[0].content[0].image_url"},
      {R"({"role":"user","content":[{"type":"input_image","file_id":"f","image_url":"a"}]})", "unsupported_parameter messages[0].content[0].file_id"},
      {R"({"role":"user","content":[{"type":"video","video":"a.mp4"}]})", "unsupported_value messages[0].content[0].video"},
      {R"({"role":"user","content":[{"type":"video","video":[]}]})", "empty_array messages[0].content[0].video"},
      {R"({"role":"user","content":[{"type":"video","video":["a",1]}]})", "invalid_type messages[0].content[0].video[1]"},
      {R"({"role":"user","content":[{"type":"video","video":["a"],"fps":0}]})", "invalid_value messages[0].content[0].fps"},
      {R"({"role":"assistant"})", "invalid_value messages[0].content"},
      {R"({"role":"assistant","content":"a","tool_calls":[]})", "empty_array messages[0].tool_calls"},
      {R"({"role":"assistant","content":"a","audio":{"id":"x"}})", "unsupported_parameter messages[0].audio"},
      {R"({"role":"assistant","content":[{"type":"image_url","image_url":"a"}]})", "unsupported_value messages[0].content[0].type"},
      {R"({"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":1}}]})", "invalid_type messages[0].tool_calls[0].function.arguments"},
      {R"({"role":"assistant","tool_calls":[{"id":"a","type":"custom","function":{"name":"f","arguments":""}}]})", "invalid_value messages[0].tool_calls[0].type"},
      {R"({"role":"assistant","tool_calls":[{"type":"function","function":{"name":"f","arguments":""}}]})", "missing_required_parameter messages[0].tool_calls[0].id"},
      {R"({"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":""}},{"id":"a","type":"function","function":{"name":"f","arguments":""}}]})", "invalid_value messages[0].tool_calls[1].id"},
      {R"({"role":"assistant","content":null})", ""},
      {R"({"role":"tool","content":"a"})", "invalid_value messages[0]"},
      {R"({"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,a","max_dynamic_patch":6}}]})", "unsupported_parameter messages[0].content[0].image_url.max_dynamic_patch"},
  };
  for (const auto& [message, want] : cases) EXPECT_EQ(refusal("{\"messages\":[" + message + "]}"), want) << message;
}

TEST(OpenAiRequest, PartsKeepTheirOrderAndPicturesTheirs) {
  const ChatRequest r = parse_chat_request(
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":"data:,1"},{"type":"text","text":"b"},
          {"type":"video","video":["data:,2","data:,3"]},{"type":"image","image":"file:///x.png","detail":"high"}]},
          {"role":"assistant","content":"ok"},{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://e/4"}},{"type":"text","text":"c"}]}],
          "max_pixels":100000})",
      test_facts());
  using Kind = text::ContentPart::Kind;
  ASSERT_EQ(r.messages[0].parts.size(), 5u);
  const Kind want[] = {Kind::kText, Kind::kImage, Kind::kText, Kind::kVideo, Kind::kImage};
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(r.messages[0].parts[i].kind, want[i]) << i;
  ASSERT_EQ(r.media.size(), 4u);
  EXPECT_EQ(r.media[0].url, "data:,1");
  EXPECT_EQ(r.media[1].frames, (std::vector<std::string>{"data:,2", "data:,3"}));
  EXPECT_TRUE(r.media[1].is_video);
  EXPECT_EQ(r.media[1].param, "messages[0].content[3].video");
  EXPECT_EQ(r.media[2].url, "file:///x.png");
  EXPECT_EQ(r.media[2].detail, "high");
  EXPECT_EQ(r.media[3].message, 2u);
  for (const MediaRef& m : r.media) EXPECT_EQ(m.pixels.max_pixels, 100000);
}

TEST(OpenAiRequest, PicturesOfToolResultsFollowTheirResults) {
  const ChatRequest r = parse_chat_request(
      R"({"messages":[{"role":"user","content":"Look"},
          {"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"b","type":"function","function":{"name":"f","arguments":{"x":1}}}]},
          {"role":"tool","tool_call_id":"b","content":[{"type":"image_url","image_url":"data:,b"}]},
          {"role":"tool","tool_call_id":"a","content":[{"type":"image_url","image_url":"data:,a"}]}]})",
      test_facts());
  ASSERT_EQ(r.media.size(), 2u);
  EXPECT_EQ(r.media[0].url, "data:,a");
  EXPECT_EQ(r.media[0].message, 2u);
  EXPECT_EQ(r.media[0].param, "messages[3].content[0].image_url");  // where the client wrote it
  EXPECT_EQ(r.messages[1].tool_calls[0].arguments, "{}");
  EXPECT_EQ(r.messages[1].tool_calls[1].arguments, Json::parse(R"({"x":1})"));
}

// As lmms-eval sends them: what was said beside the calls as a message of its own, results without ids.
TEST(OpenAiRequest, ResultsWithoutIdsStandInTheOrderOfTheCalls) {
  const auto body = [](const std::string& results) {
    return R"({"messages":[{"role":"user","content":"Look"},{"role":"assistant","content":null},
        {"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"b","type":"function","function":{"name":"g","arguments":"{}"}}]},)" +
           results + "]}";
  };
  const ChatRequest r = parse_chat_request(body(R"({"role":"tool","name":"f","content":"1"},{"role":"tool","name":"g","content":"2"})"), test_facts());
  ASSERT_EQ(r.messages.size(), 5u);
  EXPECT_TRUE(r.messages[1].parts.empty());
  EXPECT_EQ(text_of(r.messages[3]), "1");
  EXPECT_EQ(text_of(r.messages[4]), "2");
  EXPECT_EQ(refusal(body(R"({"role":"tool","content":"1"},{"role":"tool","content":"2"})")), "");
  EXPECT_EQ(refusal(body(R"({"role":"tool","name":"g","content":"2"},{"role":"tool","name":"f","content":"1"})")), "invalid_value messages[3].name");
  EXPECT_EQ(refusal(body(R"({"role":"tool","content":"1"})")), "invalid_value messages[2].tool_calls");
  EXPECT_EQ(refusal(body(R"({"role":"tool","content":"1"},{"role":"tool","content":"2"},{"role":"tool","content":"3"})")), "invalid_value messages[5]");
  EXPECT_EQ(refusal(body(R"({"role":"tool","tool_call_id":"a","content":"1"},{"role":"tool","name":"g","content":"2"})")), "missing_required_parameter messages[4].tool_call_id");
}

TEST(OpenAiRequest, ToolsReachTheTemplateAsTheyCame) {
  const std::string tool = R"({"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"b":{},"a":{}}},"strict":null}})";
  const ChatRequest r = parse_chat_request(body_with("\"tools\":[" + tool + "]"), test_facts());
  EXPECT_EQ(r.tools_json.dump(), "[" + tool + "]");
  EXPECT_EQ(r.tools[0].parameters.dump(), R"({"type":"object","properties":{"b":{},"a":{}}})");
  EXPECT_FALSE(r.tools[0].strict);
  EXPECT_EQ(parse_chat_request(body_with("\"tools\":[]"), test_facts()).tool_choice.kind, ToolChoice::Kind::kNone);
  EXPECT_TRUE(parse_chat_request(body_with("\"tools\":[" + tool + "],\"tool_choice\":\"none\""), test_facts()).tools_json.is_null());
}

TEST(OpenAiRequest, LimitsOfTheOperator) {
  ServerFacts facts = test_facts();
  facts.max_media = 2;
  facts.max_answer_tokens = 100;
  facts.max_frames = 2;
  const std::string image = R"({"type":"image_url","image_url":"data:,"})";
  auto with = [&](const std::string& parts) { return R"({"messages":[{"role":"user","content":[)" + parts + "]}]}"; };
  EXPECT_EQ(refusal(with(image + "," + image), facts), "");
  EXPECT_EQ(refusal(with(image + "," + image + "," + image), facts), "too_many_media messages[0].content[2].image_url");
  EXPECT_EQ(refusal(with(R"({"type":"video","video":["a","b","c"]})"), facts), "array_above_max_length messages[0].content[0].video");
  EXPECT_EQ(refusal(body_with("\"max_tokens\":101"), facts), "integer_above_max_value max_tokens");
  EXPECT_EQ(refusal(body_with("\"max_completion_tokens\":101"), facts), "integer_above_max_value max_completion_tokens");
  facts.has_grammar = false;
  const std::string tools = R"("tools":[{"type":"function","function":{"name":"a","strict":true}}])";
  EXPECT_EQ(refusal(body_with(tools), facts), "unsupported_value tools[0].function.strict");
  EXPECT_EQ(refusal(body_with(R"("tools":[{"type":"function","function":{"name":"a"}}],"tool_choice":"required")"), facts), "unsupported_value tool_choice");
}

TEST(OpenAiRequest, ThinkingIsAsTheClientSaysOrNotForJson) {
  ServerFacts facts = test_facts();
  facts.variant = text::TemplateVariant::kThinking;
  auto thinks = [&](const std::string& more) { return parse_chat_request(body_with(more), facts).thinking; };
  EXPECT_TRUE(thinks(""));
  EXPECT_FALSE(thinks(R"("chat_template_kwargs":{"enable_thinking":false})"));
  EXPECT_FALSE(thinks(R"("reasoning_effort":"none")"));
  EXPECT_FALSE(thinks(R"("response_format":{"type":"json_object"})"));
  EXPECT_TRUE(thinks(R"("response_format":{"type":"json_object"},"chat_template_kwargs":{"enable_thinking":true})"));
  EXPECT_EQ(refusal(body_with(R"("reasoning_effort":"none","chat_template_kwargs":{"enable_thinking":true})"), facts), "invalid_value chat_template_kwargs.enable_thinking");
}

TEST(OpenAiRequest, CompletionPrompts) {
  auto refused = [](const std::string& body) {
    const Json out = run(body, true, test_facts());
    return out.contains("error") ? out["error"]["code"].get<std::string>() + " " + out["error"]["param"].get<std::string>() : "";
  };
  EXPECT_EQ(refused(R"({"prompt":[1,2,999]})"), "");
  EXPECT_EQ(refused(R"({"prompt":[1,2,1000]})"), "integer_above_max_value prompt[2]");
  EXPECT_EQ(refused(R"({"prompt":[[1],["a"]]})"), "invalid_type prompt[1][0]");
  EXPECT_EQ(refused(R"({"prompt":["a",1]})"), "invalid_type prompt[1]");
  EXPECT_EQ(refused(R"({"prompt":[[1],"a"]})"), "invalid_type prompt[1]");
  EXPECT_EQ(refused(R"({"prompt":[null]})"), "invalid_type prompt[0]");
  EXPECT_EQ(refused(R"({"prompt":""})"), "invalid_value prompt");
  EXPECT_EQ(refused(R"({"prompt":[]})"), "empty_array prompt");
  EXPECT_EQ(refused(R"({"prompt":[[]]})"), "empty_array prompt[0]");
  EXPECT_EQ(refused(R"({})"), "missing_required_parameter prompt");
  EXPECT_EQ(refused(R"({"prompt":null})"), "invalid_type prompt");
  EXPECT_EQ(refused(R"({"prompt":["a","b","c"],"n":3})"), "array_above_max_length prompt");
  EXPECT_EQ(refused(R"({"prompt":"a","echo":true,"logprobs":1})"), "unsupported_value echo");
  EXPECT_EQ(refused(R"({"prompt":"a","logprobs":6})"), "integer_above_max_value logprobs");
  EXPECT_EQ(refused(R"({"prompt":"a","messages":[]})"), "unknown_parameter messages");
  EXPECT_EQ(refused(R"({"prompt":"a","suffix":"","best_of":1})"), "");
  Json many = Json::array();
  for (int i = 0; i < 4096; ++i) many.push_back(1);
  EXPECT_EQ(refused(Json({{"prompt", many}}).dump()), "context_length_exceeded prompt");
  const CompletionRequest r = parse_completion_request(R"({"prompt":[[5,6],[7]]})", test_facts());
  EXPECT_EQ(std::get<std::vector<int32_t>>(r.prompts[0]), (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(r.max_tokens, 16);
}

// Every mutated request is taken or refused with a complete error; and what is taken is of the described form.
TEST(OpenAiRequest, MutatedRequests) {
  const std::vector<Recorded> all = recorded();
  std::mt19937 rng(20);
  std::map<std::string, std::unique_ptr<testing::SchemaCheck>> checks;
  int64_t taken = 0, refused = 0;
  auto judge = [&](const std::string& body, const Recorded& r) {
    const Json got = run(body, r.completions(), r.facts());
    if (got.contains("error")) {
      ++refused;
      ASSERT_TRUE(got["error"]["status"] == 400 || got["error"]["status"] == 404) << body;
      ASSERT_FALSE(got["error"]["code"].get<std::string>().empty()) << body;
      ASSERT_FALSE(got["error"]["message"].get<std::string>().empty()) << body;
      return;
    }
    ++taken;
    std::unique_ptr<testing::SchemaCheck>& check = checks[r.file.contains("facts") ? r.file["facts"].dump() : ""];
    if (!check) check = std::make_unique<testing::SchemaCheck>(Json::parse(openapi_json(r.facts())));
    ASSERT_EQ(check->check(Json::parse(body), r.completions() ? "CompletionRequest" : "ChatRequest"), "") << r.name << "\n" << body;
  };
  // Values of all kinds in all places.
  const std::vector<Json> values = {nullptr, true, false, 0, -1, 1, 2.5, 1.0, 1e18, "", "auto", "none", "text", "user", "required", "é\n\x7f", Json::array(), Json::object(),
                                    Json::array({1}), Json::array({"a"}), Json::array({nullptr}), {{"a", 1}}, {{"type", "text"}}, {{"type", "function"}}, Json::array({Json::object()})};
  auto pick = [&](Json& root) -> Json& {
    Json* at = &root;
    while (at->is_structured() && !at->empty() && (at == &root || rng() % 4 != 0)) {
      auto it = at->begin();
      std::advance(it, static_cast<long>(rng() % at->size()));
      at = &*it;
    }
    return *at;
  };
  std::vector<std::string> names;
  for (const ObjectFields& o : known_objects()) names.insert(names.end(), o.fields.begin(), o.fields.end());
  for (const Recorded& r : all) {
    if (!r.file.contains("body")) continue;
    for (int round = 0; round < 60; ++round) {
      Json body = r.file.at("body");
      for (uint32_t k = 0; k <= rng() % 3; ++k) {
        Json& at = pick(body);
        switch (rng() % 4) {
          case 0:
            at = values[rng() % values.size()];
            break;
          case 1:
            if (at.is_object() || at.is_null()) at[names[rng() % names.size()]] = values[rng() % values.size()];
            break;
          case 2:
            body[names[rng() % names.size()]] = values[rng() % values.size()];
            break;
          default:
            at = Json(pick(body));
        }
        if (!body.is_object()) break;
      }
      judge(body.dump(), r);
      if (HasFatalFailure()) return;
    }
    // Bytes.
    const std::string whole = r.body();
    for (int round = 0; round < 20; ++round) {
      std::string body = whole;
      for (uint32_t k = 0; k <= rng() % 4; ++k) {
        const size_t at = rng() % body.size();
        switch (rng() % 4) {
          case 0:
            body[at] = static_cast<char>(rng());
            break;
          case 1:
            body.erase(at, rng() % 9);
            break;
          case 2:
            body.insert(at, body.substr(rng() % body.size(), rng() % 20));
            break;
          default:
            body.resize(at + 1);
        }
        if (body.empty()) body = "{";
      }
      judge(body, r);
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(taken, 500);
  EXPECT_GT(refused, 3000);
}

}  // namespace
}  // namespace qvl::serve
