// A user's JSON schema made ready for the grammar engine: bounded, references inside oneOf resolved,
// whitespace fixed. Internal to this room.
#pragma once

#include <string>
#include <string_view>

#include "qvl/base/json.h"
#include "qvl/grammar/grammar.h"

namespace qvl::grammar {

// What a schema may cost. Beyond them compiling could take minutes or gigabytes; schemas of public interfaces
// stay far below.
inline constexpr size_t kMaxSchemaBytes = size_t{256} << 10;  // as compact JSON, about
inline constexpr int kMaxSchemaDepth = 64;
inline constexpr int64_t kMaxSchemaPatterns = 200;       // pattern, format, patternProperties
inline constexpr int64_t kMaxSchemaAlternatives = 5000;  // entries of enum, anyOf, oneOf
inline constexpr int64_t kMaxSchemaMultiple =
    50'000;  // common multiple of all multipleOf, in their last decimal place
inline constexpr int64_t kMaxSchemaRepeats = 1'000'000;  // minLength, maxLength, minItems, ...

// The schema as the engine reads it. `where` names it in messages ("response_format"). Throws
// kInvalidArgument for what is no schema, kLimit above the bounds. Keywords are the engine's business.
std::string prepare_schema(const Json& schema, const JsonOptions& options, std::string_view where);

}  // namespace qvl::grammar
