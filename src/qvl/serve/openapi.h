// The description of the HTTP interface, OpenAPI 3.1: openapi.json beside this file, built in.
#pragma once

#include <string>
#include <string_view>

#include "qvl/serve/openai_types.h"

namespace qvl::serve {

// The JSON text, with the limits of ServerFacts' defaults. "info.version" is the interface's, not the program's.
std::string_view openapi_json();
// With the limits and abilities of this server, so that what the parser takes is what the description says. Made once, at
// the start.
std::string openapi_json(const ServerFacts& facts);

}  // namespace qvl::serve
