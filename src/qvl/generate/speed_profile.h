// How long this machine takes for what a model does, from a few seconds of its own stages: what `qvl plan` predicts
// with. Times follow from operations and bytes (workload.h) by a few numbers.
#pragma once

#include <cstdint>
#include <functional>

#include "qvl/base/json.h"
#include "qvl/engine/engine.h"

namespace qvl::generate {

struct SpeedProfile {
  // seconds = linear * operations.linear + attention * operations.attention
  double vision_linear_s = 0;
  double vision_attention_s = 0;
  // Prefill likewise, with its attention at the vision's rate, and for each call and each weight element once more:
  // weights are unpacked for any number of rows.
  double prefill_linear_s = 0;
  double prefill_weight_s = 0;
  // The first call of a process takes longer: pages of the weights are mapped. 0 where the stages are so slow that it does
  // not matter.
  double vision_first_s = 0;
  double prefill_first_s = 0;
  // A decoded token, for each byte of weights, keys and values.
  double decode_byte_s = 0;

  // What the stages read and keep.
  int64_t decode_weight_bytes = 0;
  int64_t element_bytes = 2;  // of activations

  Json to_json() const;
  // Throws kFormat naming `where` for a missing, negative or non-finite number.
  static SpeedProfile from_json(const Json& json, std::string_view where);
};

// The x, y >= 0 with p1 * x + q1 * y = seconds1 and p2 * x + q2 * y = seconds2. Where noise makes one of them negative it
// is 0 and the other one explains the second sample, which is the larger one. Throws kInvalidArgument without p or time.
struct Pair {
  double x = 0, y = 0;
};
Pair solve_rates(double p1, double q1, double seconds1, double p2, double q2, double seconds2);

// Runs some blocks of the vision stage on two grids, the decoder on 32 and on 256 tokens, the larger ones for a few
// layers only where a layer is slow, and decodes some tokens. `decode_weight_bytes` as in workload.h. progress false
// cancels (kCancelled). Throws what the stages throw.
SpeedProfile measure_speed_profile(const engine::Engine& engine, int64_t decode_weight_bytes,
                                   const engine::ProgressFn& progress = {});

}  // namespace qvl::generate
