// The fields of every object that a request may hold, in one place: the parser refuses what stands in none of them, and
// a test holds openapi.json against them. Names are those of the schemas there.
#pragma once

#include <span>
#include <string_view>

namespace qvl::serve {

enum class ObjectKind {
  kChatRequest,
  kCompletionRequest,
  kStreamOptions,
  kSystemMessage,  // role developer too
  kUserMessage,
  kAssistantMessage,
  kToolMessage,
  kTextPart,
  kRefusalPart,
  kImageUrlPart,
  kImageUrl,
  kInputImagePart,
  kImagePart,
  kVideoPart,
  kToolCall,
  kFunctionCall,
  kTool,
  kFunction,
  kToolChoice,
  kToolChoiceFunction,
  kAllowedToolsChoice,
  kAllowedTools,
  kResponseFormat,
  kJsonSchemaFormat,
  kChatTemplateKwargs,
  kMmProcessorKwargs,
};

// Those that are always refused included: they may be there as null.
std::span<const std::string_view> fields_of(ObjectKind kind);

}  // namespace qvl::serve
