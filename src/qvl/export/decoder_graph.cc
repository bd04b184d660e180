// decoder.onnx: layers, final norm and head over a KV cache (spec 6.2 to 6.7, 10.2). Activations are 2-D,
// [B*S, width], between the attentions, as linear() wants them. M-RoPE angles are made in the graph from the
// three rows of positions: one table row for each token of the call, no table of all positions.

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/export/graph_options.h"
#include "qvl/export/graphs.h"
#include "qvl/model/positions.h"
#include "qvl/package/graph_io.h"

namespace qvl::exporting {
namespace {

using model::TensorRole;
using onnx::Dim;
using onnx::Dims;
using onnx::GraphBuilder;
using onnx::Value;

// Finite, so that the softmax of a row without any visible key is a mean and not NaN; scores cannot reach it.
constexpr float kMasked = -1e30f;
constexpr int64_t kToEnd = INT64_MAX;

class DecoderBuilder {
 public:
  DecoderBuilder(WeightPlan& plan, const GraphOptions& options)
      : plan_(plan),
        options_(options),
        text_(plan.config().text),
        levels_(plan.config().vision.deepstack_levels()),
        plain_(options.linear.plain),
        genai_(options.layout == Layout::kGenai),
        fixed_(options.static_sequence > 0) {}

  GraphBuilder build() {
    inputs();
    sizes();
    {
      const GraphBuilder::Scope scope(g_, "rotary");
      rotary_tables();
    }
    {
      const GraphBuilder::Scope scope(g_, "mask");
      masks();
    }
    for (int layer = 0; layer < text_.num_layers; ++layer) {
      const GraphBuilder::Scope scope(g_, "layer" + std::to_string(layer));
      attention(layer);
      feed_forward(layer);
    }
    const GraphBuilder::Scope scope(g_, "head");
    const Value logits = linear(g_, normed_, plan_.head(), nullptr, options_.linear);
    const Value shape =
        fixed_ ? g_.i64s({1, 1, text_.vocab_size}) : g_.concat({batch_, g_.i64s({-1, text_.vocab_size})}, 0);
    const Dim kept = fixed_ || (genai_ && !options_.all_logits) ? Dim{int64_t{1}}
                     : genai_                                   ? Dim{"sequence"}
                                                                : Dim{"kept"};
    g_.output(g_.node("Reshape", {logits, shape}, {}, onnx::kStandardDomain, package::kLogits), DType::kF32,
              {batch_dim(), kept, text_.vocab_size});
    for (int layer = 0; layer < text_.num_layers; ++layer) {
      const Dims dims{batch_dim(), text_.num_kv_heads, fixed_ ? Dim{options_.static_context} : Dim{"cache"},
                      text_.head_dim};
      g_.output({package::present_key_name(layer)}, DType::kF32, dims);
      g_.output({package::present_value_name(layer)}, DType::kF32, dims);
    }
    return std::move(g_);
  }

 private:
  Dim batch_dim() const { return fixed_ ? Dim{int64_t{1}} : Dim{"batch"}; }
  Dim sequence_dim() const { return fixed_ ? Dim{options_.static_sequence} : Dim{"sequence"}; }
  Dim total_dim() const { return fixed_ ? Dim{options_.static_context} : Dim{"total"}; }

  void inputs() {
    const int64_t width = text_.hidden_size;
    embeds_ = g_.input(package::kInputsEmbeds, DType::kF32,
                       {batch_dim(), sequence_dim(), genai_ ? (1 + levels_) * width : width});
    if (levels_ > 0 && !genai_) {
      deepstack_input_ =
          g_.input(package::kDeepstackEmbeds, DType::kF32, {levels_, batch_dim(), sequence_dim(), width});
    }
    positions_ = g_.input(package::kPositionIds, DType::kI64, {int64_t{3}, batch_dim(), sequence_dim()});
    mask_ = g_.input(package::kAttentionMask, DType::kI64, {batch_dim(), total_dim()});
    if (!fixed_ && !genai_) keep_ = g_.input(package::kLogitsToKeep, DType::kI64, {int64_t{1}});
    const Dim past = fixed_ ? Dim{options_.static_context - options_.static_sequence} : Dim{"past"};
    for (int layer = 0; layer < text_.num_layers; ++layer) {
      const Dims dims{batch_dim(), text_.num_kv_heads, past, text_.head_dim};
      past_keys_.push_back(g_.input(package::past_key_name(layer), DType::kF32, dims));
      past_values_.push_back(g_.input(package::past_value_name(layer), DType::kF32, dims));
    }
  }

  Value extent(const Value& x, int64_t axis) {
    return g_.node("Shape", {x}, {{"start", axis}, {"end", axis + 1}});
  }

