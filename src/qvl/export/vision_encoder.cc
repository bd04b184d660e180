// The vision encoder node by node (spec 5.1 to 5.5). See the header.
//
// The results of the blocks are called vision.block{i}, as in `qvl trace`; vision.pos_embed is [n, Dv], for
// one frame.
//
// The stream x is kept as [t*n, Dv], because Gemm wants matrices; only attention sees [t, n, ..]. With the
// operators of ONNX Runtime the bias of fc1 rides on the operator that follows (FastGelu, BiasGelu), which
// saves a pass over the activations.

#include "qvl/export/vision_encoder.h"

#include <cmath>
#include <span>
#include <string>
#include <utility>

namespace qvl::exporting {
namespace {

using model::TensorRole;
using onnx::GraphBuilder;
using onnx::kContribDomain;
using onnx::Output;
using onnx::Value;

constexpr float kNormEpsilon = 1e-6f;
constexpr int64_t kGeluOpset = 20;

struct NormRoles {
  TensorRole weight, bias;
  int layer;
};

class Encoder {
 public:
  Encoder(GraphBuilder& graph, const Value& frame_shape, const VisionPositions& positions, WeightPlan& plan,
          const GraphOptions& options, PlainAttention attention)
      : g_(graph),
        frame_shape_(frame_shape),
        positions_(positions),
        plan_(plan),
        config_(plan.config().vision),
        options_(options),
        plain_(options.linear.plain),
        attention_(attention) {}

  std::vector<Value> run(const Value& patches) {
    // A block is two rounds of "x += branch(norm(x))". The sum and the norm of the next round may be one
    // operator, so that each round ends with the next one's norm.
    Stream s{embed(patches), {}};
    s.normed = norm(s.x, block_norm1(0));
    std::vector<Value> deepstack(config_.deepstack_indexes.size());
    for (int layer = 0; layer < config_.depth; ++layer) {
      {
        const GraphBuilder::Scope scope(g_, "block" + std::to_string(layer));
        const NormRoles norm2{TensorRole::kVisionNorm2Weight, TensorRole::kVisionNorm2Bias, layer};
        s = add_norm(s.x, attend(s.normed, layer), TensorRole::kVisionProjWeight, TensorRole::kVisionProjBias,
                     layer, norm2);
        const NormRoles next = layer + 1 < config_.depth ? block_norm1(layer + 1) : merger_norm();
        const Value hidden = mlp_hidden(s.normed, layer);
        s = add_norm(s.x, hidden, TensorRole::kVisionFc2Weight, TensorRole::kVisionFc2Bias, layer, next,
                     "vision.block" + std::to_string(layer));
      }
      for (size_t j = 0; j < deepstack.size(); ++j) {
        if (config_.deepstack_indexes[j] == layer) deepstack[j] = deepstack_merger(s.x, static_cast<int>(j));
      }
    }
    std::vector<Value> features{main_merger(s.normed)};
    features.insert(features.end(), deepstack.begin(), deepstack.end());
    if (options_.layout == Layout::kGenai && features.size() > 1) return {g_.concat(std::move(features), 1)};
    return features;
  }

 private:
  struct Stream {
    Value x;       // [t*n, Dv]
    Value normed;  // the next norm of x
  };

  static NormRoles block_norm1(int layer) {
    return {TensorRole::kVisionNorm1Weight, TensorRole::kVisionNorm1Bias, layer};
  }
  static NormRoles merger_norm() { return {TensorRole::kMergerNormWeight, TensorRole::kMergerNormBias, -1}; }

  Value vector(TensorRole role, int layer) { return dense(g_, plan_.store(role, layer)); }

  Value matrix(const Value& x, TensorRole weight, int layer) {
    return linear(g_, x, plan_.store(weight, layer), nullptr, options_.linear);
  }
  Value matrix(const Value& x, TensorRole weight, TensorRole bias, int layer) {
    return linear(g_, x, plan_.store(weight, layer), &plan_.store(bias, layer), options_.linear);
  }

  Value norm(const Value& x, const NormRoles& roles) {
    return g_.node("LayerNormalization",
                   {x, vector(roles.weight, roles.layer), vector(roles.bias, roles.layer)},
                   {{"axis", int64_t{-1}}, {"epsilon", kNormEpsilon}});
  }

  // x + (branch * W^T + b), called `sum_name` if that is given, and its norm.
  Stream add_norm(const Value& x, const Value& branch, TensorRole weight, TensorRole bias, int layer,
                  const NormRoles& roles, std::string sum_name = {}) {
    if (plain_ || !options_.skip_layer_norm) {
      const Value sum = g_.node("Add", {x, matrix(branch, weight, bias, layer)}, {}, onnx::kStandardDomain,
                                std::move(sum_name));
      return {sum, norm(sum, roles)};
    }
    const Value y = matrix(branch, weight, layer);
    const std::vector<Value> out = g_.nodes(
        "SkipLayerNormalization",
        {x, y, vector(roles.weight, roles.layer), vector(roles.bias, roles.layer), vector(bias, layer)},
        std::vector<Output>{{}, {.omitted = true}, {.omitted = true}, {.name = std::move(sum_name)}},
        {{"epsilon", kNormEpsilon}}, kContribDomain);
    return {out[3], out[0]};
  }

