#include "qvl/engine/native/weights.h"

#include <algorithm>
#include <utility>


namespace qvl::engine::native {
namespace {

// Rows that one task converts.
constexpr int64_t kRowsOfATask = 32;

}  // namespace

using model::TensorRole;

WeightBinder::WeightBinder(const TensorSource& source, DType activation, int activation_bits, ThreadPool& pool,
                           std::function<void(int64_t)> on_bytes)
    : source_(source),
      activation_(activation),
      activation_bits_(activation_bits),
      pool_(pool),
      on_bytes_(std::move(on_bytes)) {}

SourceTensor WeightBinder::find(TensorRole role, int layer) {
  const SourceTensor tensor = source_.find(role, layer);
  if (on_bytes_) on_bytes_(static_cast<int64_t>(tensor.bytes()));
  return tensor;
}

Tensor& WeightBinder::own(Tensor tensor) {
  owned_bytes_ += static_cast<int64_t>(tensor.size_bytes());
  return owned_.emplace_back(std::move(tensor));
}

Tensor WeightBinder::converted(const SourceTensor& source, DType type) const {
  // Opening a package refuses integers for anything but matrices, and those are used as they are.
  const DType stored = source.format.float_type;
  Tensor out(type, {source.rows, source.columns});
  const auto row_of = [columns = source.columns](auto* data, int64_t row, DType item) {
    return data + static_cast<size_t>(row * columns) * dtype_size_bytes(item);
  };
  const int64_t tasks = (source.rows + kRowsOfATask - 1) / kRowsOfATask;
  pool_.parallel_for(tasks, [&](int64_t task, int) {
    const int64_t first = task * kRowsOfATask;
    const int64_t count = std::min(kRowsOfATask, source.rows - first);
    convert_elements(row_of(source.data.data(), first, stored), stored,
                     row_of(static_cast<std::byte*>(out.data()), first, type), type, count * source.columns);
  });
  return out;
}

kernels::Weight WeightBinder::integer(const SourceTensor& tensor) {
  kernels::Weight w;
  w.out = tensor.rows;
  w.in = tensor.columns;
  w.format = tensor.format;
  w.data = tensor.data.data();
  w.scales = tensor.scales.data();
  w.zero_points = tensor.format.zero_points ? tensor.zero_points.data() : nullptr;
  w.int8_activations = activation_bits_ != 0;
  if (w.int8_activations) w.activation_bits = activation_bits_;
  multiplies_int8_ |= w.int8_activations;
  return w;
}

std::optional<kernels::Shortlist> WeightBinder::head_shortlist() {
  if (activation_bits_ == 0) return std::nullopt;
  const std::optional<kernels::Shortlist> list = source_.head_shortlist();
  if (list && on_bytes_) on_bytes_(static_cast<int64_t>(list->parts.bytes()));
  return list;
}

kernels::Weight WeightBinder::matrix(TensorRole role, int layer) {
  const SourceTensor tensor = find(role, layer);
  if (tensor.format.kind != quant::Kind::kFloat) return integer(tensor);
  kernels::Weight w;
  w.out = tensor.rows;
  w.in = tensor.columns;
  // Float32 activations take any stored float type (widening is exact); bfloat16 ones need bfloat16 weights.
  const DType stored = tensor.format.float_type;
  if (activation_ == DType::kF32 || stored == DType::kBF16) {
    w.data = tensor.data.data();
    w.dtype = stored;
  } else {
    w.data = own(converted(tensor, activation_)).data();
    w.dtype = activation_;
  }
  return w;
}

kernels::Weight WeightBinder::matrix(TensorRole role, TensorRole bias, int layer) {
  kernels::Weight w = matrix(role, layer);
  w.bias = vector(bias, layer).data();
  return w;
}

Tensor WeightBinder::rounded(const SourceTensor& source) const {
  Tensor copy = converted(source, DType::kF32);
  if (activation_ == DType::kBF16)
    std::ranges::transform(copy.as<float>(), copy.as<float>().begin(), round_to_bf16);
  return copy;
}

std::span<const float> WeightBinder::vector(TensorRole role, int layer) {
  return own(rounded(find(role, layer))).as<float>();
}

VisionWeights bind_vision(WeightBinder& b, const model::VisionConfig& config) {
  VisionWeights w;
  w.patch_embed = b.matrix(TensorRole::kPatchEmbedWeight, TensorRole::kPatchEmbedBias);
  w.position_table = b.matrix(TensorRole::kVisionPosEmbed);
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
    w.deepstack.push_back(
        {{b.vector(TensorRole::kDeepstackNormWeight, j), b.vector(TensorRole::kDeepstackNormBias, j)},
         b.matrix(TensorRole::kDeepstackFc1Weight, TensorRole::kDeepstackFc1Bias, j),
         b.matrix(TensorRole::kDeepstackFc2Weight, TensorRole::kDeepstackFc2Bias, j)});
  }
  return w;
}

