// The grammar of one tool call after its token <tool_call>, in the engine's language. Internal to this room.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "qvl/grammar/grammar.h"

namespace qvl::grammar {

// "\n{"name": NAME, "arguments": ARGUMENTS}\n" and the token `close_id`, for the tools that `choice` allows:
// what the chat template writes between <tool_call> and </tool_call> (spec 7.4). Throws as
// GrammarEngine::tool_calls does.
std::string tool_call_grammar(std::span<const Tool> tools, const ToolChoice& choice, int32_t close_id);

}  // namespace qvl::grammar
