#include "qvl/export/genai_config.h"

#include <algorithm>

#include "qvl/image/processor_config.h"
#include "qvl/package/graph_io.h"

namespace qvl::exporting {
namespace {

// Its runtime allocates the whole cache at once, in float32: the model's own limit of 262144 tokens would ask
// for 77 GB (4B). A caller raises max_length when it needs more.
constexpr int64_t kMaxLength = 4096;

Json session_options() {
  // 0: all cores. Left out, the runtime takes half of them.
  return {{"log_id", "onnxruntime-genai"}, {"intra_op_num_threads", 0}, {"provider_options", Json::array()}};
}

Json genai_config(const Input& input) {
  const model::ModelConfig& config = input.config();
  const model::TextConfig& text = config.text;
  const model::GenerationConfig generation =
      model::GenerationConfig::load(input.folder(), config);
  const int64_t levels = config.vision.deepstack_levels();
  // Features, embeddings and decoder input are (1 + levels) times as wide as the network (graphs.h,
  // Layout::kGenai).
  const int64_t wide = (1 + levels) * text.hidden_size;

  Json model;
  model["type"] = "qwen3_vl";
  model["context_length"] = text.max_positions;
  model["vocab_size"] = text.vocab_size;
  if (generation.bos_token_id) model["bos_token_id"] = *generation.bos_token_id;
  model["eos_token_id"] = generation.eos_token_ids;
  model["pad_token_id"] =
      generation.pad_token_id.value_or(generation.eos_token_ids.empty() ? 0 : generation.eos_token_ids[0]);
  model["image_token_id"] = config.image_token_id;
  model["video_token_id"] = config.video_token_id;
  model["vision_start_token_id"] = config.vision_start_token_id;
  model["decoder"] = {{"session_options", session_options()},
                      {"filename", package::kDecoderGraph},
                      {"head_size", text.head_dim},
                      {"hidden_size", wide},
                      {"num_attention_heads", text.num_heads},
                      {"num_hidden_layers", text.num_layers},
                      {"num_key_value_heads", text.num_kv_heads},
                      {"inputs",
                       {{"inputs_embeds", package::kInputsEmbeds},
                        {"attention_mask", package::kAttentionMask},
                        {"position_ids", package::kPositionIds},
                        {"past_key_names", "past_key_values.%d.key"},
                        {"past_value_names", "past_key_values.%d.value"}}},
                      {"outputs",
                       {{"logits", package::kLogits},
                        {"present_key_names", "present.%d.key"},
                        {"present_value_names", "present.%d.value"}}}};
  model["embedding"] = {
      {"session_options", session_options()},
      {"filename", package::kEmbeddingGraph},
      {"inputs", {{"input_ids", package::kInputIds}, {"image_features", package::kImageFeatures}}},
      {"outputs", {{"inputs_embeds", package::kInputsEmbeds}}}};
  model["vision"] = {
      {"session_options", session_options()},
      {"filename", package::kVisionGraph},
      {"config_filename", "processor_config.json"},
      {"spatial_merge_size", config.vision.spatial_merge_size},
      {"patch_size", config.vision.patch_size},
      {"tokens_per_second", 2.0},
      {"inputs", {{"pixel_values", package::kPixelValues}, {"image_grid_thw", package::kGenaiGridThw}}},
      {"outputs", {{"image_features", package::kImageFeatures}}}};
  Json search = {{"do_sample", generation.do_sample},
                 {"early_stopping", true},
                 {"max_length", std::min(text.max_positions, kMaxLength)},
                 {"min_length", 0},
                 {"num_beams", 1},
                 {"num_return_sequences", 1},
                 {"past_present_share_buffer", true},
                 {"repetition_penalty", generation.repetition_penalty},
                 {"temperature", generation.temperature},
                 {"top_k", generation.top_k},
                 {"top_p", generation.top_p}};
  return {{"model", std::move(model)}, {"search", std::move(search)}};
}

Json transform(const char* name, const char* type, Json attributes = Json::object()) {
  Json operation = {{"name", name}, {"type", type}};
  if (!attributes.empty()) operation["attrs"] = std::move(attributes);
  return {{"operation", std::move(operation)}};
}

Json processor_config(const Input& input) {
  const image::ImageProcessorConfig image = image::ImageProcessorConfig::load(input.folder());
  Json transforms = Json::array();
  transforms.push_back(transform("decode_image", "DecodeImage", {{"color_space", "RGB"}}));
  transforms.push_back(transform("convert_to_rgb", "ConvertRGB"));
  transforms.push_back(transform("resize", "Resize",
                                 {{"width", 540},
                                  {"height", 360},
                                  {"smart_resize", 1},
                                  {"min_pixels", image.min_pixels},
                                  {"max_pixels", image.max_pixels},
                                  {"patch_size", image.patch_size_px},
                                  {"merge_size", image.merge_size}}));
  transforms.push_back(transform("rescale", "Rescale", {{"rescale_factor", image.rescale_factor}}));
  transforms.push_back(
      transform("normalize", "Normalize", {{"mean", image.mean}, {"std", image.std}, {"qwen3_vl", 1}}));
  transforms.push_back(transform("patch_image", "PatchImage",
                                 {{"patch_size", image.patch_size_px},
                                  {"temporal_patch_size", image.temporal_patch_size},
                                  {"merge_size", image.merge_size}}));
  return {{"processor", {{"name", "qwen3_vl_image_processor"}, {"transforms", std::move(transforms)}}}};
}

}  // namespace

std::vector<std::pair<std::string, Json>> genai_files(const Input& input) {
  return {{"genai_config.json", genai_config(input)}, {"processor_config.json", processor_config(input)}};
}

}  // namespace qvl::exporting
