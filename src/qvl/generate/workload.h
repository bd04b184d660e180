// What the stages have to do for a picture, a prompt and a token: operations and bytes, from the configuration alone.
// What `qvl bench` divides by the machine's limits, and `qvl plan` scales its measurements with (spec 5, 6).
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "qvl/image/grid.h"
#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"

namespace qvl::generate {

// A multiplication and an addition are two operations. Norms, rotations and activations are not counted.
struct Operations {
  double linear = 0;     // products with weights
  double attention = 0;  // of queries with keys, of weights with values
  double total() const { return linear + attention; }
};

// One call of the vision stage: patch embedding, blocks, mergers. Attention is within a frame.
Operations vision_operations(const model::VisionConfig& config, std::span<const image::Grid> grids);

// `tokens` prompt tokens after `past` cached ones, with the logits of the last one: of the last layer, the other rows
// leave only their keys and values.
Operations prefill_operations(const model::TextConfig& config, int64_t tokens, int64_t past = 0);

// Bytes of a tensor as it is stored; 0 for one that shares another's (a tied head).
using StoredBytes = std::function<int64_t(model::TensorRole role, int layer)>;

// What one generated token reads of the weights: the decoder's layers and the head, or its shortlist where `shortlist_bytes` is not
// 0 (the few rows of the head that follow are not counted), a row of the embedding.
int64_t decode_weight_bytes(const model::ModelConfig& config, bool tied_head, const StoredBytes& stored, int64_t shortlist_bytes = 0);

// What a token at cache length `context` reads: those, and keys and values of the positions before it and its own.
double decode_bytes(const model::ModelConfig& config, int64_t weight_bytes, int64_t context, DType cache);

}  // namespace qvl::generate
