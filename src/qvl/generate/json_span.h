// Where JSON stands in the text of a model: whole values are found by their syntax, without being read, so that what is
// around them, behind them or cut off does not matter.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace qvl::generate {

// The byte behind the JSON value (any kind) that begins at text[begin]; nothing when there is none, when it is cut off,
// or when it nests deeper than max_depth. Strings are held to JSON's escapes, not to UTF-8.
std::optional<size_t> json_value_end(std::string_view text, size_t begin, int max_depth = 64);

// The same with the reason when there is no whole value: more text could still make it one, or nothing could.
struct JsonScan {
  enum class State { kWhole, kCutOff, kBroken };
  State state = State::kBroken;
  size_t end = 0;  // kWhole: the byte behind it
};
JsonScan scan_json_value(std::string_view text, size_t begin, int max_depth = 64);

// The keys (as written, without quotes) and values of the JSON object that is the whole of `text` but for white space
// around it; nothing when it is not one.
using JsonMembers = std::vector<std::pair<std::string_view, std::string_view>>;
std::optional<JsonMembers> json_members(std::string_view text, int max_depth = 64);

}  // namespace qvl::generate
