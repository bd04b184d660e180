// JSON: nlohmann-json under one name, with our errors. Large numeric files do not pass through here.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace qvl {

// Keeps the order of keys (tool schemas are rendered as they came).
using Json = nlohmann::ordered_json;

// Throws kFormat "[where] not valid JSON: ... at byte N".
Json parse_json(std::string_view text, std::string_view where);
// Reads at most 256 MiB; throws kNotFound, kIo, kFormat.
Json parse_json_file(const std::filesystem::path& path);

}  // namespace qvl
