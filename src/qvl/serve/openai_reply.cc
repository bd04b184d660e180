#include "qvl/serve/openai_reply.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "qvl/base/format.h"
#include "qvl/generate/report.h"
#include "qvl/text/unicode.h"

namespace qvl::serve {
namespace {

constexpr double kLeastLogprob = -9999.0;  // OpenAI's word for "not among the likely ones"; JSON has no infinity

double finite_logprob(double v) {
  return std::isfinite(v) ? std::max(v, kLeastLogprob) : kLeastLogprob;
}

// A token that is no whole text is shown as OpenAI does: its bytes, escaped ("\xe2\x80").
std::string token_text(std::string_view bytes) {
  if (text::is_valid_utf8(bytes)) return std::string(bytes);
  std::string out;
  for (const char c : bytes) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return out;
}

Json byte_list(std::string_view bytes) {
  Json out = Json::array();
  for (const char c : bytes) out.push_back(static_cast<unsigned char>(c));
  return out;
}

Json chat_logprobs(const std::vector<TokenLogprob>* logprobs) {
  if (logprobs == nullptr) return nullptr;
  Json content = Json::array();
  for (const TokenLogprob& t : *logprobs) {
    Json top = Json::array();
    for (const auto& a : t.top) {
      top.push_back({{"token", token_text(a.bytes)}, {"logprob", finite_logprob(a.logprob)}, {"bytes", byte_list(a.bytes)}});
    }
    content.push_back({{"token", token_text(t.bytes)},
                       {"logprob", finite_logprob(t.logprob)},
                       {"bytes", byte_list(t.bytes)},
                       {"top_logprobs", std::move(top)}});
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// The form of plain completions: lists side by side; half characters as "bytes:\xe2\x80".
Json text_logprobs(const std::vector<TokenLogprob>* logprobs, int64_t offset) {
  if (logprobs == nullptr) return nullptr;
  auto name = [](std::string_view bytes) { return text::is_valid_utf8(bytes) ? std::string(bytes) : "bytes:" + token_text(bytes); };
  Json tokens = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const TokenLogprob& t : *logprobs) {
    tokens.push_back(name(t.bytes));
    values.push_back(finite_logprob(t.logprob));
    Json top = Json::object();
    for (const auto& a : t.top) top[name(a.bytes)] = finite_logprob(a.logprob);
    tops.push_back(std::move(top));
    offsets.push_back(offset);
    offset += text::count_characters(t.bytes);
  }
  return {{"text_offset", std::move(offsets)}, {"token_logprobs", std::move(values)}, {"tokens", std::move(tokens)}, {"top_logprobs", std::move(tops)}};
}

Json call_json(const ToolCallOut& call) {
  return {{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

Json head_json(const ReplyHead& head, std::string_view object) {
  return {{"id", head.id}, {"object", object}, {"created", head.created}, {"model", head.model}, {"system_fingerprint", head.system_fingerprint}};
}

Json stream_object(const ReplyHead& head, std::string_view object, Json choices, bool include_usage) {
  Json out = head_json(head, object);
  out["choices"] = std::move(choices);
  if (include_usage) out["usage"] = nullptr;
  return out;
}

Json usage_object(const ReplyHead& head, std::string_view object, const Usage& usage, const RequestFacts& facts) {
  Json out = head_json(head, object);
  out["choices"] = Json::array();
  out["usage"] = usage_json(usage);
  out["qvl"] = request_facts_json(facts);
  return out;
}

const std::vector<TokenLogprob>* pointer(const std::optional<std::vector<TokenLogprob>>& logprobs) {
  return logprobs ? &*logprobs : nullptr;
}

}  // namespace

std::string new_id(std::string_view prefix) {
  static constexpr std::string_view kAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::random_device device;
  std::uniform_int_distribution<size_t> letter(0, kAlphabet.size() - 1);
  std::string out(prefix);
  for (int i = 0; i < 24; ++i) out += kAlphabet[letter(device)];
  return out;
}

Json usage_json(const Usage& u) {
  return {{"prompt_tokens", u.prompt_tokens},
          {"completion_tokens", u.completion_tokens},
          {"total_tokens", u.prompt_tokens + u.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", u.cached_tokens}, {"image_tokens", u.image_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", u.reasoning_tokens}}}};
}

std::string_view end_cause_name(EndCause cause) {
  switch (cause) {
    case EndCause::kEndToken:
      return "end_token";
    case EndCause::kStopString:
      return "stop_string";
    case EndCause::kConstraint:
      return "constraint";
    case EndCause::kToolCall:
      return "tool_call";
    case EndCause::kMaxTokens:
      return "max_tokens";
    case EndCause::kContext:
      return "context";
    case EndCause::kRepetition:
      return "repetition";
    case EndCause::kTimeout:
      return "timeout";
  }
  return "unknown";
}

std::string_view finish_reason(const Ending& ending, bool has_tool_calls) {
  switch (ending.cause) {
    case EndCause::kMaxTokens:
    case EndCause::kContext:
    case EndCause::kRepetition:
    case EndCause::kTimeout:
      return "length";
    default:
      return has_tool_calls ? "tool_calls" : "stop";
  }
}

Json request_facts_json(const RequestFacts& facts) {
  Json images = Json::array();
  for (size_t i = 0; i < facts.visuals.size(); ++i) {
    Json image = generate::visual_json(facts.visuals[i]);
    image["detail"] = i < facts.details.size() ? facts.details[i] : "auto";
    images.push_back(std::move(image));
  }
  Json out = {{"images", std::move(images)}, {"timings", facts.timings}};
  if (!facts.engine.is_null()) out["engine"] = facts.engine;
  if (!facts.unenforced.empty()) out["unenforced"] = facts.unenforced;
  return out;
}

Json choice_facts_json(const Ending& ending, const generate::Grounding* grounding) {
  Json finish = {{"reason", end_cause_name(ending.cause)}};
  if (ending.cause == EndCause::kStopString) finish["stop_string"] = ending.stop_string;
  if (ending.repetition) {
    const generate::Repetition& r = *ending.repetition;
    Json loop = {{"period_tokens", r.period}, {"rounds", r.rounds()}, {"begin_token", r.begin}, {"sensible_tokens", r.sensible_tokens()}};
    if (ending.sensible_characters) loop["sensible_characters"] = *ending.sensible_characters;
    finish["repetition"] = std::move(loop);
  }
  Json out = {{"finish", std::move(finish)}};
  if (grounding != nullptr) out["grounding"] = grounding->to_json();
  return out;
}

Json chat_completion(const ReplyHead& head, std::span<const ChatChoice> choices, const Usage& usage, const RequestFacts& facts) {
  Json out = head_json(head, "chat.completion");
  out["choices"] = Json::array();
  for (const ChatChoice& c : choices) {
    Json message = {{"role", "assistant"}, {"content", c.content}, {"refusal", nullptr}};
    if (c.content.empty() && !c.tool_calls.empty()) message["content"] = nullptr;
    if (!c.reasoning.empty()) message["reasoning_content"] = c.reasoning;
    for (const ToolCallOut& call : c.tool_calls) message["tool_calls"].push_back(call_json(call));
    out["choices"].push_back({{"index", c.index},
                              {"message", std::move(message)},
                              {"logprobs", chat_logprobs(pointer(c.logprobs))},
                              {"finish_reason", finish_reason(c.ending, !c.tool_calls.empty())},
                              {"qvl", choice_facts_json(c.ending, c.grounding ? &*c.grounding : nullptr)}});
  }
  out["usage"] = usage_json(usage);
  out["qvl"] = request_facts_json(facts);
  return out;
}

Json ChatStream::chunk(int64_t choice, Json delta, const std::vector<TokenLogprob>* logprobs) const {
  Json one = {{"index", choice}, {"delta", std::move(delta)}, {"logprobs", chat_logprobs(logprobs)}, {"finish_reason", nullptr}};
  return stream_object(head_, "chat.completion.chunk", Json::array({std::move(one)}), include_usage_);
}

Json ChatStream::begin(int64_t choice) const {
  return chunk(choice, {{"role", "assistant"}, {"content", ""}, {"refusal", nullptr}}, nullptr);
}

Json ChatStream::content(int64_t choice, std::string_view text, const std::vector<TokenLogprob>* logprobs) const {
  return chunk(choice, {{"content", text}}, logprobs);
}

Json ChatStream::reasoning(int64_t choice, std::string_view text, const std::vector<TokenLogprob>* logprobs) const {
  return chunk(choice, {{"reasoning_content", text}}, logprobs);
}

Json ChatStream::tool_call(int64_t choice, int64_t index, const ToolCallOut& call, const std::vector<TokenLogprob>* logprobs) const {
  Json delta = {{"index", index}};
  delta.update(call_json(call));
  return chunk(choice, {{"tool_calls", Json::array({std::move(delta)})}}, logprobs);
}

Json ChatStream::tool_arguments(int64_t choice, int64_t index, std::string_view piece) const {
  Json delta = {{"index", index}, {"function", {{"arguments", piece}}}};
  return chunk(choice, {{"tool_calls", Json::array({std::move(delta)})}}, nullptr);
}

Json ChatStream::end(int64_t choice, const Ending& ending, bool has_tool_calls, const generate::Grounding* grounding,
                     const RequestFacts* facts, const std::vector<TokenLogprob>* logprobs) const {
  Json out = chunk(choice, Json::object(), logprobs);
  Json& one = out["choices"][0];
  one["finish_reason"] = finish_reason(ending, has_tool_calls);
  one["qvl"] = choice_facts_json(ending, grounding);
  if (facts != nullptr) out["qvl"] = request_facts_json(*facts);
  return out;
}

Json ChatStream::usage(const Usage& usage, const RequestFacts& facts) const {
  return usage_object(head_, "chat.completion.chunk", usage, facts);
}

Json text_completion(const ReplyHead& head, std::span<const TextChoice> choices, const Usage& usage, const RequestFacts& facts) {
  Json out = head_json(head, "text_completion");
  out["choices"] = Json::array();
  for (const TextChoice& c : choices) {
    out["choices"].push_back({{"index", c.index},
                              {"text", c.text},
                              {"logprobs", text_logprobs(pointer(c.logprobs), 0)},
                              {"finish_reason", finish_reason(c.ending, false)},
                              {"qvl", choice_facts_json(c.ending, nullptr)}});
  }
  out["usage"] = usage_json(usage);
  out["qvl"] = request_facts_json(facts);
  return out;
}

Json TextStream::piece(int64_t choice, std::string_view text, const std::vector<TokenLogprob>* logprobs, int64_t offset) const {
  Json one = {{"index", choice}, {"text", text}, {"logprobs", text_logprobs(logprobs, offset)}, {"finish_reason", nullptr}};
  return stream_object(head_, "text_completion", Json::array({std::move(one)}), include_usage_);
}

Json TextStream::end(int64_t choice, const Ending& ending, const RequestFacts* facts) const {
  Json out = piece(choice, "");
  Json& one = out["choices"][0];
  one["finish_reason"] = finish_reason(ending, false);
  one["qvl"] = choice_facts_json(ending, nullptr);
  if (facts != nullptr) out["qvl"] = request_facts_json(*facts);
  return out;
}

Json TextStream::usage(const Usage& usage, const RequestFacts& facts) const {
  return usage_object(head_, "text_completion", usage, facts);
}

Json model_object(std::string_view id, int64_t created) {
  return {{"id", id}, {"object", "model"}, {"created", created}, {"owned_by", "qvl"}};
}

Json model_list(std::span<const std::string> ids, int64_t created) {
  Json data = Json::array();
  for (const std::string& id : ids) data.push_back(model_object(id, created));
  return {{"object", "list"}, {"data", std::move(data)}};
}

std::string dump_json(const Json& object) {
  return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string sse_event(const Json& object) {
  return cat("data: ", dump_json(object), "\n\n");
}

std::string sse_error(const ApiError& error) {
  return sse_event(error.to_json());
}

}  // namespace qvl::serve
