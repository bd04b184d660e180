// Puts the features of images and videos into a prompt: the step between the vision stage and the decoder
// (spec 6.1, 6.5).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/stages.h"

namespace qvl::engine {

// What the decoder needs to know of the visual tokens of a prompt, in sequence order.
struct VisualRows {
  std::vector<int64_t> rows;      // positions in `ids` that hold a visual token, ascending
  std::vector<Tensor> deepstack;  // per level [rows.size(), D]
};

// Replaces the rows of `embeds` [S, D] at image and video placeholders by the merged features, in order, and
// returns the DeepStack rows in sequence order. `images` and `videos` may be null when there are none of that
// kind. Features are converted to the type of `embeds`. Throws kMismatch when placeholders and features
// differ in number (spec 6.1: "the counts must match exactly") or width.
VisualRows place_visual_features(std::span<const int32_t> ids, int32_t image_token_id, int32_t video_token_id,
                                 const VisionFeatures* images, const VisionFeatures* videos, Tensor& embeds);

}  // namespace qvl::engine
