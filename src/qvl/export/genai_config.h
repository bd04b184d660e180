// The files that onnxruntime-genai wants beside the graphs: genai_config.json and processor_config.json
// (docs/onnx.md).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/source/source.h"

namespace qvl::exporting {

using source::Source;

// (file name, content). Reads generation and processor files of the checkpoint; throws what their loaders
// throw.
std::vector<std::pair<std::string, Json>> genai_files(const Source& source);

}  // namespace qvl::exporting
