// JSON bodies to requests, strictly: every field is implemented, or accepted because it cannot change an answer, or
// refused with a 400 that names it. Nothing is ignored in silence (docs/server.md).
#pragma once

#include <span>
#include <string_view>

#include "qvl/serve/api_error.h"
#include "qvl/serve/openai_types.h"

namespace qvl::serve {

// POST /v1/chat/completions. Throws ApiError: 400 with the JSON path in `param` ("messages[2].content[0].image_url.url"),
// 404 for a model that is not served. The body is UTF-8; its size is the caller's to bound.
ChatRequest parse_chat_request(std::string_view body, const ServerFacts& facts);

// POST /v1/completions, likewise.
CompletionRequest parse_completion_request(std::string_view body, const ServerFacts& facts);

// The fields that the parser knows of each kind of object, under the name that openapi.json has it; those that are
// always refused included. What stands in neither is an unknown parameter.
struct ObjectFields {
  std::string_view schema;
  std::span<const std::string_view> fields;
};
std::span<const ObjectFields> known_objects();

}  // namespace qvl::serve
