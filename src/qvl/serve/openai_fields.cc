#include "qvl/serve/openai_fields.h"

#include <array>

#include "qvl/serve/openai_request.h"

namespace qvl::serve {
namespace {

using Names = std::string_view;

// Fields that chat and plain completions share.
#define QVL_COMMON_FIELDS                                                                                        \
  "model", "frequency_penalty", "presence_penalty", "temperature", "top_p", "top_k", "min_p",                    \
      "repetition_penalty", "n", "seed", "stop", "max_tokens", "logprobs", "logit_bias", "stream",               \
      "stream_options", "ignore_eos", "repetition_guard", "priority", "user"

constexpr Names kChatRequest[] = {
    QVL_COMMON_FIELDS,
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "chat_template_kwargs", "mm_processor_kwargs", "min_pixels", "max_pixels", "grounding", "add_vision_id",
    // without an effect on an answer
    "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "verbosity", "modalities",
    // refused
    "audio", "prediction", "web_search_options", "functions", "function_call"};
constexpr Names kCompletionRequest[] = {QVL_COMMON_FIELDS, "prompt", "echo", "best_of", "suffix"};
constexpr Names kStreamOptions[] = {"include_usage", "include_obfuscation"};
constexpr Names kSystemMessage[] = {"role", "content", "name"};
constexpr Names kUserMessage[] = {"role", "content", "name"};
constexpr Names kAssistantMessage[] = {"role", "content", "name", "refusal", "tool_calls", "reasoning_content", "annotations", "audio", "function_call"};
constexpr Names kToolMessage[] = {"role", "content", "name", "tool_call_id"};
constexpr Names kTextPart[] = {"type", "text"};
constexpr Names kRefusalPart[] = {"type", "refusal"};
constexpr Names kImageUrlPart[] = {"type", "image_url", "detail", "min_pixels", "max_pixels"};
constexpr Names kImageUrl[] = {"url", "detail", "max_dynamic_patch"};
constexpr Names kInputImagePart[] = {"type", "image_url", "detail", "file_id"};
constexpr Names kImagePart[] = {"type", "image", "detail", "min_pixels", "max_pixels"};
constexpr Names kVideoPart[] = {"type", "video", "fps", "min_pixels", "max_pixels"};
constexpr Names kToolCall[] = {"id", "type", "function", "index"};
constexpr Names kFunctionCall[] = {"name", "arguments"};
constexpr Names kTool[] = {"type", "function"};
constexpr Names kFunction[] = {"name", "description", "parameters", "strict"};
constexpr Names kToolChoice[] = {"type", "function"};
constexpr Names kToolChoiceFunction[] = {"name"};
constexpr Names kAllowedToolsChoice[] = {"type", "allowed_tools"};
constexpr Names kAllowedTools[] = {"mode", "tools"};
constexpr Names kResponseFormat[] = {"type", "json_schema"};
constexpr Names kJsonSchemaFormat[] = {"name", "description", "schema", "strict"};
constexpr Names kChatTemplateKwargs[] = {"enable_thinking", "add_vision_id"};
constexpr Names kMmProcessorKwargs[] = {"min_pixels", "max_pixels"};

#undef QVL_COMMON_FIELDS

// In the order of ObjectKind.
constexpr ObjectFields kObjects[] = {
    {"ChatRequest", kChatRequest},
    {"CompletionRequest", kCompletionRequest},
    {"StreamOptions", kStreamOptions},
    {"SystemMessage", kSystemMessage},
    {"UserMessage", kUserMessage},
    {"AssistantMessage", kAssistantMessage},
    {"ToolMessage", kToolMessage},
    {"TextPart", kTextPart},
    {"RefusalPart", kRefusalPart},
    {"ImageUrlPart", kImageUrlPart},
    {"ImageUrl", kImageUrl},
    {"InputImagePart", kInputImagePart},
    {"ImagePart", kImagePart},
    {"VideoPart", kVideoPart},
    {"ToolCall", kToolCall},
    {"FunctionCall", kFunctionCall},
    {"Tool", kTool},
    {"Function", kFunction},
    {"ToolChoice", kToolChoice},
    {"ToolChoiceFunction", kToolChoiceFunction},
    {"AllowedToolsChoice", kAllowedToolsChoice},
    {"AllowedTools", kAllowedTools},
    {"ResponseFormat", kResponseFormat},
    {"JsonSchemaFormat", kJsonSchemaFormat},
    {"ChatTemplateKwargs", kChatTemplateKwargs},
    {"MmProcessorKwargs", kMmProcessorKwargs},
};
static_assert(std::size(kObjects) == static_cast<size_t>(ObjectKind::kMmProcessorKwargs) + 1);

}  // namespace

std::span<const std::string_view> fields_of(ObjectKind kind) {
  return kObjects[static_cast<size_t>(kind)].fields;
}

std::span<const ObjectFields> known_objects() {
  return kObjects;
}

}  // namespace qvl::serve
