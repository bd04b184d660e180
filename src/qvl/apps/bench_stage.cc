#include "qvl/apps/bench_stage.h"

#include "qvl/apps/child_process.h"
#include "qvl/apps/stored_weights.h"
#include "qvl/base/error.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/workload.h"
#include "qvl/image/processor_config.h"
#include "qvl/kernels/machine_limits.h"

namespace qvl::apps {
namespace {

generate::ValidationLimits limits_of(const std::string& stage_name) {
  // The native engine promises the same bits however a prompt is cut; ONNX Runtime promises nothing, its kernels for
  // one row and for many differ.
  const bool native = stage_name.starts_with("native"), exact = stage_name.ends_with("fp32");
  return {.chunk_error = native ? 0.0 : 0.05, .decode_error = exact ? 1e-3 : 0.1};
}

Json operations_json(const generate::Operations& o) {
  return {{"linear", o.linear}, {"attention", o.attention}};
}

generate::ParityCase picture_case(const BenchSettings& s, const OpenStages& opened) {
  constexpr int64_t kGreedyTokens = 1;  // nobody asks for them here
  return generate::picture_case(s.model, opened.config, s.picture, kGreedyTokens, opened.pool.get());
}

void measure_vision(const BenchSettings& s, const OpenStages& opened, const generate::BenchProgress& progress,
                    Json& out) {
  const generate::ParityCase prompt = picture_case(s, opened);
  generate::validate_vision(*opened.vision, opened.config.vision, prompt.input, limits_of(opened.vision_name));
  const generate::Series series =
      generate::time_vision(*opened.vision, prompt.input, s.text.repeats, progress);
  const image::Grid& grid = prompt.input.image_grids[0];
  const int64_t patch_px = opened.config.vision.patch_size;
  out["patches"] = grid.patches();
  out["resized"] = {grid.w * patch_px, grid.h * patch_px};
  out["seconds"] = series.seconds;
  out["operations"] =
      operations_json(generate::vision_operations(opened.config.vision, prompt.input.image_grids));
}

// How fast weights are read where they lie: memory is not equally fast everywhere, nor at all times. Empty where there are
// so few that caches answer for them.
std::function<double()> weights_read_rate(const OpenStages& opened) {
  constexpr size_t kLeastBytes = size_t{512} << 20, kMostBytes = size_t{1} << 30;
  std::vector<std::span<const std::byte>> some;
  size_t bytes = 0;
  for (const std::span<const std::byte> run : opened.decoder->weights_of_step()) {
    if (bytes >= kMostBytes) break;
    some.push_back(run);
    bytes += run.size();
  }
  if (bytes < kLeastBytes) return {};
  return [&pool = *opened.pool, some = std::move(some)] {
    kernels::ReadRate rate;
    kernels::measure_read_limit(some, pool, 1, rate);
    return rate.bytes_per_second;
  };
}

void measure_text(const BenchSettings& s, const OpenStages& opened, const generate::BenchProgress& progress,
                  Json& out) {
  generate::validate_text(*opened.embed, *opened.decoder, opened.config, limits_of(opened.text_name));
  const generate::TextSeries series =
      generate::time_text(*opened.embed, *opened.decoder, opened.config, s.text, progress, weights_read_rate(opened));
  out["prefill"] = out["decode"] = Json::array();
  for (const generate::PrefillSeries& p : series.prefill) {
    out["prefill"].push_back({{"tokens", p.tokens},
                              {"seconds", p.seconds.seconds},
                              {"operations", operations_json(generate::prefill_operations(opened.config.text, p.tokens))}});
  }
  const int64_t weights = stored_weights(s.model, opened.decoder->reads_shortlist()).decode_bytes;
  for (const generate::DecodeSeries& d : series.decode) {
    // The middle of the tokens.
    out["decode"].push_back(
        {{"context", d.context},
         {"tokens", d.tokens},
         {"seconds", d.seconds.seconds},
         {"read_bytes_per_second", d.read_bytes_per_second},
         {"bytes_per_token", generate::decode_bytes(opened.config, weights, d.context + d.tokens / 2, opened.kv_dtype)}});
  }
  out["decode_weight_bytes"] = weights;
}

void measure_answer(const BenchSettings& s, OpenStages opened, const generate::BenchProgress& progress, Json& out) {
  const generate::ParityCase prompt = picture_case(s, opened);
  const auto processor = image::ImageProcessorConfig::load(s.model);
  const image::RgbImage picture = generate::draw_picture(s.picture, 1);
  if (!opened.engine) fail(ErrorCode::kInvalidArgument, "bench", "an answer needs both stages");
  out["prompt_tokens"] = prompt.input.ids.size();
  const generate::Series series = generate::time_to_first_token(
      opened.engine, picture, processor, prompt.input, s.text.chunk_tokens, s.text.repeats, progress);
  out["seconds"] = series.seconds;
}

}  // namespace

Json measure_bench_stage(const std::string& what, const BenchSettings& s, const generate::BenchProgress& progress) {
  const engine::StageSelection selection{.vision = what != "text", .text = what != "vision"};
  Json out;
  OpenStages opened;
  Json loads = Json::array();
  for (int i = 0; i < (what == "answer" ? s.text.repeats : 1); ++i) {
    opened = {};
    const Clock::time_point start = Clock::now();
    opened = open_stages(s.model, s.engine, selection);
    loads.push_back(seconds_since(start));
  }
  out["load_seconds"] = loads;
  out["vision"] = opened.vision_name;
  out["text"] = opened.text_name;
  out["kv"] = engine::kv_dtype_name(opened.kv_dtype);
  out["isa"] = opened.isa;
  out["threads"] = opened.pool->threads();
  if (what == "vision") {
    measure_vision(s, opened, progress, out);
  } else if (what == "text") {
    measure_text(s, opened, progress, out);
  } else {
    measure_answer(s, std::move(opened), progress, out);
  }
  out["peak_bytes"] = peak_memory_bytes();
  return out;
}

}  // namespace qvl::apps
