// "tools", "tool_choice" and "response_format" of a chat request (openai_request.h).
#pragma once

#include "qvl/serve/json_fields.h"
#include "qvl/serve/openai_types.h"

namespace qvl::serve {

// Fills tools, tools_json, tool_choice, parallel_tool_calls and response_format. Throws ApiError.
void parse_tools(const FieldReader& fields, const ServerFacts& facts, ChatRequest& request);
void parse_response_format(const FieldReader& fields, const ServerFacts& facts, ChatRequest& request);

}  // namespace qvl::serve