  // B, S and T as [1] tensors (constants where they are fixed), and the inputs taken apart.
  void sizes() {
    const int64_t width = text_.hidden_size;
    {
      const GraphBuilder::Scope scope(g_, "sizes");
      batch_ = fixed_ ? g_.i64s({1}) : extent(embeds_, 0);
      sequence_ = fixed_ ? g_.i64s({options_.static_sequence}) : extent(embeds_, 1);
      total_ = fixed_ ? g_.i64s({options_.static_context}) : extent(mask_, 1);
      tokens_ = g_.mul(batch_, sequence_);
    }
    const GraphBuilder::Scope scope(g_, "input");
    std::vector<Value> parts{embeds_};
    if (levels_ > 0 && genai_) {
      parts =
          g_.nodes("Split", {embeds_, g_.i64s(std::vector<int64_t>(static_cast<size_t>(1 + levels_), width))},
                   static_cast<size_t>(1 + levels_), {{"axis", int64_t{2}}});
      for (int64_t j = 0; j < levels_; ++j) deepstack_.push_back(parts[static_cast<size_t>(1 + j)]);
    } else {
      for (int64_t j = 0; j < levels_; ++j) deepstack_.push_back(g_.gather(deepstack_input_, g_.i64(j)));
    }
    hidden_ = g_.reshape(parts[0], {-1, width});
    if (fixed_ || (genai_ && !options_.all_logits)) keep_ = g_.i64s({1});
    slices_ = static_cast<bool>(keep_) && !(fixed_ && options_.static_sequence == 1);
    normed_ = norm(hidden_, TensorRole::kTextInputNorm, 0);
  }

  // Angle of frequency i: position on its axis times the frequency (one float32 product), [B, S, head_dim/2].
  void rotary_tables() {
    const std::vector<float> frequencies = model::mrope_inv_freq(text_);
    const int64_t half = static_cast<int64_t>(frequencies.size());
    // Not a MatMul with a selection matrix: ONNX Runtime 1.32 crashes on Transpose, Cast, MatMul in a row.
    const Value by_token = g_.transpose(g_.cast(positions_, DType::kF32), {1, 2, 0});
    const Value angles =
        g_.mul(g_.gather(by_token, g_.i64s(model::mrope_axis(text_)), 2), g_.f32s(frequencies, {half}));
    cos_ = g_.node("Cos", {angles});
    sin_ = g_.node("Sin", {angles});
    if (const float factor = static_cast<float>(model::mrope_attention_factor(text_)); factor != 1.0f) {
      cos_ = g_.mul(cos_, g_.f32(factor));
      sin_ = g_.mul(sin_, g_.f32(factor));
    }
    if (plain_) {
      cos_ = g_.unsqueeze(cos_, {1});  // [B, 1, S, head_dim/2], over heads
      sin_ = g_.unsqueeze(sin_, {1});
      return;
    }
    // RotaryEmbedding looks rows up: token (b, s) has row b*S + s.
    cos_ = g_.reshape(cos_, {-1, half});
    sin_ = g_.reshape(sin_, {-1, half});
    const Value all = g_.node("Range", {g_.i64(0), g_.squeeze(tokens_, {0}), g_.i64(1)});
    rotary_rows_ = g_.node("Reshape", {all, g_.concat({batch_, sequence_}, 0)});
  }

  // Plain: bias_ [B, 1, 1, S, T] for padding and causality. Fused: GroupQueryAttention is causal by itself,
  // bias_ [B, 1, S, T] for padding.
  void masks() {
    if (plain_) {
      const Value scalar_total = g_.squeeze(total_, {0});
      const Value keys = g_.node("Range", {g_.i64(0), scalar_total, g_.i64(1)});
      const Value queries =
          g_.node("Range", {g_.sub(scalar_total, g_.squeeze(sequence_, {0})), scalar_total, g_.i64(1)});
      const Value causal =
          g_.node("LessOrEqual", {g_.unsqueeze(keys, {0}), g_.unsqueeze(queries, {1})});  // [S, T]
      const Value real = g_.unsqueeze(g_.cast(mask_, DType::kBool), {1, 2, 3});
      bias_ = g_.node("Where", {g_.node("And", {causal, real}), g_.f32(0.0f), g_.f32(kMasked)});
      return;
    }
    total_i32_ = g_.squeeze(g_.cast(total_, DType::kI32), {0});
    if (genai_) {
      const Value lengths = g_.node("ReduceSum", {mask_, g_.i64s({1})}, {{"keepdims", int64_t{0}}});
      last_positions_ = g_.cast(g_.sub(lengths, g_.i64(1)), DType::kI32);
      return;
    }
    last_positions_ = g_.cast(g_.node("Expand", {g_.sub(total_, g_.i64(1)), batch_}), DType::kI32);
    const Value padding =
        g_.node("Where", {g_.cast(mask_, DType::kBool), g_.f32(0.0f), g_.f32(kMasked)});  // [B, T]
    bias_ = g_.node("Expand",
                    {g_.unsqueeze(padding, {1, 2}), g_.concat({batch_, g_.i64s({1}), sequence_, total_}, 0)});
  }

