// JSON as the chat template writes it: Python's json.dumps(value, ensure_ascii=False) with key order kept
// (spec 7.4).
#pragma once

#include <string>

#include "qvl/base/json.h"

namespace qvl::text {

// Separators ", " and ": ", non-ASCII as it is, floats in Python's shortest form. (Integers beyond 64 bits
// became floats when they were parsed; Python would have kept them.)
std::string dump_python_json(const Json& value);

}  // namespace qvl::text