  // Patches to x: one product, plus the interpolated position table. Spec 5.1, 5.2.
  Value embed(const Value& patches) {
    const GraphBuilder::Scope scope(g_, "embed");
    const Value x = matrix(patches, TensorRole::kPatchEmbedWeight, TensorRole::kPatchEmbedBias, -1);
    const Value table = vector(TensorRole::kVisionPosEmbed, -1);
    Value sum;
    for (int64_t tap = 0; tap < 4; ++tap) {  // the order of the additions is part of the result
      const Value rows = g_.gather(table, g_.gather(positions_.taps, g_.i64(tap)));
      const Value weight = g_.unsqueeze(g_.gather(positions_.weights, g_.i64(tap)), {1});
      const Value product = g_.mul(rows, weight);
      sum =
          sum ? g_.node("Add", {sum, product}, {}, onnx::kStandardDomain, tap == 3 ? "vision.pos_embed" : "")
              : product;
    }
    const Value placed = g_.add(g_.node("Reshape", {x, frame_shape_}), sum);  // frames share the positions
    return g_.reshape(placed, {-1, config_.hidden_size});
  }

  // Softmax attention inside each frame, without the output projection: [t*n, Dv]. Spec 5.3, 5.4.
  Value attend(const Value& normed, int layer) {
    const GraphBuilder::Scope scope(g_, "attention");
    const Value qkv = matrix(normed, TensorRole::kVisionQkvWeight, TensorRole::kVisionQkvBias, layer);
    const Value framed = g_.node("Reshape", {qkv, frame_shape_});
    const Value heads = plain_ ? plain_attention(framed) : fused_attention(framed);
    return g_.reshape(heads, {-1, config_.hidden_size});
  }

  float attention_scale() const { return 1.0f / std::sqrt(static_cast<float>(config_.head_dim())); }

  Value fused_attention(const Value& qkv) {
    const int64_t width = config_.hidden_size;
    const std::vector<Value> parts =
        g_.nodes("Split", {qkv, g_.i64s({width, width, width})}, 3, {{"axis", int64_t{-1}}});
    // Row s of the tables belongs to position s of the sequence: offset 0 for all frames.
    const auto rotated = [&](const Value& v) {
      return g_.node("RotaryEmbedding", {v, g_.i64s({0}), positions_.cos, positions_.sin}, {},
                     kContribDomain);
    };
    return g_.node("MultiHeadAttention", {rotated(parts[0]), rotated(parts[1]), parts[2]},
                   {{"num_heads", config_.num_heads}, {"scale", attention_scale()}}, kContribDomain);
  }

  Value plain_attention(const Value& qkv) {
    const int64_t heads = config_.num_heads, width = config_.head_dim(), half = width / 2;
    const Value all = g_.reshape(qkv, {0, 0, 3 * heads, width});
    const std::vector<Value> parts =
        g_.nodes("Split", {all, g_.i64s({2 * heads, heads})}, 2, {{"axis", int64_t{2}}});
    const std::vector<Value> halves =
        g_.nodes("Split", {parts[0], g_.i64s({half, half})}, 2, {{"axis", int64_t{3}}});
    const Value cos = g_.unsqueeze(positions_.cos, {1});  // [n, 1, half], over [t, n, 2*heads, half]
    const Value sin = g_.unsqueeze(positions_.sin, {1});
    const Value rotated = g_.concat({g_.sub(g_.mul(halves[0], cos), g_.mul(halves[1], sin)),
                                     g_.add(g_.mul(halves[1], cos), g_.mul(halves[0], sin))},
                                    3);
    const std::vector<Value> qk =
        g_.nodes("Split", {rotated, g_.i64s({heads, heads})}, 2, {{"axis", int64_t{2}}});
    const Value q = g_.mul(qk[0], g_.f32(attention_scale()));

    if (attention_ == PlainAttention::kBatched) {
      const Value scores =
          g_.node("MatMul", {g_.transpose(q, {0, 2, 1, 3}), g_.transpose(qk[1], {0, 2, 3, 1})});
      const Value shares = g_.node("Softmax", {scores}, {{"axis", int64_t{-1}}});
      const Value mixed = g_.node("MatMul", {shares, g_.transpose(parts[1], {0, 2, 1, 3})});
      return g_.transpose(mixed, {0, 2, 1, 3});
    }
    const std::string frames = "frames", patches = "frame_patches";
    GraphBuilder body = g_.body("head");
    const Value index = body.input("head_index", DType::kI64, {});
    const Value go_on = body.input("head_go_on", DType::kBool, {});
    const auto head = [&](const Value& v) { return body.gather(v, index, 2); };  // [t, n, width]
    const Value scores = body.node("MatMul", {head(q), body.transpose(head(qk[1]), {0, 2, 1})});
    const Value shares = body.node("Softmax", {scores}, {{"axis", int64_t{-1}}});
    body.output(body.node("Identity", {go_on}), DType::kBool, {});
    body.output(body.node("MatMul", {shares, head(parts[1])}), DType::kF32, {frames, patches, width});
    const std::byte yes{1};
    const Value always = g_.constant(DType::kBool, {}, std::span(&yes, 1));
    const Value mixed =
        g_.control("Loop", {g_.i64(heads), always}, 1, {{"body", &body}})[0];  // [heads, t, n, width]
    return g_.transpose(mixed, {1, 2, 0, 3});
  }

