// Reads a .onnx file for inspection: what goes in and out, which operators it has, where its weights are, and
// whether they can be there. `qvl info` and `qvl verify` use it; weights themselves are not loaded.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/onnx/graph_builder.h"

namespace qvl::onnx {

// An input or output of the graph. A dimension that the file leaves open has the name "?".
struct ValueInfo {
  std::string name;
  std::string
      type;  // "F32", "I64", ...; "UINT4" and other types that DType has not, by ONNX's name; "?" if none
  Dims dims;

  // "F32 [batch, 4]"
  std::string describe() const;
};

struct Initializer {
  std::string name;
  std::string type;  // as above
  Shape shape;
  uint64_t bytes = 0;     // from type and shape
  ExternalData external;  // `file` empty: the bytes are inside the .onnx file
};

struct ModelFile {
  std::filesystem::path path;
  int64_t ir_version = 0;
  std::string producer;                   // "qvl 0.1.0"
  std::map<std::string, int64_t> opsets;  // domain -> version; "" is the standard one
  std::map<std::string, std::string> metadata;
  std::map<std::string, int64_t> operators;  // "domain.operator" -> nodes, subgraphs included
  std::vector<ValueInfo> inputs;             // without initializers
  std::vector<ValueInfo> outputs;
  std::vector<Initializer> initializers;  // subgraphs included

  // Throws kNotFound, kIo, kLimit (2 GiB), kFormat for bytes that are no model or initializers that
  // contradict themselves: a negative extent, an external place whose file is not a plain name, an offset or
  // length that is no number or not the length that type and shape ask for.
  static ModelFile read(const std::filesystem::path& path);
  // The same from bytes; `where` stands for the path.
  static ModelFile parse(std::string_view bytes, const std::filesystem::path& where);

  // That every external initializer lies within its file, beside the model. Throws kNotFound for a missing
  // file, kMismatch naming model, initializer and file for a place behind its end.
  void check_external_data() const;
  // Bytes of the initializers, inside and outside of the file; one that shares its place counts once.
  uint64_t weight_bytes() const;
};

}  // namespace qvl::onnx
