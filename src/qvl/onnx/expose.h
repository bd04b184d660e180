// Makes values inside a serialised model visible as outputs, for traces. The model on disk stays as it is.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qvl::onnx {

struct ExposedModel {
  std::string bytes;               // a ModelProto
  std::vector<std::string> names;  // those that were found, in the order asked for: its last outputs, float32
};

// Looks among the values that nodes of the main graph make (not those of subgraphs) and that are no outputs
// yet. Throws kFormat, naming `where`, when `model` is no ModelProto.
ExposedModel expose_values(std::string_view model, std::span<const std::string> wanted,
                           std::string_view where);

}  // namespace qvl::onnx
