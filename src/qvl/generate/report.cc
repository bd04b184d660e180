#include "qvl/generate/report.h"

#include <cmath>

namespace qvl::generate {
namespace {

// Microseconds are noise.
double rounded(double v) {
  return std::round(v * 1000.0) / 1000.0;
}

}  // namespace

Grounding grounding_of(const Answer& answer) {
  std::vector<GroundedVisual> visuals;
  for (const VisualReport& v : answer.visuals) {
    visuals.push_back({.width = v.info.width, .height = v.info.height, .is_video = v.info.is_video});
  }
  return parse_grounding(answer.text, visuals);
}

double per_second(double units, double ms) {
  return ms > 0 ? units / ms * 1000.0 : 0.0;
}

Json visual_json(const VisualReport& v) {
  return {{"width", v.info.width},
          {"height", v.info.height},
          {"resized_width", v.info.resized_width},
          {"resized_height", v.info.resized_height},
          {"grid_thw", {v.info.grid.t, v.info.grid.h, v.info.grid.w}},
          {"patches", v.info.grid.patches()},
          {"tokens", v.tokens},
          {"encode_ms", rounded(v.encode_ms)},
          {"cached", v.cached}};
}

Json timings_json(const Answer& a, double load_ms) {
  const auto computed = static_cast<double>(a.prompt_tokens - a.cached_tokens);
  const double decoded = a.token_ids.empty() ? 0.0 : static_cast<double>(a.token_ids.size() - 1);
  return {{"load_ms", rounded(load_ms)},
          {"preprocess_ms", rounded(a.preprocess_ms)},
          {"vision_ms", rounded(a.vision_ms)},
          {"vision_patches_per_s", rounded(per_second(static_cast<double>(a.vision_patches), a.vision_ms))},
          {"prefill_ms", rounded(a.prefill_ms)},
          {"prefill_tokens_per_s", rounded(per_second(computed, a.prefill_ms))},
          {"ttft_ms", rounded(a.ttft_ms)},
          {"decode_tokens_per_s", rounded(per_second(decoded, a.decode_ms))}};
}

Json engine_info_json(const engine::EngineInfo& engine) {
  return {{"vision", engine.vision}, {"text", engine.text}, {"isa", engine.isa}, {"threads", engine.threads}};
}

Json answer_json(const Answer& a, const engine::EngineInfo& engine, const RunFacts& facts) {
  Json out;
  out["text"] = a.text;
  out["token_ids"] = a.token_ids;
  out["finish_reason"] = finish_reason_name(a.reason);
  out["usage"] = {{"prompt_tokens", a.prompt_tokens},
                  {"completion_tokens", static_cast<int64_t>(a.token_ids.size())},
                  {"image_tokens", a.image_tokens},
                  {"cached_tokens", a.cached_tokens}};
  out["images"] = Json::array();
  for (const VisualReport& v : a.visuals) out["images"].push_back(visual_json(v));
  out["timings"] = timings_json(a, facts.load_ms);
  out["decode"] = {{"steps", a.decode.steps},
                   {"drafted_tokens", a.decode.drafted_tokens},
                   {"accepted_tokens", a.decode.accepted_tokens}};
  out["kv_cache"] = {{"dtype", engine::kv_dtype_name(engine.kv_dtype)}, {"bytes", a.kv_bytes}};
  out["peak_rss_mb"] = rounded(facts.peak_rss_mb);
  out["engine"] = engine_info_json(engine);
  out["grounding"] = grounding_of(a).to_json();
  return out;
}

}  // namespace qvl::generate
