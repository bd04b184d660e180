// The measurements of `qvl bench`: an engine's stages are validated first, then timed again and again. Every figure is
// a series, so that a report can give the median and how far the runs lie apart.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "qvl/engine/engine.h"
#include "qvl/generate/prefill_chunk.h"
#include "qvl/generate/trace.h"
#include "qvl/image/decode.h"
#include "qvl/image/processor_config.h"

namespace qvl::generate {

// Seconds of repeated runs; never empty where a function below returns one.
struct Series {
  std::vector<double> seconds;
  double median() const;
  double fastest() const;
  double slowest() const;
};

// What the stages promise. `chunk_error` is the largest difference allowed between a prompt computed whole and in
// chunks, or a picture encoded alone and beside another, in units of the largest value: 0 for the native engine, whose
// contract is the same bits (kernels/ops.h). `decode_error` likewise between a token that is decoded and the same
// token at the end of a prompt: these take different paths through the kernels.
struct ValidationLimits {
  double chunk_error = 0;
  double decode_error = 0.05;
};

// Encodes the first image of the input alone and beside a smaller part of itself: finite, and the same features.
// Throws kMismatch naming the fault, kInvalidArgument without images.
void validate_vision(const engine::VisionStage& vision, const model::VisionConfig& config, const TraceInput& input,
                     const ValidationLimits& limits);

// A prompt of 40 seeded ids: finite logits that differ from place to place, the same in chunks, the last token decoded
// as in the prompt, and the same again after the cache was cut. Throws kMismatch naming the fault.
void validate_text(const engine::EmbedStage& embed, const engine::DecoderStage& decoder,
                   const model::ModelConfig& config, const ValidationLimits& limits);

// Called before each run with how many are done and how many there are; false cancels (kCancelled).
using BenchProgress = std::function<bool(int64_t done, int64_t total)>;

// Encodes the images of the input `repeats` times after one run that does not count.
Series time_vision(const engine::VisionStage& vision, const TraceInput& input, int repeats,
                   const BenchProgress& progress = {});

struct TextBenchOptions {
  std::vector<int64_t> prompt_tokens = {512, 1024};  // each >= 1
  std::vector<int64_t> contexts = {16, 800, 4000};   // cache lengths before the tokens that are decoded, each >= 1
  int64_t decode_tokens = 16;                        // of one run
  int64_t chunk_tokens = kPrefillChunkTokens;        // of prefill
  int repeats = 3;
};

struct PrefillSeries {
  int64_t tokens = 0;
  Series seconds;  // of the whole prompt, with the first token's logits
};
struct DecodeSeries {
  int64_t context = 0;
  int64_t tokens = 0;
  Series seconds;  // of all `tokens`
  // How fast memory was read around each of these runs; empty where nobody measured it.
  std::vector<double> read_bytes_per_second;
};
struct TextSeries {
  std::vector<PrefillSeries> prefill;  // in the order asked for
  std::vector<DecodeSeries> decode;
};

// Seeded ids. The longest context is computed once and cut for the shorter ones. Throws kLimit when prompt or context
// do not fit the model's, kInvalidArgument for sizes below 1, kCancelled, what the stages throw.
// `read_rate`, which may be empty, measures how fast memory is read, in bytes per second; it is called before and after each run
// of tokens that are decoded, and the mean counts: on a shared machine memory is faster now and slower then.
TextSeries time_text(const engine::EmbedStage& embed, const engine::DecoderStage& decoder,
                     const model::ModelConfig& config, const TextBenchOptions& options,
                     const BenchProgress& progress = {}, const std::function<double()>& read_rate = {});

// A question about a picture from its pixels to the first token: resizing, patches, vision, prefill, sampling. `input`
// is the picture's prompt (its pixel_values are not used). The first run does not count.
Series time_to_first_token(std::shared_ptr<const engine::Engine> engine, const image::RgbImage& picture,
                           const image::ImageProcessorConfig& processor, const TraceInput& input,
                           int64_t chunk_tokens, int repeats, const BenchProgress& progress = {});

}  // namespace qvl::generate
