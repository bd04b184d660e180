#include "qvl/onnx/expose.h"

#include <set>

#include "qvl/base/error.h"
#include "qvl/onnx/proto.h"

namespace qvl::onnx {

ExposedModel expose_values(std::string_view model, std::span<const std::string> wanted,
                           std::string_view where) {
  ::onnx::ModelProto proto;
  if (!proto.ParseFromArray(model.data(), static_cast<int>(model.size())) || !proto.has_graph()) {
    fail(ErrorCode::kFormat, where, "not an ONNX model");
  }
  std::set<std::string_view> made;
  for (const auto& node : proto.graph().node()) made.insert(node.output().begin(), node.output().end());
  for (const auto& output : proto.graph().output()) made.erase(output.name());
  ExposedModel exposed;
  for (const std::string& name : wanted) {
    if (made.contains(name)) exposed.names.push_back(name);
  }
  made.clear();  // points into what changes now
  for (const std::string& name : exposed.names) {
    ::onnx::ValueInfoProto* output = proto.mutable_graph()->add_output();
    output->set_name(name);
    output->mutable_type()->mutable_tensor_type()->set_elem_type(::onnx::TensorProto::FLOAT);
  }
  exposed.bytes = proto.SerializeAsString();
  return exposed;
}

}  // namespace qvl::onnx
