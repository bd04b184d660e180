// Weights of the native stages, bound by role to the mapped checkpoint or package (spec 2). A matrix stays in
// the file and is used from there, integer formats too; only what the kernels need in another type (vectors in
// float32, floats of a precision other than the stored one) is copied.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/engine/native/tensor_source.h"
#include "qvl/kernels/ops.h"
#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"

namespace qvl::engine::native {

// LayerNorm: weight and bias [n]. RMSNorm has no bias.
struct NormWeights {
  std::span<const float> weight;
  std::span<const float> bias;
};

struct VisionBlockWeights {
  NormWeights norm1, norm2;
  kernels::Weight qkv;   // [3*Dv, Dv]; rows: all q heads, all k heads, all v heads
  kernels::Weight proj;  // [Dv, Dv]
  kernels::Weight fc1;   // [Iv, Dv]
  kernels::Weight fc2;   // [Dv, Iv]
};

struct MergerWeights {
  NormWeights norm;     // [Dv] for the main merger, [4*Dv] for DeepStack mergers
  kernels::Weight fc1;  // [4*Dv, 4*Dv]
  kernels::Weight fc2;  // [O, 4*Dv]
};

struct VisionWeights {
  kernels::Weight patch_embed;     // [Dv, 1536]
  kernels::Weight position_table;  // [S*S, Dv]
  std::vector<VisionBlockWeights> blocks;
  MergerWeights merger;
  std::vector<MergerWeights> deepstack;
};

struct DecoderLayerWeights {
  std::span<const float> input_norm, post_attention_norm;  // [D]
  std::span<const float> q_norm, k_norm;                   // [head_dim]
  kernels::Weight q, k, v, o;                              // [Q, D], [K, D], [K, D], [D, Q]
  kernels::Weight gate, up, down;                          // [I, D], [I, D], [D, I]
};

struct DecoderWeights {
  kernels::Weight embedding;  // [vocab, D]
  kernels::Weight head;       // [vocab, D]; the same data when tied
  std::optional<kernels::Shortlist> head_shortlist;  // the head in few bits (head.h)
  // With a shortlist few rows of these two are used: read them so, if they are integers.
  ReadStoredRow read_embedding_row, read_head_row;
  std::span<const float> final_norm;
  std::vector<DecoderLayerWeights> layers;
};

// Owns what had to be copied; the views above point into it or into the source.
class WeightBinder {
 public:
  // `activation` is the type of the activations, F32 or BF16; products with integer weights round them to codes of
  // `activation_bits`, 8 or 7, or take them as they are (0). `on_bytes(n)` is called as tensors are bound. The pool converts.
  WeightBinder(const TensorSource& source, DType activation, int activation_bits, ThreadPool& pool,
               std::function<void(int64_t)> on_bytes);

  // Matrix [out, ...] as [out, product of the rest], with the bias of `bias` unless that is the same role.
  kernels::Weight matrix(model::TensorRole role, int layer = -1);
  kernels::Weight matrix(model::TensorRole role, model::TensorRole bias, int layer = -1);
  // The source's copy of the head in few bits; none where there is none, or where integer weights are not multiplied in int8.
  std::optional<kernels::Shortlist> head_shortlist();
  ReadStoredRow row_reader(model::TensorRole role) const { return source_.row_reader(role); }
  // A vector in float32, rounded to the activation type first, as the reference holds it.
  std::span<const float> vector(model::TensorRole role, int layer = -1);

  // Moves the owned copies out; they must outlive every view handed out.
  std::vector<Tensor> take_owned() { return std::move(owned_); }
  int64_t owned_bytes() const { return owned_bytes_; }
  // A matrix bound so far is multiplied in int8.
  bool multiplies_int8() const { return multiplies_int8_; }

 private:
  SourceTensor find(model::TensorRole role, int layer);
  // An integer tensor as the kernels take it.
  kernels::Weight integer(const SourceTensor& tensor);
  Tensor& own(Tensor tensor);
  // The elements in `type`, F32 or BF16, [rows, columns].
  Tensor converted(const SourceTensor& source, DType type) const;
  // The tensor in float32, its values rounded to the activation type.
  Tensor rounded(const SourceTensor& source) const;

  const TensorSource& source_;
  DType activation_;
  int activation_bits_;
  bool multiplies_int8_ = false;
  ThreadPool& pool_;
  std::function<void(int64_t)> on_bytes_;
  std::vector<Tensor> owned_;
  int64_t owned_bytes_ = 0;
};

VisionWeights bind_vision(WeightBinder& binder, const model::VisionConfig& config);
// Some rows of an integer matrix, copied from its file, in memory of the caller that is enlarged where it is too small.
class RowCopies {
 public:
  RowCopies(const kernels::Weight& matrix, int64_t rows, AlignedBuffer& room);
  // Makes row `row` of the matrix the copies' row `at`; different ones by several threads at once.
  void read(const ReadStoredRow& read, int64_t row, int64_t at);
  // [rows, in of the matrix]
  const kernels::Weight& weight() const { return copy_; }

 private:
  kernels::Weight copy_;
  uint64_t data_bytes_, scale_bytes_, zero_bytes_;  // of a row
  std::byte *data_, *scales_, *zeros_;
};

DecoderWeights bind_decoder(WeightBinder& binder, const model::TextConfig& config, bool tied_head);
// The bytes of the matrices that a call of the decoder reads whole, in its order.
std::vector<std::span<const std::byte>> pages_in_order_of_use(const DecoderWeights& weights);

}  // namespace qvl::engine::native
