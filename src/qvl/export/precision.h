// From the words of the command line to the format of each tensor.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "qvl/base/dtype.h"
#include "qvl/model/tensor_table.h"
#include "qvl/quant/format.h"

namespace qvl::exporting {

enum class StagePrecision { kFp32, kFp16, kBf16, kInt8, kInt4 };

// "fp32"/"f32", "fp16"/"f16", "bf16", "int8", "int4"; throws kInvalidArgument naming `option`.
StagePrecision parse_stage_precision(std::string_view name, std::string_view option);
std::string_view stage_precision_name(StagePrecision precision);

struct PrecisionOptions {
  StagePrecision vision = StagePrecision::kBf16;  // not kInt4
  StagePrecision text = StagePrecision::kInt4;
  // lm_head; a tied head shares the embedding's bytes and both must ask for the same. Absent: kInt8 for int4
  // text, else as text.
  std::optional<StagePrecision> head;
  std::optional<StagePrecision> embedding;
  int64_t block = 32;
  bool zero_points = false;

  // Throws kInvalidArgument for what does not exist: int4 vision, a block size that is none, a tied head that
  // is to differ from the embedding.
  void validate(bool tied_head) const;
  // The format of a tensor before sensitivity moves some matrices to 8 bits. `weights` is the type in which
  // floating-point vectors and tables are kept: that of the stage where it is a float type, else the
  // checkpoint's.
  quant::Format format_of(const model::TensorSpec& tensor, DType checkpoint_type) const;
};

}  // namespace qvl::exporting
