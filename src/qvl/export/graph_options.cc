#include "qvl/export/graph_options.h"

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::exporting {
namespace {

constexpr int64_t kBlockOpset = 21;  // DequantizeLinear with block_size, and UINT4

}  // namespace

void check_options(const GraphOptions& options, const model::ModelConfig& config) {
  if (options.opset < kMinOpset || options.opset > kMaxOpset) {
    fail(ErrorCode::kUnsupported, "export", "opset", fmt::format("{} to {}", kMinOpset, kMaxOpset),
         std::to_string(options.opset));
  }
  const int64_t sequence = options.static_sequence, context = options.static_context;
  if (sequence < 0 || context < 0 || (sequence == 0) != (context == 0) || sequence > context) {
    fail(ErrorCode::kInvalidArgument, "export", "fixed sizes of the decoder",
         "1 <= tokens a call <= tokens of the cache", fmt::format("{} and {}", sequence, context));
  }
  if (sequence > 0 && options.layout == Layout::kGenai) {
    fail(ErrorCode::kUnsupported, "export", "fixed sizes with the layout of onnxruntime-genai",
         "dynamic sizes, which are what its runtime feeds", fmt::format("{} tokens a call", sequence));
  }
  if (context > config.text.max_positions) {
    fail(ErrorCode::kInvalidArgument, "export", "fixed length of the cache",
         fmt::format("at most {} (max_position_embeddings)", config.text.max_positions),
         std::to_string(context));
  }
}

void check_formats(const WeightPlan& plan, const GraphOptions& options) {
  if (!options.linear.plain || options.opset >= kBlockOpset) return;
  for (const StoredTensor* tensor : plan.tensors()) {
    // Rows of an embedding are unpacked with older operators; as a tied head the same matrix needs the new
    // one.
    const bool gathered =
        tensor->role == model::TensorRole::kTokenEmbedding && !plan.config().tie_word_embeddings;
    if (tensor->format.kind != quant::Kind::kBlock || gathered) continue;
    fail(ErrorCode::kUnsupported, tensor->name, "opset for weights in blocks with standard operators only",
         fmt::format("{} or later", kBlockOpset), std::to_string(options.opset),
         "take a later opset, int8 rows or floats, or allow contrib operators");
  }
}

onnx::Value rms_norm(onnx::GraphBuilder& g, const onnx::Value& x, const onnx::Value& weight, double epsilon,
                     const GraphOptions& options) {
  const float eps = static_cast<float>(epsilon);
  if (options.opset >= 23 && !options.linear.plain) {
    return g.node("RMSNormalization", {x, weight}, {{"axis", int64_t{-1}}, {"epsilon", eps}});
  }
  const onnx::Value squares = g.node("Pow", {x, g.f32(2.0f)});
  const onnx::Value mean =
      options.opset >= 18
          ? g.node("ReduceMean", {squares, g.i64s({-1})}, {{"keepdims", int64_t{1}}})
          : g.node("ReduceMean", {squares}, {{"axes", std::vector<int64_t>{-1}}, {"keepdims", int64_t{1}}});
  return g.mul(weight, g.div(x, g.node("Sqrt", {g.add(mean, g.f32(eps))})));
}

}  // namespace qvl::exporting