  Value norm(const Value& x, TensorRole role, int layer) {
    return rms_norm(g_, x, dense(g_, plan_.store(role, layer)), text_.rms_norm_eps, options_);
  }

  // hidden_ += delta; normed_ = RMSNorm(hidden_). `name`: of the sum, empty for a generated one.
  void add_and_norm(const Value& delta, TensorRole role, int layer, std::string name = {}) {
    if (plain_) {
      hidden_ = g_.node("Add", {hidden_, delta}, {}, onnx::kStandardDomain, std::move(name));
      normed_ = norm(hidden_, role, layer);
      return;
    }
    const std::vector<Value> made = g_.nodes(
        "SkipSimplifiedLayerNormalization", {hidden_, delta, dense(g_, plan_.store(role, layer))},
        std::vector<onnx::Output>{{}, {.omitted = true}, {.omitted = true}, {.name = std::move(name)}},
        {{"epsilon", static_cast<float>(text_.rms_norm_eps)}}, onnx::kContribDomain);
    normed_ = made[0];
    hidden_ = made[3];
  }

  Value projected(TensorRole weight, TensorRole bias, int layer, const Value& x) {
    const StoredTensor* b = text_.attention_bias ? &plan_.store(bias, layer) : nullptr;
    return linear(g_, x, plan_.store(weight, layer), b, options_.linear);
  }

  // [B*S, heads * head_dim] with every head normed by itself.
  Value head_norm(const Value& x, TensorRole role, int layer) {
    return norm(g_.reshape(x, {-1, text_.head_dim}), role, layer);
  }
  Value per_token(const Value& x, int64_t width) {
    Value& shape = token_shapes_[width];
    if (!shape) shape = g_.concat({batch_, sequence_, g_.i64s({width})}, 0);
    return g_.node("Reshape", {x, shape});
  }

  void attention(int layer) {
    const GraphBuilder::Scope scope(g_, "attention");
    const Value q = head_norm(projected(TensorRole::kTextQWeight, TensorRole::kTextQBias, layer, normed_),
                              TensorRole::kTextQNorm, layer);
    const Value k = head_norm(projected(TensorRole::kTextKWeight, TensorRole::kTextKBias, layer, normed_),
                              TensorRole::kTextKNorm, layer);
    const Value v = projected(TensorRole::kTextVWeight, TensorRole::kTextVBias, layer, normed_);
    Value context =
        plain_ ? plain_attention(layer, q, k, v) : fused_attention(layer, q, k, v);  // [B, S, q_width]
    if (layer + 1 == text_.num_layers && slices_) {
      // What follows is only needed where logits are.
      context = last_positions(context);
      hidden_ = g_.reshape(last_positions(per_token(hidden_, text_.hidden_size)), {-1, text_.hidden_size});
    }
    const Value out = projected(TensorRole::kTextOWeight, TensorRole::kTextOBias, layer,
                                g_.reshape(context, {-1, text_.q_width()}));
    add_and_norm(out, TensorRole::kTextPostAttentionNorm, layer);
  }

  // The last keep_ positions of [B, S, width].
  Value last_positions(const Value& x) {
    return g_.node("Slice", {x, g_.node("Neg", {keep_}), g_.i64s({kToEnd}), g_.i64s({1})});
  }

  Value fused_attention(int layer, const Value& q, const Value& k, const Value& v) {
    const auto rotated = [&](const Value& x, int64_t heads) {
      return g_.node("RotaryEmbedding", {per_token(x, heads * text_.head_dim), rotary_rows_, cos_, sin_},
                     {{"num_heads", heads}, {"interleaved", int64_t{0}}}, onnx::kContribDomain);
    };
    const std::vector<Value> made = g_.nodes(
        "GroupQueryAttention",
        {rotated(q, text_.num_heads),
         rotated(k, text_.num_kv_heads),
         per_token(v, text_.kv_width()),
         past_keys_[layer],
         past_values_[layer],
         last_positions_,
         total_i32_,
         {},
         {},
         {},
         bias_},
        std::vector<onnx::Output>{
            {}, {.name = package::present_key_name(layer)}, {.name = package::present_value_name(layer)}},
        {{"num_heads", text_.num_heads},
         {"kv_num_heads", text_.num_kv_heads},
         {"scale", scale()},
         {"do_rotary", int64_t{0}}},
        onnx::kContribDomain);
    return made[0];
  }

