#include "qvl/engine/native/weights.h"

#include <algorithm>
#include <utility>

namespace qvl::engine::native {

using model::TensorRole;

WeightBinder::WeightBinder(const checkpoint::Checkpoint& checkpoint, const model::ModelConfig& config, DType activation,
                           std::function<void(int64_t)> on_bytes)
    : checkpoint_(checkpoint), config_(config), activation_(activation), on_bytes_(std::move(on_bytes)) {}

const checkpoint::TensorView& WeightBinder::find(TensorRole role, int layer) {
  const checkpoint::TensorView& view =
      checkpoint_.get(model::tensor_name(role, layer), model::tensor_shape(config_, role));
  if (on_bytes_) on_bytes_(static_cast<int64_t>(view.bytes.size()));
  return view;
}

Tensor& WeightBinder::own(Tensor tensor) {
  owned_bytes_ += static_cast<int64_t>(tensor.size_bytes());
  return owned_.emplace_back(std::move(tensor));
}

kernels::Weight WeightBinder::matrix(TensorRole role, int layer) {
  const checkpoint::TensorView& view = find(role, layer);
  kernels::Weight w;
  w.out = view.shape[0];
  w.in = view.size() / w.out;
  // Float32 activations take any stored type (widening is exact); bfloat16 ones need bfloat16 weights.
  const bool as_stored = activation_ == DType::kF32 || view.dtype == DType::kBF16;
  if (as_stored) {
    w.data = view.bytes.data();
    w.dtype = view.dtype;
  } else {
    Tensor copy(DType::kBF16, {w.out, w.in});
    convert_elements(view.bytes.data(), view.dtype, copy.data(), DType::kBF16, view.size());
    w.data = own(std::move(copy)).data();
    w.dtype = DType::kBF16;
  }
  return w;
}

kernels::Weight WeightBinder::matrix(TensorRole role, TensorRole bias, int layer) {
  kernels::Weight w = matrix(role, layer);
  w.bias = vector(bias, layer).data();
  return w;
}

Tensor WeightBinder::rounded(const checkpoint::TensorView& view) const {
  Tensor copy(DType::kF32, view.shape);
  const std::vector<float> values = view.to_f32();
  std::ranges::transform(values, copy.as<float>().begin(),
                         [bf16 = activation_ == DType::kBF16](float v) { return bf16 ? round_to_bf16(v) : v; });
  return copy;
}

std::span<const float> WeightBinder::vector(TensorRole role, int layer) {
  return own(rounded(find(role, layer))).as<float>();
}

Tensor WeightBinder::table(TensorRole role) {
  Tensor copy = rounded(find(role, -1));
  owned_bytes_ += static_cast<int64_t>(copy.size_bytes());
  return copy;
}

VisionWeights bind_vision(WeightBinder& b, const model::VisionConfig& config) {
  VisionWeights w;
  w.patch_embed = b.matrix(TensorRole::kPatchEmbedWeight, TensorRole::kPatchEmbedBias);
  w.position_table = b.table(TensorRole::kVisionPosEmbed);
  for (int i = 0; i < config.depth; ++i) {
    VisionBlockWeights block;
    block.norm1 = {b.vector(TensorRole::kVisionNorm1Weight, i), b.vector(TensorRole::kVisionNorm1Bias, i)};
    block.norm2 = {b.vector(TensorRole::kVisionNorm2Weight, i), b.vector(TensorRole::kVisionNorm2Bias, i)};
    block.qkv = b.matrix(TensorRole::kVisionQkvWeight, TensorRole::kVisionQkvBias, i);
    block.proj = b.matrix(TensorRole::kVisionProjWeight, TensorRole::kVisionProjBias, i);
    block.fc1 = b.matrix(TensorRole::kVisionFc1Weight, TensorRole::kVisionFc1Bias, i);
    block.fc2 = b.matrix(TensorRole::kVisionFc2Weight, TensorRole::kVisionFc2Bias, i);
    w.blocks.push_back(block);
  }
  w.merger = {{b.vector(TensorRole::kMergerNormWeight), b.vector(TensorRole::kMergerNormBias)},
              b.matrix(TensorRole::kMergerFc1Weight, TensorRole::kMergerFc1Bias),
              b.matrix(TensorRole::kMergerFc2Weight, TensorRole::kMergerFc2Bias)};
  for (int j = 0; j < static_cast<int>(config.deepstack_indexes.size()); ++j) {
    w.deepstack.push_back({{b.vector(TensorRole::kDeepstackNormWeight, j), b.vector(TensorRole::kDeepstackNormBias, j)},
                           b.matrix(TensorRole::kDeepstackFc1Weight, TensorRole::kDeepstackFc1Bias, j),
                           b.matrix(TensorRole::kDeepstackFc2Weight, TensorRole::kDeepstackFc2Bias, j)});
  }
  return w;
}

DecoderWeights bind_decoder(WeightBinder& b, const model::TextConfig& config, bool tied_head) {
  const auto projection = [&](TensorRole weight, TensorRole bias, int layer) {
    return config.attention_bias ? b.matrix(weight, bias, layer) : b.matrix(weight, layer);
  };
  DecoderWeights w;
  w.embedding = b.matrix(TensorRole::kTokenEmbedding);
  w.head = tied_head ? w.embedding : b.matrix(TensorRole::kLmHead);
  w.final_norm = b.vector(TensorRole::kTextFinalNorm);
  for (int i = 0; i < config.num_layers; ++i) {
    DecoderLayerWeights l;
    l.input_norm = b.vector(TensorRole::kTextInputNorm, i);
    l.post_attention_norm = b.vector(TensorRole::kTextPostAttentionNorm, i);
    l.q_norm = b.vector(TensorRole::kTextQNorm, i);
    l.k_norm = b.vector(TensorRole::kTextKNorm, i);
    l.q = projection(TensorRole::kTextQWeight, TensorRole::kTextQBias, i);
    l.k = projection(TensorRole::kTextKWeight, TensorRole::kTextKBias, i);
    l.v = projection(TensorRole::kTextVWeight, TensorRole::kTextVBias, i);
    l.o = projection(TensorRole::kTextOWeight, TensorRole::kTextOBias, i);
    l.gate = b.matrix(TensorRole::kTextGateWeight, i);
    l.up = b.matrix(TensorRole::kTextUpWeight, i);
    l.down = b.matrix(TensorRole::kTextDownWeight, i);
    w.layers.push_back(l);
  }
  return w;
}

}  // namespace qvl::engine::native
