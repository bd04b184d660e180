// How long this machine takes for what a model does, from some ten seconds of its own stages: what `qvl plan` predicts
// with. Times follow from operations and bytes (workload.h) by a few numbers.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "qvl/base/json.h"
#include "qvl/engine/engine.h"

namespace qvl::generate {

struct SpeedProfile {
  // seconds = linear_s * operations.linear + attention_s * operations.attention + weight_s * weight elements: these are
  // unpacked in each call, for any number of rows.
  double vision_linear_s = 0;
  double vision_attention_s = 0;
  double vision_weight_s = 0;
  // Of the decoder, whose attention may be in another precision.
  double prefill_linear_s = 0;
  double prefill_attention_s = 0;
  double prefill_weight_s = 0;
  // The first call of a process takes longer: pages of the weights are mapped. 0 where the stages are so slow that it does
  // not matter.
  double vision_first_s = 0;
  double prefill_first_s = 0;
  // A decoded token, for each byte of weights, keys and values.
  double decode_byte_s = 0;
  // What measure_decode_part() said at that time.
  double decode_part_s = 0;

  // What the stages read and keep.
  int64_t decode_weight_bytes = 0;
  int64_t element_bytes = 2;  // of activations

  Json to_json() const;
  // Throws kFormat naming `where` for a missing, negative or non-finite number.
  static SpeedProfile from_json(const Json& json, std::string_view where);
};

// Weight elements of a call: patch embedding, blocks and mergers; the decoder's layers without the head.
double vision_weights(const model::VisionConfig& config);
double layer_weights(const model::TextConfig& config);

// One timed piece of work: operations, weight elements, seconds.
struct ProfileSample {
  double linear = 0, attention = 0, weights = 0;
  double seconds = 0;
  bool whole = false;  // a complete call, not some of its units
};
// The rates >= 0 that explain the samples best: exactly where three samples allow it, else with the smallest squares of relative
// errors. Throws kInvalidArgument for samples without work or time.
struct WorkRates {
  double linear = 0, attention = 0, weights = 0;
};
WorkRates fit_rates(std::span<const ProfileSample> samples);

// Runs some blocks of the vision stage on three grids, the decoder on 32, on 256 and on up to 2,048 tokens, the larger ones for a
// few layers only where a layer is slow, and decodes some tokens. `decode_weight_bytes` as in workload.h. progress false
// cancels (kCancelled). Throws what the stages throw.
SpeedProfile measure_speed_profile(const engine::Engine& engine, int64_t decode_weight_bytes,
                                   const engine::ProgressFn& progress = {});

// Seconds of a step's first layers, as many as take more memory than caches hold (all of a small model's); a whole step where the
// stage does not tell when layers begin. A third of a second: how fast memory is changes by the minute.
double measure_decode_part(const engine::Engine& engine, int64_t decode_weight_bytes);

// `profile` as of this moment: its decoding rate by what measure_decode_part() says now. Throws what the stages throw.
SpeedProfile with_decoding_now(SpeedProfile profile, const engine::Engine& engine);

}  // namespace qvl::generate
