// Requests of OpenAI's API as the server works with them: checked, complete, without JSON but where the schema of a
// client is passed on. Made by openai_request.h, read by the scheduler. docs/server.md lists every field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/generate/assets.h"
#include "qvl/image/processor_config.h"
#include "qvl/text/chat.h"

namespace qvl::serve {

// What a request is checked against: the model that is served, and the operator's limits.
struct ServerFacts {
  // Names that a request may ask for; the first is the one that replies carry. At least one.
  std::vector<std::string> model_ids;
  // A program written for another server keeps its model name: any name is answered by the one model, and the reply
  // says which it was. False: 404 model_not_found.
  bool accept_any_model = true;
  text::TemplateVariant variant = text::TemplateVariant::kInstruct;
  // json_object, json_schema, tool_choice "required" or a name, strict tools: need a grammar engine. False: 400.
  bool has_grammar = true;
  int64_t vocabulary = 0;         // ids below it exist: bounds logit_bias and prompts of ids; 0: not checked
  int64_t context_tokens = 0;     // bounds prompts of ids; 0: not checked
  int64_t max_choices = 8;        // n, and n times the number of prompts
  int64_t max_answer_tokens = 0;  // of one choice; 0: only the context bounds it
  int64_t max_media = 64;         // pictures and videos of a request
  int64_t max_frames = 768;       // of a video
  int64_t max_pixels = 16777216;  // bounds min_pixels and max_pixels of a request
};

// One picture or video of a conversation, in the order of the message parts.
struct MediaRef {
  bool is_video = false;
  std::string url;                  // of a picture: data:, http(s):, file: or what the client wrote; never empty
  std::vector<std::string> frames;  // of a video: URLs of its frames in order, at least one
  // Frames per second at which these frames were taken; absent: the model's default assumption.
  std::optional<double> fps;
  // "auto", "low", "high", "original": never changes the picture, is reported back in the reply.
  std::string detail = "auto";
  image::PixelOverrides pixels;  // of the part, else of the request
  std::string param;             // where its URL stands in the request, for errors; of frame i: param + "[i]"
  size_t message = 0;            // index into ChatRequest::messages
};

struct ToolSpec {
  std::string name;
  std::string description;
  Json parameters;      // a JSON schema (an object); null: a function without parameters
  bool strict = false;  // the client asked that arguments match the schema
};

struct ToolChoice {
  enum class Kind {
    kNone,      // no tools in the prompt, none looked for in the answer
    kAuto,      // the model may call
    kRequired,  // the answer is one or more calls of any of `tools`
    kNamed,     // the answer is a call of `name`
  };
  Kind kind = Kind::kNone;
  std::string name;
};

struct ResponseFormat {
  enum class Kind { kText, kJsonObject, kJsonSchema };
  Kind kind = Kind::kText;
  std::string name;     // kJsonSchema
  Json schema;          // kJsonSchema: an object
  bool strict = false;  // kJsonSchema; the answer is held to the schema either way
};

// What chat and plain completions have in common.
struct CommonRequest {
  std::string model;  // as the client wrote it; empty when it wrote none
  generate::SamplingOverrides sampling;
  std::optional<uint64_t> seed;      // choice i draws with seed + i; absent: a new one every time
  std::optional<int64_t> max_tokens;  // absent (chat): generate::kDefaultMaxTokens, as `qvl run`
  std::vector<std::string> stop;     // none of them empty
  int64_t n = 1;                     // choices (per prompt)
  std::vector<std::pair<int32_t, double>> logit_bias;  // ascending ids, -100..100, added before sampling
  bool stream = false;
  bool include_usage = false;  // a last chunk with the usage; only with stream
  bool ignore_eos = false;
  bool repetition_guard = true;
  int64_t priority = 0;  // 0..1000, lower ones first
};

struct ChatRequest : CommonRequest {
  // As the template renders them: developer is system, system messages that lead are one, results of tools stand in the
  // order of the calls (the template shows no ids). Pictures stand only where the template shows them.
  std::vector<text::Message> messages;
  std::vector<MediaRef> media;  // one per picture or video part, in the order of the parts
  bool logprobs = false;
  int64_t top_logprobs = 0;  // 0..20
  // Tools that may be called; empty with tool_choice none. `tools_json` is the same for ChatOptions::tools: the client's
  // objects as they came, null when there are none.
  std::vector<ToolSpec> tools;
  Json tools_json;
  ToolChoice tool_choice;
  bool parallel_tool_calls = true;  // false: the answer ends after one call
  ResponseFormat response_format;
  // Whether the answer begins in a <think> block. Always false for Instruct. For Thinking true unless the client turned
  // it off (enable_thinking false, reasoning_effort "none") or asked for JSON without asking for thinking: then the
  // prompt has to end with the block closed, "<think>\n\n</think>\n\n".
  bool thinking = false;
  bool grounding = false;      // "grounding": "pixels"
  bool add_vision_id = false;  // "Picture 1: " before each
};

struct CompletionRequest : CommonRequest {
  // Text is plain text: "<|im_start|>" in it are ordinary characters, as everywhere. Ids are taken as they are; visual
  // placeholders among them are refused by the parser's caller, who knows them.
  using Prompt = std::variant<std::string, std::vector<int32_t>>;
  std::vector<Prompt> prompts;          // at least one; choice c of prompt p has index p * n + c
  std::optional<int64_t> logprobs;      // 0..5 alternatives
  bool echo = false;                    // the prompt before the answer; never together with logprobs
};

}  // namespace qvl::serve