  // gelu_tanh(fc1(y)); fc2 comes with the sum.
  Value mlp_hidden(const Value& normed, int layer) {
    const GraphBuilder::Scope scope(g_, "mlp");
    if (!plain_) {
      const Value y = matrix(normed, TensorRole::kVisionFc1Weight, layer);
      return g_.node("FastGelu", {y, vector(TensorRole::kVisionFc1Bias, layer)}, {}, kContribDomain);
    }
    const Value y = matrix(normed, TensorRole::kVisionFc1Weight, TensorRole::kVisionFc1Bias, layer);
    if (options_.opset >= kGeluOpset) return g_.node("Gelu", {y}, {{"approximate", std::string("tanh")}});
    // Node by node the form that ONNX Runtime recognises and fuses.
    const Value cube = g_.node("Pow", {y, g_.f32(3.0f)});
    const Value inner = g_.mul(g_.add(y, g_.mul(cube, g_.f32(0.044715f))), g_.f32(0.7978845834732056f));
    return g_.mul(g_.mul(y, g_.f32(0.5f)), g_.add(g_.node("Tanh", {inner}), g_.f32(1.0f)));
  }

  // fc2(gelu_erf(fc1(y))) on rows of 4 * Dv.
  Value merge_mlp(const Value& y, TensorRole fc1, TensorRole fc1_bias, TensorRole fc2, TensorRole fc2_bias,
                  int layer) {
    Value hidden;
    if (!plain_) {
      hidden = g_.node("BiasGelu", {matrix(y, fc1, layer), vector(fc1_bias, layer)}, {}, kContribDomain);
    } else {
      const Value v = matrix(y, fc1, fc1_bias, layer);
      if (options_.opset >= kGeluOpset) {
        hidden = g_.node("Gelu", {v}, {{"approximate", std::string("none")}});
      } else {
        const Value erf = g_.node("Erf", {g_.div(v, g_.f32(1.4142135623730951f))});
        hidden = g_.mul(g_.mul(v, g_.add(erf, g_.f32(1.0f))), g_.f32(0.5f));
      }
    }
    return matrix(hidden, fc2, fc2_bias, layer);
  }

  // Main merger: its norm is over Dv and already done; then four rows become one.
  Value main_merger(const Value& normed) {
    const GraphBuilder::Scope scope(g_, "merger");
    return merge_mlp(g_.reshape(normed, {-1, config_.merged_width()}), TensorRole::kMergerFc1Weight,
                     TensorRole::kMergerFc1Bias, TensorRole::kMergerFc2Weight, TensorRole::kMergerFc2Bias,
                     -1);
  }

  // DeepStack merger: four rows become one first, the norm is over 4 * Dv.
  Value deepstack_merger(const Value& x, int j) {
    const GraphBuilder::Scope scope(g_, "deepstack" + std::to_string(j));
    const NormRoles roles{TensorRole::kDeepstackNormWeight, TensorRole::kDeepstackNormBias, j};
    return merge_mlp(norm(g_.reshape(x, {-1, config_.merged_width()}), roles),
                     TensorRole::kDeepstackFc1Weight, TensorRole::kDeepstackFc1Bias,
                     TensorRole::kDeepstackFc2Weight, TensorRole::kDeepstackFc2Bias, j);
  }

  GraphBuilder& g_;
  const Value& frame_shape_;
  const VisionPositions& positions_;
  WeightPlan& plan_;
  const model::VisionConfig& config_;
  const GraphOptions& options_;
  const bool plain_;
  const PlainAttention attention_;
};

}  // namespace

std::vector<Value> vision_encoder(GraphBuilder& graph, const Value& patches, const Value& frame_shape,
                                  const VisionPositions& positions, WeightPlan& plan,
                                  const GraphOptions& options, PlainAttention attention) {
  return Encoder(graph, frame_shape, positions, plan, options, attention).run(patches);
}

}  // namespace qvl::exporting
