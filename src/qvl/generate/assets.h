// What a checkpoint folder holds beside the network: tokenizer, chat template, image and video limits,
// generation defaults (spec 1, 7). Loaded once, shared by all sessions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "qvl/generate/sampler.h"
#include "qvl/image/processor_config.h"
#include "qvl/model/config.h"
#include "qvl/text/chat.h"
#include "qvl/text/tokenizer.h"

namespace qvl::generate {

// Patch geometry of a processor file against the network's; throws kMismatch.
void check_patch_geometry(const image::PatchConfig& patches, const model::VisionConfig& vision,
                          std::string_view where);

struct Assets {
  std::filesystem::path folder;
  text::Tokenizer tokenizer;
  text::ChatTemplate chat_template;
  image::ImageProcessorConfig image;
  image::VideoProcessorConfig video;
  model::GenerationConfig generation;
  // Tokens that end an answer: those of generation_config.json or config.json, else <|im_end|> and
  // <|endoftext|>.
  std::vector<int32_t> end_ids;

  // Throws kNotFound (no tokenizer), kFormat, kUnsupported, kMismatch (placeholder ids, vocabulary or patch
  // geometry that do not fit the network).
  static Assets load(const std::filesystem::path& folder, const model::ModelConfig& config);
  // Likewise, where the folder's tokenizer is had from `tokenizer`, called once: it may be loading on another thread. Throws
  // also what that throws.
  static Assets load(const std::filesystem::path& folder, const model::ModelConfig& config,
                     const std::function<text::Tokenizer()>& tokenizer);
};

// What the user said about sampling; the rest comes from the checkpoint.
struct SamplingOverrides {
  bool greedy = false;
  std::optional<double> temperature;
  std::optional<int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
};

// Greedy when asked for, or when the checkpoint says do_sample false and no sampling value was given. Throws
// as validate(), and kInvalidArgument when greedy is combined with a sampling value.
SamplingParams resolve_sampling(const model::GenerationConfig& defaults, const SamplingOverrides& overrides);

// Without a word from user or checkpoint an answer ends after this many tokens: a small model that loops
// would otherwise fill the whole context.
inline constexpr int64_t kDefaultMaxTokens = 2048;

}  // namespace qvl::generate
