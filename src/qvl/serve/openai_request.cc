#include "qvl/serve/openai_request.h"

#include <algorithm>

#include "qvl/base/format.h"
#include "qvl/serve/json_fields.h"
#include "qvl/serve/openai_fields.h"
#include "qvl/serve/openai_messages.h"
#include "qvl/serve/openai_tools.h"
#include "qvl/serve/strict_json.h"

namespace qvl::serve {
namespace {

// Bounds that OpenAI's API has itself, or that it leaves open.
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxBiases = 1024;
constexpr int64_t kMaxTopLogprobs = 20;
constexpr int64_t kMaxCompletionLogprobs = 5;
constexpr int64_t kMaxTokensBound = INT32_MAX;
constexpr int64_t kMaxPriority = 1000;
constexpr int64_t kMaxTopK = INT32_MAX;
constexpr int64_t kCompletionMaxTokens = 16;
constexpr size_t kMaxMetadata = 16;
constexpr size_t kMaxMetadataKey = 64;
constexpr size_t kMaxMetadataValue = 512;

void parse_model(const FieldReader& fields, const ServerFacts& facts, CommonRequest& out) {
  out.model = fields.string("model").value_or("");
  if (out.model.empty() || facts.accept_any_model) return;
  if (std::find(facts.model_ids.begin(), facts.model_ids.end(), out.model) == facts.model_ids.end()) {
    throw model_not_found(out.model.substr(0, 100));
  }
}

void parse_sampling(const FieldReader& fields, CommonRequest& out) {
  generate::SamplingOverrides& s = out.sampling;
  s.temperature = fields.number("temperature", 0, 2);
  s.top_p = fields.number("top_p", 0, 1);
  s.top_k = fields.integer("top_k", -1, kMaxTopK);
  if (s.top_k == -1) s.top_k = 0;  // "off" in other servers' words
  s.min_p = fields.number("min_p", 0, 1);
  s.repetition_penalty = fields.number("repetition_penalty", 0.01, 10);
  s.presence_penalty = fields.number("presence_penalty", -2, 2);
  s.frequency_penalty = fields.number("frequency_penalty", -2, 2);
  if (const Json* seed = fields.find("seed")) {
    // All of 64 bits, signed or not.
    out.seed = seed->is_number_unsigned() ? seed->get<uint64_t>()
                                          : static_cast<uint64_t>(integer_value(*seed, fields.path("seed"), INT64_MIN, INT64_MAX));
  }
}

void parse_stop(const FieldReader& fields, CommonRequest& out) {
  const Json* stop = fields.find("stop");
  if (stop == nullptr) return;
  const std::string path = fields.path("stop");
  auto add = [&](const Json& value, const std::string& where) {
    const std::string& text = string_value(value, where);
    if (text.empty()) throw invalid_value(where, "expected at least one character, but got an empty string.");
    if (text.size() > kMaxStopBytes) {
      throw bad_request("string_above_max_length", where,
                        cat("Invalid '", where, "': string too long. Expected at most ", kMaxStopBytes, " bytes, but got ", text.size(), " instead."));
    }
    out.stop.push_back(text);
  };
  if (stop->is_string()) return add(*stop, path);
  if (!stop->is_array()) throw invalid_type(path, "a string or an array of strings", *stop);
  if (stop->size() > kMaxStops) {
    throw bad_request("array_above_max_length", path, cat("Invalid '", path, "': array too long. Expected at most ", kMaxStops, " strings, but got ", stop->size(), " instead."));
  }
  for (size_t i = 0; i < stop->size(); ++i) add((*stop)[i], index_path(path, i));
}

void parse_logit_bias(const FieldReader& fields, const ServerFacts& facts, CommonRequest& out) {
  const Json* bias = fields.object("logit_bias");
  if (bias == nullptr) return;
  const std::string path = fields.path("logit_bias");
  if (bias->size() > kMaxBiases) throw invalid_value(path, cat("expected at most ", kMaxBiases, " tokens, but got ", bias->size(), "."));
  for (const auto& [key, value] : bias->items()) {
    const std::string where = join_path(path, key.substr(0, 32));
    const bool digits = !key.empty() && key.size() <= 9 && key.find_first_not_of("0123456789") == std::string::npos;
    const int64_t id = digits ? std::stoll(key) : -1;
    if (id < 0 || (facts.vocabulary > 0 && id >= facts.vocabulary)) {
      throw invalid_value(where, cat("expected the id of a token", facts.vocabulary > 0 ? cat(" below ", facts.vocabulary) : std::string(), " as key, but got ", shown(key), "."));
    }
    out.logit_bias.emplace_back(static_cast<int32_t>(id), number_value(value, where, -100, 100));
  }
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  for (size_t i = 1; i < out.logit_bias.size(); ++i) {
    if (out.logit_bias[i].first == out.logit_bias[i - 1].first) throw invalid_value(path, cat("the token ", out.logit_bias[i].first, " stands there twice."));
  }
}

void parse_stream(const FieldReader& fields, CommonRequest& out) {
  out.stream = fields.boolean("stream", false);
  const Json* options = fields.find("stream_options");
  if (options == nullptr) return;
  const FieldReader inner(*options, fields.path("stream_options"), fields_of(ObjectKind::kStreamOptions));
  if (!out.stream) throw invalid_value(fields.path("stream_options"), "only allowed when 'stream' is true.");
  out.include_usage = inner.boolean("include_usage", false);
  if (inner.boolean("include_obfuscation", false)) throw unsupported_value(inner.path("include_obfuscation"), "streams are not padded here.");
}

void check_answer_limit(const std::string& path, const ServerFacts& facts, int64_t tokens) {
  if (facts.max_answer_tokens > 0 && tokens > facts.max_answer_tokens) {
    throw bad_request("integer_above_max_value", path,
                      cat("Invalid '", path, "': integer above maximum value. This server answers with at most ", facts.max_answer_tokens, " tokens, but got ", tokens, "."));
  }
}

void parse_common(const FieldReader& fields, const ServerFacts& facts, CommonRequest& out) {
  parse_model(fields, facts, out);
  parse_sampling(fields, out);
  parse_stop(fields, out);
  parse_logit_bias(fields, facts, out);
  parse_stream(fields, out);
  out.max_tokens = fields.integer("max_tokens", 1, kMaxTokensBound);
  if (out.max_tokens) check_answer_limit(fields.path("max_tokens"), facts, *out.max_tokens);
  out.n = fields.integer("n", 1, facts.max_choices).value_or(1);
  out.ignore_eos = fields.boolean("ignore_eos", false);
  out.repetition_guard = fields.boolean("repetition_guard", true);
  out.priority = fields.integer("priority", 0, kMaxPriority).value_or(0);
  (void)fields.string("user");
}

void parse_max_completion_tokens(const FieldReader& fields, const ServerFacts& facts, CommonRequest& out) {
  const std::optional<int64_t> tokens = fields.integer("max_completion_tokens", 1, kMaxTokensBound);
  if (!tokens) return;
  check_answer_limit(fields.path("max_completion_tokens"), facts, *tokens);
  if (out.max_tokens && *out.max_tokens != *tokens) {
    throw invalid_value(fields.path("max_tokens"), "'max_tokens' and 'max_completion_tokens' say different things; send one of them.");
  }
  out.max_tokens = tokens;
}

void parse_logprobs(const FieldReader& fields, ChatRequest& out) {
  out.logprobs = fields.boolean("logprobs", false);
  const std::optional<int64_t> top = fields.integer("top_logprobs", 0, kMaxTopLogprobs);
  if (top && *top > 0 && !out.logprobs) throw invalid_value(fields.path("top_logprobs"), "only allowed when 'logprobs' is true.");
  out.top_logprobs = top.value_or(0);
}

// Fields of OpenAI's service that cannot change an answer: checked, and without effect.
void check_harmless(const FieldReader& fields) {
  if (const Json* metadata = fields.object("metadata")) {
    const std::string path = fields.path("metadata");
    if (metadata->size() > kMaxMetadata) throw invalid_value(path, cat("expected at most ", kMaxMetadata, " pairs, but got ", metadata->size(), "."));
    for (const auto& [key, value] : metadata->items()) {
      if (key.size() > kMaxMetadataKey) throw invalid_value(path, cat("expected keys of at most ", kMaxMetadataKey, " bytes, but got ", shown(key), "."));
      if (string_value(value, join_path(path, key)).size() > kMaxMetadataValue) {
        throw invalid_value(join_path(path, key), cat("expected at most ", kMaxMetadataValue, " bytes."));
      }
    }
  }
  if (fields.boolean("store", false)) throw unsupported_value(fields.path("store"), "nothing is stored here.");
  const std::string tier = fields.choice("service_tier", {"auto", "default", "flex", "scale", "priority"}).value_or("auto");
  if (tier != "auto" && tier != "default") throw unsupported_value(fields.path("service_tier"), "there is one tier here: 'auto' or 'default'.");
  (void)fields.string("safety_identifier");
  (void)fields.string("prompt_cache_key");
  if (fields.choice("prompt_cache_retention", {"in_memory", "in-memory", "24h"}).value_or("in_memory") == "24h") {
    throw unsupported_value(fields.path("prompt_cache_retention"), "prompts are kept while there is room, for no promised time; expected 'in_memory'.");
  }
  if (fields.choice("verbosity", {"low", "medium", "high"}).value_or("medium") != "medium") {
    throw unsupported_value(fields.path("verbosity"), "the model cannot be told; say it in the prompt.");
  }
  if (const Json* modalities = fields.array("modalities")) {
    const std::string path = fields.path("modalities");
    for (size_t i = 0; i < modalities->size(); ++i) {
      const std::string& word = string_value((*modalities)[i], index_path(path, i));
      if (word != "text") throw unsupported_value(index_path(path, i), cat("answers are 'text' only, but got ", shown(word), "."));
    }
  }
}

void refuse_unsupported(const FieldReader& fields) {
  fields.refuse("audio", "this server makes no audio.");
  fields.refuse("prediction", "predicted output is not taken; guesses are made from the prompt and the answer themselves.");
  fields.refuse("web_search_options", "this server searches nothing.");
  fields.refuse("functions", "deprecated; use 'tools'.");
  fields.refuse("function_call", "deprecated; use 'tool_choice'.");
}

image::PixelOverrides parse_request_pixels(const FieldReader& fields, const ServerFacts& facts) {
  const image::PixelOverrides own = parse_pixels(fields, facts);
  const Json* kwargs = fields.find("mm_processor_kwargs");
  if (kwargs == nullptr) return own;
  const FieldReader inner(*kwargs, fields.path("mm_processor_kwargs"), fields_of(ObjectKind::kMmProcessorKwargs));
  const image::PixelOverrides other = parse_pixels(inner, facts);
  if (!other.min_pixels && !other.max_pixels) return own;
  if (own.min_pixels || own.max_pixels) {
    throw invalid_value(inner.path(), "'min_pixels' and 'max_pixels' stand in the request itself already; send them once.");
  }
  return other;
}

// Whether the answer begins with reasoning, and "Picture 1: ".
void parse_template(const FieldReader& fields, const ServerFacts& facts, ChatRequest& out) {
  out.add_vision_id = fields.boolean("add_vision_id", false);
  std::optional<bool> think;
  std::string think_path = fields.path("reasoning_effort");
  if (const auto effort = fields.choice("reasoning_effort", {"none", "minimal", "low", "medium", "high", "xhigh"})) {
    if (*effort != "none") {
      throw unsupported_value(think_path, "reasoning has no degrees here: 'none' turns it off; leave the field out otherwise.");
    }
    think = false;
  }
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    const FieldReader inner(*kwargs, fields.path("chat_template_kwargs"), fields_of(ObjectKind::kChatTemplateKwargs));
    const std::optional<bool> enable = inner.boolean("enable_thinking");
    if (enable && think && *enable != *think) {
      throw invalid_value(inner.path("enable_thinking"), "contradicts 'reasoning_effort'.");
    }
    if (enable) {
      think = enable;
      think_path = inner.path("enable_thinking");
    }
    if (inner.boolean("add_vision_id", false)) out.add_vision_id = true;
  }
  const bool thinks = facts.variant == text::TemplateVariant::kThinking;
  if (!thinks && think.value_or(false)) {
    throw unsupported_value(think_path, "the model that is served has no thinking mode (it is an Instruct model).");
  }
  // An answer in JSON begins at once: what stands in a block of reasoning is no answer.
  out.thinking = thinks && think.value_or(out.response_format.kind == ResponseFormat::Kind::kText);
}

CompletionRequest::Prompt parse_id_prompt(const Json& ids, const std::string& path, const ServerFacts& facts) {
  std::vector<int32_t> out;
  out.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const int64_t high = facts.vocabulary > 0 ? facts.vocabulary - 1 : INT32_MAX;
    out.push_back(static_cast<int32_t>(integer_value(ids[i], index_path(path, i), 0, high)));
  }
  if (out.empty()) throw bad_request("empty_array", path, cat("Invalid '", path, "': empty array. Expected at least one token."));
  if (facts.context_tokens > 0 && static_cast<int64_t>(out.size()) >= facts.context_tokens) {
    throw bad_request("context_length_exceeded", path,
                      cat("This model's maximum context length is ", facts.context_tokens, " tokens, but the prompt has ", out.size(), "."));
  }
  return out;
}