RowCopies::RowCopies(const kernels::Weight& matrix, int64_t rows, AlignedBuffer& room) : copy_(matrix) {
  const quant::Format& f = matrix.format;
  data_bytes_ = f.data_bytes(1, matrix.in);
  scale_bytes_ = f.scale_bytes(1, matrix.in);
  zero_bytes_ = f.zero_point_bytes(1, matrix.in);
  // Parts begin at whole cache lines.
  const auto part = [rows](uint64_t row_bytes) { return (static_cast<uint64_t>(rows) * row_bytes + 63) / 64 * 64; };
  const uint64_t needed = part(data_bytes_) + part(scale_bytes_) + part(zero_bytes_);
  if (room.size_bytes() < needed) room = AlignedBuffer(needed);
  data_ = room.data();
  scales_ = data_ + part(data_bytes_);
  zeros_ = scales_ + part(scale_bytes_);
  copy_.out = rows;
  copy_.data = data_;
  copy_.scales = scales_;
  if (f.zero_points) copy_.zero_points = zeros_;
}

void RowCopies::read(const ReadStoredRow& read, int64_t row, int64_t at) {
  const auto n = static_cast<uint64_t>(at);
  read(row, data_ + n * data_bytes_, scales_ + n * scale_bytes_, zeros_ + n * zero_bytes_);
}

DecoderWeights bind_decoder(WeightBinder& b, const model::TextConfig& config, bool tied_head) {
  const auto projection = [&](TensorRole weight, TensorRole bias, int layer) {
    return config.attention_bias ? b.matrix(weight, bias, layer) : b.matrix(weight, layer);
  };
  DecoderWeights w;
  w.embedding = b.matrix(TensorRole::kTokenEmbedding);
  w.head = tied_head ? w.embedding : b.matrix(TensorRole::kLmHead);
  w.head_shortlist = b.head_shortlist();
  if (w.head_shortlist) {
    if (w.embedding.format.kind != quant::Kind::kFloat) w.read_embedding_row = b.row_reader(TensorRole::kTokenEmbedding);
    w.read_head_row = b.row_reader(model::head_role(tied_head));
  }
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

std::vector<std::span<const std::byte>> pages_in_order_of_use(const DecoderWeights& weights) {
  std::vector<std::span<const std::byte>> out;
  const auto add = [&out](const void* data, size_t bytes) {
    if (bytes > 0) out.emplace_back(static_cast<const std::byte*>(data), bytes);
  };
  const auto add_matrix = [&add](const kernels::Weight& w) {
    if (w.format.kind == quant::Kind::kFloat) {
      add(w.data, static_cast<size_t>(w.out * w.in) * dtype_size_bytes(w.dtype));
      return;
    }
    add(w.data, w.format.data_bytes(w.out, w.in));
    add(w.scales, w.format.scale_bytes(w.out, w.in));
    add(w.zero_points, w.format.zero_point_bytes(w.out, w.in));
  };
  for (const DecoderLayerWeights& l : weights.layers) {
    for (const kernels::Weight* w : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) add_matrix(*w);
  }
  if (!weights.head_shortlist) {
    add_matrix(weights.head);
    return out;
  }
  const quant::ConstShortlistSpan& list = weights.head_shortlist->parts;
  add(list.coarse.data(), list.coarse.size());
  add(list.scales.data(), list.scales.size());
  add(list.fine.data(), list.fine.size());
  return out;
}

}  // namespace qvl::engine::native
