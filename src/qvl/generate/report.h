// The JSON object of `qvl run --json`: a contract that programs read, so its keys, their order and types live
// here and are tested, not in the command.
#pragma once

#include "qvl/base/json.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/grounding.h"
#include "qvl/generate/pipeline.h"

namespace qvl::generate {

struct RunFacts {
  double load_ms = 0;
  double peak_rss_mb = 0;
};

// {"text", "token_ids", "finish_reason", "usage": {...}, "images": [...], "timings": {...}, "decode": {"steps",
// "drafted_tokens", "accepted_tokens"}, "peak_rss_mb", "engine": {...}, "grounding": {...}}. Videos stand in "images" too, with grid_thw[0] above 1. Rates are 0 where nothing was
// computed.
Json answer_json(const Answer& answer, const engine::EngineInfo& engine, const RunFacts& facts);

// Its parts, which the server's replies carry too: an element of "images", "timings", "engine".
Json visual_json(const VisualReport& visual);
Json timings_json(const Answer& answer, double load_ms);
Json engine_info_json(const engine::EngineInfo& engine);

// The boxes and points of an answer, in pixels of the pictures it was asked about.
Grounding grounding_of(const Answer& answer);

// Units per second; 0 when no time passed.
double per_second(double units, double ms);

}  // namespace qvl::generate
