// The files that onnxruntime-genai wants beside the graphs: genai_config.json and processor_config.json
// (docs/onnx.md).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/export/input.h"

namespace qvl::exporting {

// (file name, content). Reads generation and processor files of the checkpoint; throws what their loaders
// throw.
std::vector<std::pair<std::string, Json>> genai_files(const Input& input);

}  // namespace qvl::exporting
