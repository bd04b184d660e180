#include "qvl/export/precision.h"

#include "qvl/base/error.h"

namespace qvl::exporting {
namespace {

using model::PrecisionClass;
using model::TensorRole;

// A quarter of float32's bytes; the codes of weights are fitted to the rounded scale.
constexpr DType kScaleType = DType::kI8;

std::optional<DType> float_type(StagePrecision precision) {
  switch (precision) {
    case StagePrecision::kFp32:
      return DType::kF32;
    case StagePrecision::kFp16:
      return DType::kF16;
    case StagePrecision::kBf16:
      return DType::kBF16;
    case StagePrecision::kInt8:
    case StagePrecision::kInt4:
      break;
  }
  return std::nullopt;
}

bool is_vision_matrix(const model::TensorSpec& tensor) {
  return model::is_vision_role(tensor.role) && tensor.precision == PrecisionClass::kMatrix;
}

}  // namespace

StagePrecision parse_stage_precision(std::string_view name, std::string_view option) {
  if (name == "fp32" || name == "f32") return StagePrecision::kFp32;
  if (name == "fp16" || name == "f16") return StagePrecision::kFp16;
  if (name == "bf16") return StagePrecision::kBf16;
  if (name == "int8") return StagePrecision::kInt8;
  if (name == "int4") return StagePrecision::kInt4;
  fail(ErrorCode::kInvalidArgument, option, "precision", "fp32, fp16, bf16, int8 or int4", name);
}

std::string_view stage_precision_name(StagePrecision precision) {
  switch (precision) {
    case StagePrecision::kFp32:
      return "fp32";
    case StagePrecision::kFp16:
      return "fp16";
    case StagePrecision::kBf16:
      return "bf16";
    case StagePrecision::kInt8:
      return "int8";
    case StagePrecision::kInt4:
      return "int4";
  }
  return "";
}

void PrecisionOptions::validate(bool tied_head) const {
  if (vision == StagePrecision::kInt4) {
    fail(ErrorCode::kInvalidArgument, "--vision", "precision", "fp32, fp16, bf16 or int8", "int4",
         "four bits cost the encoder too much");
  }
  if (block < 16 || block > 256 || (block & (block - 1)) != 0) {
    fail(ErrorCode::kInvalidArgument, "--block", "block size", "16, 32, 64, 128 or 256",
         std::to_string(block));
  }
  if (tied_head && head && embedding && *head != *embedding) {
    fail(ErrorCode::kInvalidArgument, "--head", "precision of a head that shares the embedding's weights",
         stage_precision_name(*embedding), stage_precision_name(*head));
  }
}

quant::Format PrecisionOptions::format_of(const model::TensorSpec& tensor, DType checkpoint_type) const {
  const bool in_vision = model::is_vision_role(tensor.role);
  const StagePrecision stage = in_vision ? vision : text;
  if (in_vision) {
    // The patch embedding sees raw pixels and costs little: it stays in floating point.
    const bool quantised = vision == StagePrecision::kInt8 && is_vision_matrix(tensor) &&
                           tensor.role != TensorRole::kPatchEmbedWeight;
    if (quantised) return quant::Format::row8();
    return quant::Format::floating(float_type(stage).value_or(checkpoint_type));
  }
  StagePrecision precision = stage;
  if (tensor.role == TensorRole::kTokenEmbedding || tensor.role == TensorRole::kLmHead) {
    // With a tied head either word speaks for both.
    const auto& own = tensor.role == TensorRole::kLmHead ? head : embedding;
    const auto& other = tensor.role == TensorRole::kLmHead ? std::optional<StagePrecision>() : head;
    precision = own ? *own : other ? *other : stage == StagePrecision::kInt4 ? StagePrecision::kInt8 : stage;
  } else if (tensor.precision != PrecisionClass::kMatrix) {
    return quant::Format::floating(float_type(stage).value_or(checkpoint_type));
  }
  if (const auto type = float_type(precision)) return quant::Format::floating(*type);
  return quant::Format::blocks(precision == StagePrecision::kInt4 ? 4 : 8, block, zero_points, kScaleType);
}

}  // namespace qvl::exporting
