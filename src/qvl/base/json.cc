#include "qvl/base/json.h"

#include <string>

#include "qvl/base/error.h"
#include "qvl/base/mapped_file.h"

namespace qvl {

Json parse_json(std::string_view text, std::string_view where) {
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::parse_error& e) {
    std::string reason = e.what();
    if (const size_t at = reason.find("parse error"); at != std::string::npos) reason = reason.substr(at);
    fail(ErrorCode::kFormat, where, "not valid JSON: " + reason);
  }
}

Json parse_json_file(const std::filesystem::path& path) {
  return parse_json(read_file(path, size_t{256} << 20), path.string());
}

}  // namespace qvl
