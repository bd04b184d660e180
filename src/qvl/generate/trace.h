// One prefill with every intermediate tensor, under the names of the trace contract, and some greedy tokens
// after it. This is how anyone compares qvl with another implementation (`qvl trace`).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/engine.h"
#include "qvl/image/grid.h"

namespace qvl::generate {

struct TraceInput {
  std::vector<int32_t> ids;              // placeholders already expanded
  Tensor pixel_values;                   // F32 [P, 1536]; empty without images
  std::vector<image::Grid> image_grids;  // in prompt order
  Tensor pixel_values_videos;            // F32 [P, 1536]; empty without videos
  std::vector<image::Grid> video_grids;
};

struct TracedTensor {
  std::string name;
  Tensor value;
};

struct TraceOptions {
  int64_t greedy_tokens = 0;  // after the prompt
  // Leaves out what is inside the stages (vision.pos_embed, blocks, layers): less memory, and the engine runs as it
  // does for an answer.
  bool stages_only = false;
  // Adds decode_logits [n - 1, V] of n greedy tokens: what each step after the prompt says about the next token.
  bool decode_logits = false;
  // Tokens that the steps go on with instead of the engine's own choices, so that two engines can be compared step by
  // step although they would part; greedy_tokens stay the engine's own.
  std::vector<int64_t> follow;
};

// In order of computation: input_ids [S], pixel_values, image_grid_thw [N, 3] and the video pair as far as
// given, vision.pos_embed, vision.block{i}, vision.merged, vision.deepstack{j}, position_ids [3, S],
// inputs_embeds [S, D], layer{i} [S, D] after DeepStack, logits [S, V], greedy_tokens [n]. Ids, grids,
// positions and tokens are I64, all else F32. With images and videos, vision rows are those of the images,
// then those of the videos. Greedy tokens go on whatever their meaning; fewer than asked for when the context
// ends. Throws kMismatch, kLimit, kCancelled.
std::vector<TracedTensor> trace_prefill(const engine::Engine& engine, const TraceInput& input,
                                        const TraceOptions& options, const engine::ProgressFn& progress = {});

}  // namespace qvl::generate
