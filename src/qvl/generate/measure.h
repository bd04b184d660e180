// How fast the stages of an engine are on one prompt: what `qvl compare` runs in a process of its own for
// each way to run the model.
#pragma once

#include <cstdint>

#include "qvl/base/json.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/trace.h"

namespace qvl::generate {

struct VisionSpeed {
  int64_t patches = 0;
  double seconds = 0;  // of the fastest run
  double patches_per_s() const { return seconds > 0 ? static_cast<double>(patches) / seconds : 0; }
};

// Encodes the images of the input until `min_seconds` are over, at least three times with the first one,
// which also loads what is loaded lazily, not counted. Throws what the stage throws, kInvalidArgument without
// images.
VisionSpeed measure_vision(const engine::VisionStage& vision, const TraceInput& input,
                           double min_seconds = 1);

struct TextSpeed {
  int64_t prompt_tokens = 0;
  double prefill_seconds = 0;
  int64_t decoded_tokens = 0;  // after the first one, which the prefill gives
  double decode_seconds = 0;
  double prefill_tokens_per_s() const {
    return prefill_seconds > 0 ? static_cast<double>(prompt_tokens) / prefill_seconds : 0;
  }
  double decode_tokens_per_s() const {
    return decode_seconds > 0 ? static_cast<double>(decoded_tokens) / decode_seconds : 0;
  }
};

// Prefills the ids, placeholders with their own embeddings (they cost what features cost), then decodes
// `tokens` greedy tokens; before that a prompt of one token and four tokens do not count. Throws what the
// stages throw, kLimit when the context is too short.
TextSpeed measure_text(const engine::EmbedStage& embed, const engine::DecoderStage& decoder,
                       const model::ModelConfig& config, const TraceInput& input, int64_t tokens);

}  // namespace qvl::generate
