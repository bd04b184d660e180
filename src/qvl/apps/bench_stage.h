// One measurement of `qvl bench`, made in a process of its own.
#pragma once

#include <filesystem>
#include <string>

#include "qvl/apps/cli.h"
#include "qvl/base/json.h"
#include "qvl/generate/benchmark.h"
#include "qvl/generate/parity_cases.h"

namespace qvl::apps {

struct BenchSettings {
  std::filesystem::path model;  // checkpoint or package
  EngineChoice engine;
  generate::PictureSize picture{1024, 768};
  generate::TextBenchOptions text;
};

// Validates, then times. `what`: "vision", "text", or "answer", which measures opening and the time to a first token
// too and has both stages in memory. The object holds the engine's names, "load_ms", the series in seconds with the
// operations or bytes of each, and "peak_bytes". Throws kMismatch when the validation fails.
Json measure_bench_stage(const std::string& what, const BenchSettings& settings,
                         const generate::BenchProgress& progress);

}  // namespace qvl::apps
