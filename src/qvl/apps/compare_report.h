// The ways to run a model side by side, as `qvl compare` measured them: text, Markdown, SVG, JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "qvl/base/json.h"

namespace qvl::apps {

struct ComparedWay {
  std::string name;    // "native, vision native + text ONNX INT4"
  std::string detail;  // which files and engines
  std::string error;   // empty: it works
  std::optional<double> vision_patches_per_s;
  std::optional<double> prefill_tokens_per_s;
  std::optional<double> decode_tokens_per_s;
  std::optional<double> vision_mb;  // peak memory of a process that only does that
  std::optional<double> text_mb;
  std::optional<double> total_mb;               // of one that does both
  std::optional<double> logits_error;           // largest, absolute
  std::optional<double> logits_relative_error;  // divided by the largest logit
  std::optional<double> mean_kl_nats;
  std::optional<double> top1;  // share of positions
  std::optional<double> package_mb;
};

struct Comparison {
  std::string checkpoint;
  std::string machine;    // "avx512bf16, 2 threads, ONNX Runtime 1.32.0"
  std::string prompt;     // "picture 448x448: 784 patches, 214 prompt tokens, 32 tokens decoded"
  std::string reference;  // what errors are measured against
  std::vector<ComparedWay> ways;

  std::string to_text() const;
  std::string to_markdown() const;
  std::string to_svg() const;
  Json to_json() const;
};

}  // namespace qvl::apps
