#include "qvl/generate/measure.h"

#include <algorithm>
#include <limits>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/text_timeline.h"
#include "qvl/model/positions.h"

namespace qvl::generate {
namespace {

// Prefill and greedy decoding of one timeline.
TextSpeed run_text(const engine::EmbedStage& embed, const engine::DecoderStage& decoder,
                   const model::ModelConfig& config, const std::vector<int32_t>& ids,
                   const std::vector<image::Grid>& images, const std::vector<image::Grid>& videos,
                   int64_t tokens) {
  TextSpeed out{.prompt_tokens = static_cast<int64_t>(ids.size()),
                .decoded_tokens = std::max<int64_t>(0, tokens - 1)};
  const model::Positions positions = model::mrope_positions(config, ids, images, videos);
  const std::unique_ptr<engine::KvCache> cache = decoder.new_cache();
  const Clock::time_point start = Clock::now();
  const Tensor embeds = embed.embed(ids);
  engine::DecoderInput prompt;
  prompt.embeds = &embeds;
  for (int a = 0; a < 3; ++a) prompt.positions[a] = positions.row(a);
  int32_t next = likeliest(decoder.forward(prompt, *cache, engine::LogitsMode::kLast));
  out.prefill_seconds = seconds_since(start);

  const Clock::time_point decode_start = Clock::now();
  for (int64_t i = 0; i < out.decoded_tokens; ++i) {
    const Tensor row = embed.embed(std::span(&next, 1));
    const int64_t position = cache->length() + positions.delta;
    engine::DecoderInput step;
    step.embeds = &row;
    for (auto& axis : step.positions) axis = std::span(&position, 1);
    step.decode = true;
    step.top.count = 1;
    next = likeliest(decoder.forward(step, *cache, engine::LogitsMode::kLast));
  }
  out.decode_seconds = seconds_since(decode_start);
  return out;
}

}  // namespace

VisionSpeed measure_vision(const engine::VisionStage& vision, const TraceInput& input, double min_seconds) {
  if (input.image_grids.empty())
    fail(ErrorCode::kInvalidArgument, "measure", "images", "at least one", "none");
  VisionSpeed out{.patches = 0, .seconds = std::numeric_limits<double>::infinity()};
  for (const image::Grid& g : input.image_grids) out.patches += g.patches();
  const Clock::time_point start = Clock::now();
  for (int run = 0; run < 3 || seconds_since(start) < min_seconds; ++run) {
    const Clock::time_point begin = Clock::now();
    vision.encode(input.pixel_values.as<float>(), input.image_grids);
    if (run > 0) out.seconds = std::min(out.seconds, seconds_since(begin));
  }
  return out;
}

TextSpeed measure_text(const engine::EmbedStage& embed, const engine::DecoderStage& decoder,
                       const model::ModelConfig& config, const TraceInput& input, int64_t tokens) {
  const auto needed = static_cast<int64_t>(input.ids.size()) + tokens;
  if (needed > config.text.max_positions) {
    fail(ErrorCode::kLimit, "measure", "prompt and answer",
         cat("at most ", config.text.max_positions, " tokens"), cat(needed));
  }
  run_text(embed, decoder, config, {input.ids.front()}, {}, {}, 4);
  return run_text(embed, decoder, config, input.ids, input.image_grids, input.video_grids, tokens);
}

}  // namespace qvl::generate