std::string text_prompt(const Json& value, const std::string& path) {
  const std::string& text = string_value(value, path);
  if (text.empty()) throw invalid_value(path, "expected at least one character, but got an empty string.");
  return text;
}

void parse_prompts(const FieldReader& fields, const ServerFacts& facts, CompletionRequest& out) {
  const Json& prompt = fields.require("prompt");
  const std::string path = fields.path("prompt");
  if (prompt.is_string()) {
    out.prompts.push_back(text_prompt(prompt, path));
    return;
  }
  if (!prompt.is_array()) throw invalid_type(path, "a string, an array of strings or an array of token ids", prompt);
  if (prompt.empty()) throw bad_request("empty_array", path, cat("Invalid '", path, "': empty array. Expected at least one prompt."));
  if (prompt[0].is_number()) {
    out.prompts.push_back(parse_id_prompt(prompt, path, facts));
    return;
  }
  const bool texts = prompt[0].is_string();
  if (static_cast<int64_t>(prompt.size()) * out.n > facts.max_choices) {
    throw bad_request("array_above_max_length", path,
                      cat("Invalid '", path, "': this server gives at most ", facts.max_choices, " choices, but got ", prompt.size(), " prompts with n = ", out.n, "."));
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    const std::string where = index_path(path, i);
    if (texts) {
      out.prompts.push_back(text_prompt(prompt[i], where));
    } else {
      if (!prompt[i].is_array()) throw invalid_type(where, "an array of token ids", prompt[i]);
      out.prompts.push_back(parse_id_prompt(prompt[i], where, facts));
    }
  }
}

}  // namespace

