// The JSON of a body that anyone may have sent: bounded depth and number of values, no duplicate keys, no invalid
// UTF-8, no lone surrogates, no number that a double cannot hold.
#pragma once

#include <cstdint>
#include <string_view>

#include "qvl/base/json.h"

namespace qvl::serve {

struct JsonLimits {
  int64_t max_depth = 64;        // nested arrays and objects
  int64_t max_values = 1 << 20;  // of all kinds, keys not counted
};

// Throws ApiError 400: code "invalid_json" with the byte where it went wrong, or the path of a duplicate key in `param`
// and code "duplicate_key".
Json parse_strict_json(std::string_view body, const JsonLimits& limits = {});

}  // namespace qvl::serve
