// May the vision stage be stored with 8-bit weights? Features of pictures from it against those in float32 decide
// (`qvl export --vision auto`). Spec 5.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/base/thread_pool.h"
#include "qvl/engine/stages.h"
#include "qvl/image/decode.h"
#include "qvl/image/processor_config.h"

namespace qvl::generate {

// What the cosine of the features, of every picture and every output, must not fall below.
inline constexpr double kVisionGateCosine = 0.999;

struct VisionGate {
  double cosine = 1;    // the least of all outputs of all pictures; 0 where one holds what is not finite
  std::string worst;    // that output and picture: "deepstack1 of picture 2 (256x192)"
  int64_t pictures = 0;
  int64_t patches = 0;  // of all pictures together

  bool passed() const { return cosine >= kVisionGateCosine; }
  // {"reference", "cosine", "limit", "passed", "worst", "pictures", "patches"}
  Json to_json() const;
};

// Drawn pictures of some sizes, the same on every machine, for a model that nobody gave samples for.
std::vector<image::RgbImage> vision_gate_pictures();

// Encodes every picture with the reference and with each candidate, in their order; the cosines are of whole outputs (merged,
// each DeepStack level). Throws kInvalidArgument without pictures, kMismatch where the stages' outputs differ in shape,
// kCancelled when `progress` (pictures done, in all) returns false, and what preparing a picture and the stages throw. `pool`
// may be null.
std::vector<VisionGate> measure_vision_gates(const engine::VisionStage& reference,
                                             std::span<const engine::VisionStage* const> candidates,
                                             const image::ImageProcessorConfig& processor,
                                             std::span<const image::RgbImage> pictures, ThreadPool* pool,
                                             const engine::ProgressFn& progress = {});

}  // namespace qvl::generate