  Value plain_attention(int layer, const Value& q, const Value& k, const Value& v) {
    const int64_t heads = text_.num_heads, kv_heads = text_.num_kv_heads, dim = text_.head_dim;
    const auto by_head = [&](const Value& x, int64_t n) {  // [B, n, S, dim]
      return g_.transpose(g_.node("Reshape", {x, g_.concat({batch_, sequence_, g_.i64s({n, dim})}, 0)}),
                          {0, 2, 1, 3});
    };
    const auto rotated = [&](const Value& x) {
      const std::vector<Value> halves =
          g_.nodes("Split", {x, g_.i64s({dim / 2, dim / 2})}, 2, {{"axis", int64_t{3}}});
      return g_.concat({g_.sub(g_.mul(halves[0], cos_), g_.mul(halves[1], sin_)),
                        g_.add(g_.mul(halves[1], cos_), g_.mul(halves[0], sin_))},
                       3);
    };
    const auto appended = [&](const Value& past, const Value& fresh, std::string name) {
      return g_.node("Concat", {past, fresh}, {{"axis", int64_t{2}}}, onnx::kStandardDomain, std::move(name));
    };
    const Value keys =
        appended(past_keys_[layer], rotated(by_head(k, kv_heads)), package::present_key_name(layer));
    const Value values =
        appended(past_values_[layer], by_head(v, kv_heads), package::present_value_name(layer));
    // Query heads in groups of one key head: keys and values are broadcast, not repeated.
    const Value grouped =
        g_.node("Reshape",
                {rotated(by_head(q, heads)),
                 g_.concat({batch_, g_.i64s({kv_heads, heads / kv_heads}), sequence_, g_.i64s({dim})}, 0)});
    const Value scores =
        g_.mul(g_.node("MatMul", {grouped, g_.transpose(g_.unsqueeze(keys, {2}), {0, 1, 2, 4, 3})}),
               g_.f32(scale()));
    const Value weights = g_.node("Softmax", {g_.add(scores, bias_)}, {{"axis", int64_t{-1}}});
    const Value context = g_.node("MatMul", {weights, g_.unsqueeze(values, {2})});  // [B, kv, rep, S, dim]
    return per_token(g_.transpose(context, {0, 3, 1, 2, 4}), text_.q_width());
  }

  void feed_forward(int layer) {
    const GraphBuilder::Scope scope(g_, "mlp");
    const Value gate =
        linear(g_, normed_, plan_.store(TensorRole::kTextGateWeight, layer), nullptr, options_.linear);
    const Value up =
        linear(g_, normed_, plan_.store(TensorRole::kTextUpWeight, layer), nullptr, options_.linear);
    const Value silu = plain_ ? g_.mul(gate, g_.node("Sigmoid", {gate}))
                              : g_.node("QuickGelu", {gate}, {{"alpha", 1.0f}}, onnx::kContribDomain);
    Value down = linear(g_, g_.mul(silu, up), plan_.store(TensorRole::kTextDownWeight, layer), nullptr,
                        options_.linear);
    const bool last = layer + 1 == text_.num_layers;
    if (layer < levels_) {
      Value features = deepstack_[static_cast<size_t>(layer)];
      if (last && slices_) features = last_positions(features);
      down = g_.add(down, g_.reshape(features, {-1, text_.hidden_size}));
    }
    // Traces expose the residual stream under this name.
    add_and_norm(down, last ? TensorRole::kTextFinalNorm : TensorRole::kTextInputNorm, last ? -1 : layer + 1,
                 "layer" + std::to_string(layer));
  }

  float scale() const { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(text_.head_dim))); }

  WeightPlan& plan_;
  const GraphOptions& options_;
  const model::TextConfig& text_;
  const int64_t levels_;
  const bool plain_, genai_, fixed_;
  GraphBuilder g_{"decoder"};

  Value embeds_, deepstack_input_, positions_, mask_;
  Value keep_;           // [1]: how many positions get logits; empty: all
  bool slices_ = false;  // the last layer is cut to them
  std::vector<Value> past_keys_, past_values_;
  std::vector<Value> deepstack_;             // [B, S, D] each
  Value batch_, sequence_, total_, tokens_;  // [1]
  std::map<int64_t, Value> token_shapes_;    // width -> [B, S, width]
  Value cos_, sin_, rotary_rows_;
  Value bias_, total_i32_, last_positions_;
  Value hidden_;  // [B*S, D], the residual stream
  Value normed_;  // its norm for what comes next
};

}  // namespace

onnx::GraphBuilder decoder_graph(WeightPlan& plan, const GraphOptions& options) {
  check_options(options, plan.config());
  onnx::GraphBuilder graph = DecoderBuilder(plan, options).build();
  check_formats(plan, options);
  return graph;
}

}  // namespace qvl::exporting