ChatRequest parse_chat_request(std::string_view body, const ServerFacts& facts) {
  const Json json = parse_strict_json(body);
  const FieldReader fields(json, "", fields_of(ObjectKind::kChatRequest));
  refuse_unsupported(fields);
  ChatRequest out;
  parse_common(fields, facts, out);
  parse_max_completion_tokens(fields, facts, out);
  parse_logprobs(fields, out);
  check_harmless(fields);
  parse_tools(fields, facts, out);
  parse_response_format(fields, facts, out);
  parse_template(fields, facts, out);
  if (const auto grounding = fields.choice("grounding", {"pixels"})) out.grounding = true;
  Conversation conversation = parse_messages(fields.require("messages"), fields.path("messages"), facts, parse_request_pixels(fields, facts));
  out.messages = std::move(conversation.messages);
  out.media = std::move(conversation.media);
  return out;
}

CompletionRequest parse_completion_request(std::string_view body, const ServerFacts& facts) {
  const Json json = parse_strict_json(body);
  const FieldReader fields(json, "", fields_of(ObjectKind::kCompletionRequest));
  CompletionRequest out;
  parse_common(fields, facts, out);
  if (!out.max_tokens) out.max_tokens = kCompletionMaxTokens;
  parse_prompts(fields, facts, out);
  out.logprobs = fields.integer("logprobs", 0, kMaxCompletionLogprobs);
  out.echo = fields.boolean("echo", false);
  if (out.echo && out.logprobs) throw unsupported_value(fields.path("echo"), "the prompt's own log probabilities are not computed; ask for one of 'echo' and 'logprobs'.");
  if (const auto best_of = fields.integer("best_of", 1, facts.max_choices); best_of && *best_of != out.n) {
    throw unsupported_value(fields.path("best_of"), "answers are not ranked; expected the value of 'n'.");
  }
  if (!fields.string("suffix").value_or("").empty()) throw unsupported_value(fields.path("suffix"), "the model only continues a text; it fills no gaps.");
  return out;
}

}  // namespace qvl::serve
