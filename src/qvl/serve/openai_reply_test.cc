#include "qvl/serve/openai_reply.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "qvl/serve/openapi.h"
#include "qvl/serve/schema_check.h"

namespace qvl::serve {
namespace {

const ReplyHead kHead = {.id = "chatcmpl-1", .created = 1700000000, .model = "qvl-small", .system_fingerprint = "fp_1"};

std::string check(const Json& value, const std::string& schema) {
  static const testing::SchemaCheck checker(Json::parse(openapi_json()));
  return checker.check(value, schema);
}

RequestFacts facts() {
  RequestFacts f;
  generate::VisualReport v;
  v.info.width = 640;
  v.info.height = 480;
  v.info.resized_width = 640;
  v.info.resized_height = 480;
  v.info.grid = {.t = 1, .h = 30, .w = 40};
  v.tokens = 300;
  v.encode_ms = 12.3456;
  v.cached = true;
  f.visuals = {v, v};
  f.details = {"low"};
  f.timings = {{"ttft_ms", 10.5}};
  return f;
}

TEST(OpenAiReply, AWholeAnswer) {
  ChatChoice c;
  c.content = "A cat.";
  const Json reply = chat_completion(kHead, std::vector<ChatChoice>{c}, {.prompt_tokens = 310, .completion_tokens = 4, .cached_tokens = 5, .image_tokens = 300, .reasoning_tokens = 0}, facts());
  EXPECT_EQ(check(reply, "ChatCompletion"), "");
  EXPECT_EQ(reply["object"], "chat.completion");
  EXPECT_EQ(reply["choices"][0].dump(),
            R"({"index":0,"message":{"role":"assistant","content":"A cat.","refusal":null},"logprobs":null,"finish_reason":"stop","qvl":{"finish":{"reason":"end_token"}}})");
  EXPECT_EQ(reply["usage"].dump(),
            R"({"prompt_tokens":310,"completion_tokens":4,"total_tokens":314,"prompt_tokens_details":{"cached_tokens":5,"image_tokens":300},"completion_tokens_details":{"reasoning_tokens":0}})");
  EXPECT_EQ(reply["qvl"]["images"][0].dump(),
            R"({"width":640,"height":480,"resized_width":640,"resized_height":480,"grid_thw":[1,30,40],"patches":1200,"tokens":300,"encode_ms":12.346,"cached":true,"detail":"low"})");
  EXPECT_EQ(reply["qvl"]["images"][1]["detail"], "auto");
  EXPECT_EQ(reply["qvl"]["timings"]["ttft_ms"], 10.5);
}

TEST(OpenAiReply, CallsReasoningAndGrounding) {
  ChatChoice c;
  c.reasoning = "Hm.";
  c.tool_calls = {{"call_1", "get", "{\"a\": 1}"}, {"call_2", "set", "{}"}};
  c.ending.cause = EndCause::kToolCall;
  ChatChoice box;
  box.index = 1;
  box.content = R"({"bbox_2d": [0, 0, 500, 500]})";
  const std::vector<generate::GroundedVisual> visuals = {{.width = 640, .height = 480}};
  box.grounding = generate::parse_grounding(box.content, visuals);
  const Json reply = chat_completion(kHead, std::vector<ChatChoice>{c, box}, {}, facts());
  EXPECT_EQ(check(reply, "ChatCompletion"), "");
  const Json& message = reply["choices"][0]["message"];
  EXPECT_EQ(message["content"], nullptr);
  EXPECT_EQ(message["reasoning_content"], "Hm.");
  EXPECT_EQ(message["tool_calls"][1].dump(), R"({"id":"call_2","type":"function","function":{"name":"set","arguments":"{}"}})");
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "tool_calls");
  EXPECT_EQ(reply["choices"][1]["qvl"]["grounding"]["items"][0]["pixels"].dump(), "[0.0,0.0,320.0,240.0]");
  // Cut off after a call: the reason is the length.
  EXPECT_EQ(finish_reason({.cause = EndCause::kMaxTokens}, true), "length");
}

TEST(OpenAiReply, WhyAnAnswerEnded) {
  const std::vector<std::tuple<EndCause, const char*, const char*>> cases = {
      {EndCause::kEndToken, "stop", "end_token"},       {EndCause::kStopString, "stop", "stop_string"}, {EndCause::kConstraint, "stop", "constraint"},
      {EndCause::kMaxTokens, "length", "max_tokens"},   {EndCause::kContext, "length", "context"},      {EndCause::kRepetition, "length", "repetition"},
      {EndCause::kTimeout, "length", "timeout"},        {EndCause::kToolCall, "stop", "tool_call"},
  };
  for (const auto& [cause, reason, name] : cases) {
    EXPECT_EQ(finish_reason({.cause = cause}, false), reason);
    EXPECT_EQ(choice_facts_json({.cause = cause}, nullptr)["finish"]["reason"], name);
  }
  EXPECT_EQ(choice_facts_json({.cause = EndCause::kStopString, .stop_string = "END"}, nullptr)["finish"]["stop_string"], "END");
  Ending loop{.cause = EndCause::kRepetition};
  loop.repetition = generate::Repetition{.period = 3, .begin = 10, .tokens = 512};
  loop.sensible_characters = 42;
  EXPECT_EQ(choice_facts_json(loop, nullptr).dump(),
            R"({"finish":{"reason":"repetition","repetition":{"period_tokens":3,"rounds":170,"begin_token":10,"sensible_tokens":13,"sensible_characters":42}}})");
  EXPECT_EQ(check(choice_facts_json(loop, nullptr), "ChoiceFacts"), "");
}

TEST(OpenAiReply, AStream) {
  const ChatStream stream(kHead, true);
  const std::vector<Json> chunks = {stream.begin(0), stream.reasoning(0, "Hm"), stream.content(0, "A"), stream.tool_call(0, 0, {"call_1", "get", ""}), stream.tool_arguments(0, 0, "{}"),
                                    stream.end(0, {}, true, nullptr, nullptr), stream.usage({.prompt_tokens = 1, .completion_tokens = 2}, facts())};
  for (const Json& c : chunks) {
    EXPECT_EQ(check(c, "ChatCompletionChunk"), "");
    EXPECT_EQ(c["id"], "chatcmpl-1");
    EXPECT_TRUE(c.contains("usage"));
  }
  EXPECT_EQ(chunks[0]["choices"][0].dump(), R"({"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null})");
  EXPECT_EQ(chunks[1]["choices"][0]["delta"].dump(), R"({"reasoning_content":"Hm"})");
  EXPECT_EQ(chunks[2]["choices"][0]["delta"].dump(), R"({"content":"A"})");
  EXPECT_EQ(chunks[3]["choices"][0]["delta"].dump(), R"({"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"get","arguments":""}}]})");
  EXPECT_EQ(chunks[4]["choices"][0]["delta"].dump(), R"({"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]})");
  EXPECT_EQ(chunks[5]["choices"][0]["finish_reason"], "tool_calls");
  EXPECT_EQ(chunks[5]["choices"][0]["delta"].dump(), "{}");
  EXPECT_FALSE(chunks[5].contains("qvl"));
  EXPECT_EQ(chunks[6]["choices"].dump(), "[]");
  EXPECT_EQ(chunks[6]["usage"]["total_tokens"], 3);
  EXPECT_EQ(chunks[6]["qvl"]["images"].size(), 2u);
  // Without usage, its facts come with the last choice.
  const ChatStream bare(kHead, false);
  EXPECT_FALSE(bare.content(0, "x").contains("usage"));
  RequestFacts f = facts();
  const Json end = bare.end(1, {}, false, nullptr, &f);
  EXPECT_EQ(end["qvl"]["images"].size(), 2u);
  EXPECT_FALSE(end["qvl"].contains("unenforced"));
  f.unenforced = "uniqueItems";
  EXPECT_EQ(bare.end(1, {}, false, nullptr, &f)["qvl"]["unenforced"], "uniqueItems");
  EXPECT_EQ(end["choices"][0]["index"], 1);
  EXPECT_EQ(end["choices"][0]["qvl"]["finish"]["reason"], "end_token");
}

