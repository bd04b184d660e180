// The inner loops of the quantiser, one version for each instruction set (private to this room). All versions
// compute the same float32 operations in the same order, no fused multiply-add among them, so they give the
// same bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "qvl/base/dtype.h"
#include "qvl/quant/format.h"

namespace qvl::quant {

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512 };

// Sixteen rows are quantised side by side: lane = row.
inline constexpr int kPanelRows = 16;

// How the scale (and zero point) of a block is found.
enum class Rule : uint8_t {
  kPlain,   // ONNX Runtime's: the largest value takes the outermost code
  kSearch,  // least weighted squared error
};

struct PanelStats {
  // One value a lane, in the order of the lanes, so that the sums do not depend on the width of the
  // registers.
  using Lanes = std::array<double, kPanelRows>;
  Lanes max_error{}, sum_error{}, squared_error{}, squared{}, cross{}, weighted_squared_error{},
      weighted_squared{};
};

struct PanelTask {
  // 1 to 16 rows of `columns` values of `type` (F32, BF16, F16), `source_stride_bytes` apart; no alignment
  // needed.
  const std::byte* source = nullptr;
  int64_t source_stride_bytes = 0;
  int rows = 0;
  int64_t columns = 0;
  DType type = DType::kF32;

  // Blocks of `block` columns; row8: block = columns, one block.
  int bits = 0;
  int64_t block = 0;
  bool zero_points = false;
  bool row8 = false;
  DType scale_type = DType::kF32;
  Rule rule = Rule::kSearch;
  const float* importance = nullptr;  // [columns], positive; null: all 1

  // Where the rows go, or null to compute statistics alone.
  std::byte* data = nullptr;
  int64_t data_stride_bytes = 0;
  std::byte* scales = nullptr;
  int64_t scale_stride_bytes = 0;
  std::byte* zeros = nullptr;  // null as well if the format stores none
  int64_t zero_stride_bytes = 0;

  // panel_scratch_floats(block, blocks, scale_type) floats, 64-byte aligned.
  float* scratch = nullptr;
  PanelStats* stats = nullptr;
};

enum class PanelResult : uint8_t {
  kOk,
  kNotFinite,      // some weight is infinite or NaN
  kScaleOverflow,  // the scale type cannot hold a scale
};

using PanelKernel = PanelResult (*)(const PanelTask& task);

// Room for a transposed block and its codes, and for what was found for all blocks of a row where they share an exponent.
inline size_t panel_scratch_floats(int64_t block, int64_t blocks, DType scale_type) {
  const int64_t found = scale_type == DType::kI8 ? 2 * blocks : 0;
  return static_cast<size_t>(block + (block + 3) / 4 + 1 + found) * kPanelRows;
}

// Those this processor can run, slowest first; the last one is the best.
std::span<const Isa> available_isas();
std::string_view isa_name(Isa isa);
// Throws kUnsupported if this processor cannot run it.
PanelKernel panel_kernel(Isa isa);

PanelResult quantize_panel_portable(const PanelTask& task);
PanelResult quantize_panel_avx2(const PanelTask& task);
PanelResult quantize_panel_avx512(const PanelTask& task);

}  // namespace qvl::quant
