// What `qvl bench` found: text, Markdown, SVG, JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/kernels/machine_limits.h"

namespace qvl::apps {

struct BenchRow {
  std::string kind;  // "vision", "prefill", "decode", "ttft", "load": the key in JSON
  std::string what;  // "prefill, 512 tokens"
  Json facts;        // of this row alone: {"tokens": 512}
  std::string unit;  // "tok/s", "ms"
  double median = 0, lowest = 0, highest = 0;
  std::optional<double> work;  // "GOPS", "GB/s" at the median
  std::string work_unit;
  std::optional<double> share;  // of the limit
  std::string limit;            // "memory read", "int8 products, bf16 attention"
};

struct BenchReport {
  std::string model;
  std::string vision, text;  // engines: "native int8"
  std::string kv;            // "int8": the elements of the KV cache
  std::string isa;
  std::string processor;
  std::string version;
  int threads = 0;
  int repeats = 0;
  kernels::MachineLimits limits;  // the best that was seen
  std::vector<BenchRow> rows;
  double vision_mb = 0, text_mb = 0, answer_mb = 0;  // peak memory of the processes, 10^6 bytes

  std::string to_text() const;
  std::string to_markdown() const;
  std::string to_svg() const;
  Json to_json() const;
};

// Builds the rows from what the children measured (bench_stage.h). `limits` become the denominators, but for decoding how fast
// the weights were read at that moment, where that is known.
BenchReport bench_report(const Json& vision, const Json& text, const Json& answer, const std::string& picture,
                         const kernels::MachineLimits& limits);

// The processor's name as the system tells it; "unknown processor" where it does not.
std::string processor_name();

}  // namespace qvl::apps
