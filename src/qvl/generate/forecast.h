// What a question about pictures will take on this machine, before it is asked, and the largest pictures that fit into a
// budget of time or memory.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "qvl/generate/prefill_chunk.h"
#include "qvl/generate/speed_profile.h"
#include "qvl/image/processor_config.h"
#include "qvl/image/smart_resize.h"
#include "qvl/model/config.h"

namespace qvl::generate {

struct Question {
  std::vector<image::ImageSize> pictures;  // upright originals
  int64_t text_tokens = 0;                 // of the prompt, without the visual ones
  int64_t answer_tokens = 0;
  double preprocess_seconds = 0;
  int64_t prefill_chunk = kPrefillChunkTokens;
};

// What memory a process with this model has to begin with.
struct MemoryFacts {
  int64_t base_bytes = 0;            // resident once the model is open and nothing is computed, without weights
  int64_t touched_weight_bytes = 0;  // pages of weights that opening has brought
  int64_t vision_weight_bytes = 0;
  int64_t text_weight_bytes = 0;
  DType kv_dtype = DType::kBF16;  // of the elements of keys and values
};

struct Forecast {
  std::vector<image::ImageSize> resized;
  int64_t patches = 0;
  int64_t image_tokens = 0;
  int64_t prompt_tokens = 0;
  double vision_seconds = 0;
  double prefill_seconds = 0;
  double first_token_seconds = 0;  // preprocessing, vision, prefill
  double tokens_per_second = 0;    // in the middle of the answer
  double answer_seconds = 0;       // all of it
  int64_t kv_bytes = 0;            // keys and values at the end of the answer
  int64_t peak_bytes = 0;
};

// With pictures resized within the bounds of `processor`. Throws kLimit, kInvalidArgument as smart_resize().
Forecast forecast(const model::ModelConfig& config, const SpeedProfile& profile, const MemoryFacts& memory,
                  const Question& question, const image::ImageProcessorConfig& processor);

struct Budget {
  std::optional<double> seconds;   // to the first token
  std::optional<int64_t> bytes;    // of peak memory
  bool fits(const Forecast& f) const {
    return (!seconds || f.first_token_seconds <= *seconds) && (!bytes || f.peak_bytes <= *bytes);
  }
};

struct Plan {
  int64_t max_pixels = 0;  // to give to the processor
  bool reduced = false;    // pictures are smaller than the model's own bounds would make them
  Forecast full;           // within those bounds
  Forecast chosen;         // what fits
};

// The largest bound on pixels, never below the processor's minimum, with which the question fits. Throws kLimit saying
// what the smallest pictures would take when even they do not fit.
Plan plan_pictures(const Budget& budget, const image::ImageProcessorConfig& processor,
                   const std::function<Forecast(const image::ImageProcessorConfig&)>& at);

}  // namespace qvl::generate
