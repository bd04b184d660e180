// One measurement of `qvl compare`, made in a process of its own.
#pragma once

#include <cstdint>
#include <string>

#include "qvl/base/json.h"
#include "qvl/generate/parity_cases.h"

namespace qvl::apps {

struct StageOptions {
  std::string model;  // checkpoint or package
  std::string what;   // "vision", "text", "both", "logits"
  std::string vision = "native";
  std::string text = "native";
  std::string dtype = "auto";  // of native stages
  std::string out;             // "logits": safetensors file to write
  std::string onnxruntime;
  generate::PictureSize size;
  int64_t tokens = 32;
  int threads = 0;
};

// {"patches", "vision_patches_per_s", "prompt_tokens", "prefill_tokens_per_s", "decode_tokens_per_s",
// "peak_bytes", "isa"}, as far as `what` measures them.
Json measure_stage(const StageOptions& options);

}  // namespace qvl::apps
