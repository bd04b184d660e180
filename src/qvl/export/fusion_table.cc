#include "qvl/export/fusion_table.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "qvl/base/error.h"
#include "qvl/export/graphs.h"

namespace qvl::exporting {
namespace {

constexpr std::array kFused = {
    FusedOperator{"com.microsoft.MatMulNBits", "DequantizeLinear, Reshape, MatMul", 3},
    FusedOperator{"com.microsoft.GatherBlockQuantized",
                  "Gather of codes and scales, unpacking, Sub, Mul, Reshape", 6},
    FusedOperator{"com.microsoft.GroupQueryAttention",
                  "Reshape and Transpose of q, k, v; Concat of keys and of values; repeated heads; MatMul, "
                  "Mul, Add, Softmax, MatMul; "
                  "Transpose, Reshape",
                  17},
    FusedOperator{"com.microsoft.MultiHeadAttention",
                  "Reshape and Transpose of q, k, v; MatMul, Mul, Softmax, MatMul; Transpose, Reshape", 12},
    FusedOperator{"com.microsoft.RotaryEmbedding", "Split, 4 Mul, Sub, Add, Concat", 8},
    FusedOperator{
        "com.microsoft.SkipLayerNormalization",
        "Add of the bias, Add of the residual; ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add",
        11},
    FusedOperator{"com.microsoft.SkipSimplifiedLayerNormalization",
                  "Add of the residual; Pow, ReduceMean, Add, Sqrt, Div, Mul", 7},
    FusedOperator{"com.microsoft.BiasGelu", "Add of the bias; Div, Erf, Add, Mul, Mul", 6},
    FusedOperator{"com.microsoft.FastGelu", "Add of the bias; Pow, Mul, Add, Mul, Tanh, Add, Mul, Mul", 9},
    FusedOperator{"com.microsoft.QuickGelu", "Sigmoid, Mul", 2},
    FusedOperator{"LayerNormalization", "ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add", 9},
    FusedOperator{"RMSNormalization", "Pow, ReduceMean, Add, Sqrt, Div, Mul", 6},
    FusedOperator{"Gelu", "Pow, Mul, Add, Mul, Tanh, Add, Mul, Mul (or Div, Erf, Add, Mul, Mul)", 8},
    FusedOperator{"DynamicQuantizeLinear",
                  "ReduceMin, ReduceMax, Min, Max, Sub, Div, Div, Round, Clip, QuantizeLinear", 10},
};

}  // namespace

const FusedOperator* find_fused(std::string_view name) {
  const auto found =
      std::find_if(kFused.begin(), kFused.end(), [&](const FusedOperator& f) { return f.name == name; });
  return found == kFused.end() ? nullptr : &*found;
}

int64_t plain_node_count(const package::Package& package, package::GraphKind kind) {
  const package::Manifest& manifest = package.manifest();
  if (!package.has_graph(kind)) {
    fail(ErrorCode::kNotFound, package.folder().string(), "graph", std::string(package::graph_name(kind)),
         "none");
  }
  model::ModelConfig config = package.config();
  config.tie_word_embeddings = package.tied_head();
  WeightPlan plan(config,
                  [&](const model::TensorSpec& tensor) { return package.get(tensor.name).entry->format; });
  GraphOptions options;
  options.linear.plain = true;
  options.layout = manifest.layout;
  options.opset = std::max<int64_t>(manifest.opset, 21);  // below it blocks cannot be dequantised
  if (const auto& s = manifest.static_sizes) {
    options.static_grid = image::Grid{s->grid_t, s->grid_h, s->grid_w};
    options.static_sequence = s->sequence_tokens;
    options.static_context = s->context_tokens;
  }
  const auto build = [&] {
    switch (kind) {
      case package::GraphKind::kVision:
        return vision_graph(plan, options);
      case package::GraphKind::kVisionHost:
        return vision_host_graph(plan, options);
      case package::GraphKind::kEmbedding:
        return embedding_graph(plan, options);
      case package::GraphKind::kDecoder:
        break;
    }
    return decoder_graph(plan, options);
  };
  int64_t nodes = 0;
  for (const auto& [name, count] : build().operator_counts()) nodes += count;
  return nodes;
}

}  // namespace qvl::exporting
