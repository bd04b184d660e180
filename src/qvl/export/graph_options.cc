#include "qvl/export/graph_options.h"

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::exporting {

void check_options(const GraphOptions& options, const model::ModelConfig& config) {
  if (options.opset < kMinOpset || options.opset > kMaxOpset) {
    fail(ErrorCode::kUnsupported, "export", "opset", fmt::format("{} to {}", kMinOpset, kMaxOpset), std::to_string(options.opset));
  }
  const int64_t sequence = options.static_sequence, context = options.static_context;
  if (sequence < 0 || context < 0 || (sequence == 0) != (context == 0) || sequence > context) {
    fail(ErrorCode::kInvalidArgument, "export", "fixed sizes of the decoder",
         "1 <= tokens a call <= tokens of the cache", fmt::format("{} and {}", sequence, context));
  }
  if (context > config.text.max_positions) {
    fail(ErrorCode::kInvalidArgument, "export", "fixed length of the cache",
         fmt::format("at most {} (max_position_embeddings)", config.text.max_positions), std::to_string(context));
  }
}

onnx::Value rms_norm(onnx::GraphBuilder& g, const onnx::Value& x, const onnx::Value& weight, double epsilon,
                     const GraphOptions& options) {
  const float eps = static_cast<float>(epsilon);
  if (options.opset >= 23 && !options.linear.plain) {
    return g.node("RMSNormalization", {x, weight}, {{"axis", int64_t{-1}}, {"epsilon", eps}});
  }
  const onnx::Value squares = g.node("Pow", {x, g.f32(2.0f)});
  const onnx::Value mean = options.opset >= 18
                               ? g.node("ReduceMean", {squares, g.i64s({-1})}, {{"keepdims", int64_t{1}}})
                               : g.node("ReduceMean", {squares}, {{"axes", std::vector<int64_t>{-1}}, {"keepdims", int64_t{1}}});
  return g.mul(weight, g.div(x, g.node("Sqrt", {g.add(mean, g.f32(eps))})));
}

}  // namespace qvl::exporting
