// Checks of GraphOptions that all graphs share, and the norm of the decoder.
#pragma once

#include "qvl/export/graphs.h"

namespace qvl::exporting {

inline constexpr int64_t kMinOpset = 17;  // LayerNormalization
inline constexpr int64_t kMaxOpset = 24;

// Throws kUnsupported for an opset outside of the range, kInvalidArgument for sizes that contradict each
// other.
void check_options(const GraphOptions& options, const model::ModelConfig& config);

// That the plan's formats can be expressed: blocks with standard operators alone need DequantizeLinear of
// opset 21. Throws kUnsupported. Call it when a graph has stored its tensors.
void check_formats(const WeightPlan& plan, const GraphOptions& options);

// RMSNorm over the last axis (spec 6.4): RMSNormalization from opset 23 on, else the chain of standard
// operators that ONNX Runtime fuses at load; with `plain` always the chain. `weight` is [width of the last
// axis].
onnx::Value rms_norm(onnx::GraphBuilder& graph, const onnx::Value& x, const onnx::Value& weight,
                     double epsilon, const GraphOptions& options);

}  // namespace qvl::exporting
