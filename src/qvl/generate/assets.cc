#include "qvl/generate/assets.h"

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::generate {
namespace {

void check_placeholder(const text::Tokenizer& tokenizer, std::string_view token, int32_t wanted,
                       std::string_view where) {
  const std::optional<int32_t> id = tokenizer.token_id(token);
  if (id && *id == wanted) return;
  fail(ErrorCode::kMismatch, where, cat("id of ", token), cat(wanted, " as in config.json"),
       id ? cat(*id) : std::string("no such token"), "tokenizer and weights of different models?");
}

}  // namespace

void check_patch_geometry(const image::PatchConfig& patches, const model::VisionConfig& vision,
                          std::string_view where) {
  if (patches.patch_size_px == vision.patch_size && patches.merge_size == vision.spatial_merge_size &&
      patches.temporal_patch_size == vision.temporal_patch_size) {
    return;
  }
  fail(ErrorCode::kMismatch, where, "patch, merge and temporal size",
       cat(vision.patch_size, ", ", vision.spatial_merge_size, ", ", vision.temporal_patch_size,
           " as in config.json"),
       cat(patches.patch_size_px, ", ", patches.merge_size, ", ", patches.temporal_patch_size));
}

Assets Assets::load(const std::filesystem::path& folder, const model::ModelConfig& config) {
  return load(folder, config, [&folder] { return text::Tokenizer::load(folder); });
}

Assets Assets::load(const std::filesystem::path& folder, const model::ModelConfig& config,
                    const std::function<text::Tokenizer()>& tokenizer) {
  // The tokenizer first, whatever takes longest: of several errors it is always the same that is told.
  Assets assets{.folder = folder,
                .tokenizer = tokenizer(),
                .chat_template = text::detect_chat_template(folder),
                .image = image::ImageProcessorConfig::load(folder),
                .video = image::VideoProcessorConfig::load(folder),
                .generation = model::GenerationConfig::load(folder, config),
                .end_ids = {}};
  const std::string where = folder.string();
  check_placeholder(assets.tokenizer, "<|image_pad|>", config.image_token_id, where);
  check_placeholder(assets.tokenizer, "<|video_pad|>", config.video_token_id, where);
  if (assets.tokenizer.vocab_size() > config.text.vocab_size) {
    fail(ErrorCode::kMismatch, where, "tokenizer",
         cat("at most ", config.text.vocab_size, " tokens, the rows of the embedding"),
         cat(assets.tokenizer.vocab_size()), "tokenizer and weights of different models?");
  }
  check_patch_geometry(assets.image, config.vision, where + ": image processor");
  check_patch_geometry(assets.video, config.vision, where + ": video processor");
  assets.end_ids = assets.generation.eos_token_ids;
  if (assets.end_ids.empty()) {
    for (const char* token : {"<|im_end|>", "<|endoftext|>"}) {
      if (const auto id = assets.tokenizer.token_id(token)) assets.end_ids.push_back(*id);
    }
  }
  return assets;
}

SamplingParams resolve_sampling(const model::GenerationConfig& defaults, const SamplingOverrides& overrides) {
  const bool sampling_asked = (overrides.temperature && *overrides.temperature > 0) || overrides.top_k ||
                              overrides.top_p || overrides.min_p;
  if (overrides.greedy && sampling_asked) {
    fail(ErrorCode::kInvalidArgument, "sampling", "greedy", "no temperature, top_k, top_p or min_p beside it",
         "both");
  }
  SamplingParams params;
  params.greedy = overrides.greedy || (!defaults.do_sample && !sampling_asked);
  params.temperature = overrides.temperature.value_or(defaults.temperature);
  params.top_k = overrides.top_k.value_or(defaults.top_k);
  params.top_p = overrides.top_p.value_or(defaults.top_p);
  params.min_p = overrides.min_p.value_or(defaults.min_p);
  params.repetition_penalty = overrides.repetition_penalty.value_or(defaults.repetition_penalty);
  params.presence_penalty = overrides.presence_penalty.value_or(defaults.presence_penalty);
  params.frequency_penalty = overrides.frequency_penalty.value_or(0.0);
  validate(params);
  return params;
}

}  // namespace qvl::generate