TEST(OpenAiReply, LogprobsOfChat) {
  ChatChoice c;
  c.content = "é";
  c.logprobs = {{{.bytes = "\xc3", .logprob = -0.5, .top = {{"\xc3", -0.5}, {"a", -std::numeric_limits<double>::infinity()}}}, {.bytes = "\xa9", .logprob = -1e9, .top = {}}}};
  const Json reply = chat_completion(kHead, std::vector<ChatChoice>{c}, {}, facts());
  EXPECT_EQ(check(reply, "ChatCompletion"), "");
  EXPECT_EQ(reply["choices"][0]["logprobs"].dump(),
            R"({"content":[{"token":"\\xc3","logprob":-0.5,"bytes":[195],"top_logprobs":[{"token":"\\xc3","logprob":-0.5,"bytes":[195]},{"token":"a","logprob":-9999.0,"bytes":[97]}]},)"
            R"({"token":"\\xa9","logprob":-9999.0,"bytes":[169],"top_logprobs":[]}],"refusal":null})");
}

TEST(OpenAiReply, PlainCompletions) {
  TextChoice c;
  c.text = "héy!";
  c.logprobs = {{{.bytes = "hé", .logprob = -1, .top = {{"hé", -1}, {"\xff", -2}}}, {.bytes = "y!", .logprob = -3, .top = {}}}};
  const Json reply = text_completion(kHead, std::vector<TextChoice>{c}, {.prompt_tokens = 2, .completion_tokens = 2}, facts());
  EXPECT_EQ(check(reply, "Completion"), "");
  EXPECT_EQ(reply["object"], "text_completion");
  EXPECT_EQ(reply["choices"][0]["logprobs"].dump(),
            R"({"text_offset":[0,2],"token_logprobs":[-1.0,-3.0],"tokens":["hé","y!"],"top_logprobs":[{"hé":-1.0,"bytes:\\xff":-2.0},{}]})");
  const TextStream stream(kHead, true);
  const std::vector<TokenLogprob> one = {{.bytes = "x", .logprob = -1, .top = {}}};
  const Json piece = stream.piece(1, "x", &one, 7);
  EXPECT_EQ(check(piece, "Completion"), "");
  EXPECT_EQ(piece["choices"][0]["logprobs"]["text_offset"].dump(), "[7]");
  const Json end = stream.end(1, {.cause = EndCause::kMaxTokens}, nullptr);
  EXPECT_EQ(check(end, "Completion"), "");
  EXPECT_EQ(end["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(check(stream.usage({}, facts()), "Completion"), "");
}

TEST(OpenAiReply, Models) {
  const std::vector<std::string> ids = {"a", "b"};
  EXPECT_EQ(model_list(ids, 5).dump(), R"({"object":"list","data":[{"id":"a","object":"model","created":5,"owned_by":"qvl"},{"id":"b","object":"model","created":5,"owned_by":"qvl"}]})");
  EXPECT_EQ(check(model_list(ids, 5), "ModelList"), "");
}

TEST(OpenAiReply, EventsAreOneLineAndAlwaysUtf8) {
  EXPECT_EQ(sse_event({{"a", "x\ny"}}), "data: {\"a\":\"x\\ny\"}\n\n");
  EXPECT_EQ(sse_event({{"a", "\xff"}}), "data: {\"a\":\"\xef\xbf\xbd\"}\n\n");
  EXPECT_EQ(sse_error(bad_request("invalid_value", "p", "m")), "data: {\"error\":{\"message\":\"m\",\"type\":\"invalid_request_error\",\"param\":\"p\",\"code\":\"invalid_value\"}}\n\n");
  EXPECT_EQ(check(bad_request("invalid_value", "", "m").to_json(), "Error"), "");
  EXPECT_EQ(check(queue_full(1, 2).to_json(), "Error"), "");
  EXPECT_EQ(check(internal_error().to_json(), "Error"), "");
}

TEST(OpenAiReply, IdsDiffer) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = new_id("chatcmpl-");
    EXPECT_TRUE(id.starts_with("chatcmpl-"));
    EXPECT_EQ(id.size(), 33u);
    EXPECT_TRUE(seen.insert(id).second);
  }
}

}  // namespace
}  // namespace qvl::serve
