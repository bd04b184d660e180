#include "qvl/onnx/model_file.h"

#include <charconv>
#include <optional>
#include <set>
#include <tuple>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"
#include "qvl/onnx/proto.h"

namespace qvl::onnx {
namespace {

struct ElementType {
  std::string name;
  uint64_t bits = 0;  // 0: not known here
};

ElementType element_type(int32_t type) {
  for (const DType known :
       {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64, DType::kI32, DType::kI16,
        DType::kI8, DType::kU64, DType::kU32, DType::kU16, DType::kU8, DType::kBool}) {
    if (proto_type(known) == type) return {std::string(dtype_name(known)), 8 * dtype_size_bytes(known)};
  }
  if (type == kUint4) return {"UINT4", 4};
  if (type == kUint4 + 1) return {"INT4", 4};
  if (::onnx::TensorProto_DataType_IsValid(type) && type != 0) {
    return {::onnx::TensorProto_DataType_Name(static_cast<::onnx::TensorProto::DataType>(type)), 0};
  }
  return {type == 0 ? "?" : fmt::format("type {}", type), 0};
}

std::string shown(const std::filesystem::path& path) {
  return path.string();
}

ValueInfo value_info(const ::onnx::ValueInfoProto& proto) {
  ValueInfo info{proto.name(), "?", {}};
  if (!proto.type().has_tensor_type()) return info;
  const ::onnx::TypeProto::Tensor& tensor = proto.type().tensor_type();
  info.type = element_type(tensor.elem_type()).name;
  for (const auto& dim : tensor.shape().dim()) {
    if (dim.has_dim_value()) {
      info.dims.emplace_back(dim.dim_value());
    } else {
      info.dims.emplace_back(dim.dim_param().empty() ? std::string("?") : dim.dim_param());
    }
  }
  return info;
}

uint64_t parse_number(const std::string& text, const std::string& where, std::string_view what) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    fail(ErrorCode::kFormat, where, what, "a number of bytes", "'" + text + "'");
  }
  return number;
}

Initializer initializer(const ::onnx::TensorProto& proto, const std::filesystem::path& model) {
  const std::string where = fmt::format("{}: initializer '{}'", shown(model), proto.name());
  const ElementType type = element_type(proto.data_type());
  Initializer made{proto.name(), type.name, Shape(proto.dims().begin(), proto.dims().end()), 0, {}};
  for (const int64_t extent : made.shape) {
    if (extent < 0) fail(ErrorCode::kFormat, where, "shape", "no negative extent", shape_string(made.shape));
  }
  made.bytes = (static_cast<uint64_t>(element_count(made.shape)) * type.bits + 7) / 8;
  if (proto.data_location() != ::onnx::TensorProto::EXTERNAL) {
    if (type.bits == 0) {
      made.bytes = proto.ByteSizeLong();
    } else if (proto.has_raw_data() && proto.raw_data().size() != made.bytes) {
      fail(ErrorCode::kFormat, where, fmt::format("{} {} in the file", type.name, shape_string(made.shape)),
           fmt::format("{} bytes", made.bytes), std::to_string(proto.raw_data().size()));
    }
    return made;
  }
  std::optional<uint64_t> length;
  for (const auto& entry : proto.external_data()) {
    if (entry.key() == "location") made.external.file = entry.value();
    if (entry.key() == "offset")
      made.external.offset = parse_number(entry.value(), where, "offset of its external data");
    if (entry.key() == "length") length = parse_number(entry.value(), where, "length of its external data");
  }
  const std::string& file = made.external.file;
  if (file.empty() || file == "." || file == ".." || file.find_first_of("/\\") != std::string::npos) {
    fail(ErrorCode::kFormat, where, "file of its external data", "a plain file name beside the model",
         "'" + file + "'");
  }
  if (type.bits == 0) {
    made.bytes = length.value_or(0);
  } else if (length && *length != made.bytes) {
    fail(ErrorCode::kFormat, where,
         fmt::format("length of its external data, {} {}", type.name, shape_string(made.shape)),
         fmt::format("{} bytes", made.bytes), std::to_string(*length));
  }
  made.external.length = made.bytes;
  return made;
}

