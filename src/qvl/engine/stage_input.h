// The checks that every implementation of the stages makes before it computes (engine/stages.h).
#pragma once

#include <cstdint>
#include <span>

#include "qvl/engine/stages.h"
#include "qvl/model/config.h"

namespace qvl::engine {

// Returns P, the number of patches. Throws kMismatch when there is no image, a grid is not made of whole
// merge blocks, or rows and grids disagree.
int64_t check_vision_input(std::span<const float> pixels, std::span<const image::Grid> grids,
                           const model::VisionConfig& config);

// Embeddings [S >= 1, D] and DeepStack features in `activation`, three rows of S positions, ascending visual
// rows within S with features enough. Throws kInvalidArgument, kMismatch.
void check_decoder_input(const DecoderInput& input, const model::TextConfig& config, DType activation);

// What decode_together() demands of shares beyond check_decoder_input(). Throws kInvalidArgument.
void check_decode_shares(const DecoderInput& input, std::span<const DecodeShare> shares);

}  // namespace qvl::engine
