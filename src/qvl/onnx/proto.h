// The ONNX schema under one include, for this room only: protobuf classes of package onnx, namespace ::onnx.
// qvl::onnx hides that name, so uses say ::onnx.
#pragma once

#include <onnx/onnx_pb.h>  // IWYU pragma: export

#include "qvl/base/dtype.h"

namespace qvl::onnx {

// TensorProto::DataType of an element type.
int32_t proto_type(DType type);

}  // namespace qvl::onnx
