#include "qvl/engine/engine.h"

#include "qvl/base/error.h"

namespace qvl::engine {

Precision parse_precision(std::string_view name) {
  if (name == "auto") return Precision::kAuto;
  if (name == "f32" || name == "fp32") return Precision::kF32;
  if (name == "bf16") return Precision::kBF16;
  fail(ErrorCode::kInvalidArgument, "precision", "precision name", "auto, fp32 or bf16", name);
}

KvType parse_kv_type(std::string_view name) {
  if (name == "auto") return KvType::kAuto;
  if (name == "bf16") return KvType::kBF16;
  if (name == "int8") return KvType::kInt8;
  fail(ErrorCode::kInvalidArgument, "kv cache", "type name", "auto, bf16 or int8", name);
}

std::string_view kv_dtype_name(DType cache) {
  switch (cache) {
    case DType::kF32:
      return "fp32";
    case DType::kBF16:
      return "bf16";
    case DType::kI8:
      return "int8";
    default:
      fail(ErrorCode::kUnsupported, "kv cache", "type of the elements", "F32, BF16 or I8", dtype_name(cache));
  }
}

std::string_view precision_name(Precision precision) {
  switch (precision) {
    case Precision::kAuto:
      return "auto";
    case Precision::kF32:
      return "fp32";
    case Precision::kBF16:
      return "bf16";
  }
  return "auto";
}

}  // namespace qvl::engine