void collect(const ::onnx::GraphProto& graph, ModelFile& file) {
  for (const auto& tensor : graph.initializer()) file.initializers.push_back(initializer(tensor, file.path));
  for (const auto& node : graph.node()) {
    ++file.operators[node.domain().empty() ? node.op_type() : node.domain() + "." + node.op_type()];
    for (const auto& attribute : node.attribute()) {
      if (attribute.has_g()) collect(attribute.g(), file);
    }
  }
}

}  // namespace

std::string ValueInfo::describe() const {
  std::string text = type + " [";
  for (size_t i = 0; i < dims.size(); ++i) {
    if (i > 0) text += ", ";
    const int64_t* number = std::get_if<int64_t>(&dims[i]);
    text += number != nullptr ? std::to_string(*number) : std::get<std::string>(dims[i]);
  }
  return text + "]";
}

ModelFile ModelFile::parse(std::string_view bytes, const std::filesystem::path& where) {
  ::onnx::ModelProto model;
  if (bytes.size() > INT32_MAX) {
    fail(ErrorCode::kLimit, shown(where), "size of an ONNX model", "below 2 GiB",
         std::to_string(bytes.size()));
  }
  if (!model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    fail(ErrorCode::kFormat, shown(where),
         "not an ONNX model: the bytes are damaged, cut off or something else");
  }
  if (!model.has_graph() || model.ir_version() <= 0) {
    fail(ErrorCode::kFormat, shown(where), "not an ONNX model: it has no graph");
  }
  ModelFile file;
  file.path = where;
  file.ir_version = model.ir_version();
  file.producer = model.producer_name();
  if (!model.producer_version().empty()) file.producer += " " + model.producer_version();
  for (const auto& opset : model.opset_import()) {
    file.opsets[opset.domain() == "ai.onnx" ? std::string() : opset.domain()] = opset.version();
  }
  for (const auto& entry : model.metadata_props()) file.metadata[entry.key()] = entry.value();
  collect(model.graph(), file);
  std::set<std::string> initialized;
  for (const auto& tensor : model.graph().initializer()) initialized.insert(tensor.name());
  for (const auto& input : model.graph().input()) {
    if (!initialized.contains(input.name())) file.inputs.push_back(value_info(input));
  }
  for (const auto& output : model.graph().output()) file.outputs.push_back(value_info(output));
  return file;
}

ModelFile ModelFile::read(const std::filesystem::path& path) {
  const MappedFile mapped = MappedFile::open(path);
  const auto bytes = mapped.bytes();
  return parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

void ModelFile::check_external_data() const {
  std::map<std::string, uint64_t> sizes;
  for (const Initializer& tensor : initializers) {
    const ExternalData& place = tensor.external;
    if (place.file.empty()) continue;
    const std::string where = fmt::format("{}: initializer '{}'", shown(path), tensor.name);
    if (!sizes.contains(place.file)) {
      const std::filesystem::path file = path.parent_path() / place.file;
      std::error_code error;
      if (!std::filesystem::is_regular_file(file, error)) {
        fail(ErrorCode::kNotFound, where, "its data file is not there: " + shown(file));
      }
      sizes[place.file] = std::filesystem::file_size(file, error);
      if (error) fail(ErrorCode::kIo, where, fmt::format("size of {}: {}", shown(file), error.message()));
    }
    const uint64_t size = sizes[place.file];
    if (place.offset > size || place.length > size - place.offset) {
      fail(ErrorCode::kMismatch, where,
           fmt::format("its {} bytes at {} of {}", place.length, place.offset, place.file),
           fmt::format("a file of at least {} bytes", fmt::format("{} + {}", place.offset, place.length)),
           std::to_string(size), "the file is cut off or belongs to another model");
    }
  }
}

uint64_t ModelFile::weight_bytes() const {
  std::set<std::tuple<std::string, uint64_t>> seen;
  uint64_t total = 0;
  for (const Initializer& tensor : initializers) {
    if (!tensor.external.file.empty() && !seen.emplace(tensor.external.file, tensor.external.offset).second)
      continue;
    total += tensor.bytes;
  }
  return total;
}

}  // namespace qvl::onnx
