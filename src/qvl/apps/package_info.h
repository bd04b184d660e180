// What `qvl info` tells about a package.
#pragma once

#include <filesystem>
#include <string>

#include "qvl/base/json.h"

namespace qvl::apps {

// {"folder", "source", "layout", "opset", "plain", "static", "stages", "graphs", "files", "quantisation",
// "parity", "onnxruntime", "machine"}. Throws what opening a package throws; without ONNX Runtime
// "onnxruntime" holds the reason.
Json describe_package(const std::filesystem::path& folder);
std::string package_text(const Json& facts);

}  // namespace qvl::apps
