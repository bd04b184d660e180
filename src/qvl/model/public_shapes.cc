#include "qvl/model/public_shapes.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "qvl/base/error.h"

namespace qvl::model {
namespace {

struct ShapeRow {
  std::string_view name;
  int64_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab;
  std::array<int64_t, 3> section;
  bool tied;
  int64_t vision_hidden, vision_depth, vision_heads, vision_intermediate;
  std::array<int64_t, 3> deepstack;
  int32_t first_special_token;  // image, video, vision start and end follow the published order from here
};

// Spec 1.1. "tiny" keeps what is easy to get wrong: q width differs from hidden_size, grouped heads, a vision
// head size that is no power of two, fewer DeepStack levels than decoder layers.
constexpr std::array<ShapeRow, 5> kShapes{{
    {"tiny", 64, 5, 4, 2, 32, 96, 512, {8, 4, 4}, true, 96, 4, 4, 104, {0, 1, 2}, 498},
    {"2b", 2048, 28, 16, 8, 128, 6144, 151936, {24, 20, 20}, true, 1024, 24, 16, 4096, {5, 11, 17}, 151652},
    {"4b", 2560, 36, 32, 8, 128, 9728, 151936, {24, 20, 20}, true, 1024, 24, 16, 4096, {5, 11, 17}, 151652},
    {"8b", 4096, 36, 32, 8, 128, 12288, 151936, {24, 20, 20}, false, 1152, 27, 16, 4304, {8, 16, 24}, 151652},
    {"32b",
     5120,
     64,
     64,
     8,
     128,
     25600,
     151936,
     {24, 20, 20},
     false,
     1152,
     27,
     16,
     4304,
     {8, 16, 24},
     151652},
}};

constexpr std::array<std::string_view, kShapes.size()> kNames{"tiny", "2b", "4b", "8b", "32b"};

const ShapeRow& shape_row(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const ShapeRow& row : kShapes) {
    if (row.name == lower) return row;
  }
  fail(ErrorCode::kInvalidArgument, "shape", "name of a model size", "tiny, 2b, 4b, 8b or 32b", name);
}

bool is_tiny(const ShapeRow& row) {
  return row.name == "tiny";
}
int64_t end_of_turn(const ShapeRow& row) {
  return is_tiny(row) ? 505 : 151645;
}
int64_t end_of_text(const ShapeRow& row) {
  return is_tiny(row) ? 504 : 151643;
}

}  // namespace

std::span<const std::string_view> public_shape_names() {
  return kNames;
}

ModelConfig public_config(std::string_view name) {
  return ModelConfig::from_json(parse_json(public_config_json(name), name), name);
}

std::string public_config_json(std::string_view name) {
  const ShapeRow& row = shape_row(name);
  Json j;
  j["architectures"] = {"Qwen3VLForConditionalGeneration"};
  j["image_token_id"] = row.first_special_token + 3;
  j["model_type"] = "qwen3_vl";
  Json& text = j["text_config"];
  text["attention_bias"] = false;
  text["attention_dropout"] = 0.0;
  text["bos_token_id"] = end_of_text(row);
  text["dtype"] = "bfloat16";
  text["eos_token_id"] = end_of_turn(row);
  text["head_dim"] = row.head_dim;
  text["hidden_act"] = "silu";
  text["hidden_size"] = row.hidden;
  text["initializer_range"] = 0.02;
  text["intermediate_size"] = row.intermediate;
  text["max_position_embeddings"] = 262144;
  text["model_type"] = "qwen3_vl_text";
  text["num_attention_heads"] = row.heads;
  text["num_hidden_layers"] = row.layers;
  text["num_key_value_heads"] = row.kv_heads;
  text["rms_norm_eps"] = 1e-06;
  text["rope_scaling"]["mrope_interleaved"] = true;
  text["rope_scaling"]["mrope_section"] = row.section;
  text["rope_scaling"]["rope_type"] = "default";
  text["rope_theta"] = 5000000;
  if (row.tied) text["tie_word_embeddings"] = true;
  text["use_cache"] = true;
  text["vocab_size"] = row.vocab;
  j["tie_word_embeddings"] = row.tied;
  j["transformers_version"] = "4.57.0.dev0";
  j["video_token_id"] = row.first_special_token + 4;
  Json& vision = j["vision_config"];
  vision["deepstack_visual_indexes"] = row.deepstack;
  vision["depth"] = row.vision_depth;
  vision["hidden_act"] = "gelu_pytorch_tanh";
  vision["hidden_size"] = row.vision_hidden;
  vision["in_channels"] = 3;
  vision["initializer_range"] = 0.02;
  vision["intermediate_size"] = row.vision_intermediate;
  vision["model_type"] = "qwen3_vl";
  vision["num_heads"] = row.vision_heads;
  vision["num_position_embeddings"] = 2304;
  vision["out_hidden_size"] = row.hidden;
  vision["patch_size"] = 16;
  vision["spatial_merge_size"] = 2;
  vision["temporal_patch_size"] = 2;
  j["vision_end_token_id"] = row.first_special_token + 1;
  j["vision_start_token_id"] = row.first_special_token;
  return j.dump(2) + "\n";
}

std::string public_generation_config_json(std::string_view name) {
  const ShapeRow& row = shape_row(name);
  Json j;
  j["bos_token_id"] = end_of_text(row);
  j["pad_token_id"] = end_of_text(row);
  j["do_sample"] = true;
  j["eos_token_id"] = {end_of_turn(row), end_of_text(row)};
  j["top_k"] = 20;
  j["top_p"] = 0.8;
  j["repetition_penalty"] = 1.0;
  j["temperature"] = 0.7;
  j["transformers_version"] = "4.56.0";
  return j.dump(4) + "\n";
}

std::string public_preprocessor_config_json() {
  Json j;
  j["size"]["longest_edge"] = 16777216;
  j["size"]["shortest_edge"] = 65536;
  j["patch_size"] = 16;
  j["temporal_patch_size"] = 2;
  j["merge_size"] = 2;
  j["image_mean"] = {0.5, 0.5, 0.5};
  j["image_std"] = {0.5, 0.5, 0.5};
  j["processor_class"] = "Qwen3VLProcessor";
  j["image_processor_type"] = "Qwen2VLImageProcessorFast";
  return j.dump(4) + "\n";
}

std::string public_video_preprocessor_config_json() {
  Json j;
  j["size"]["longest_edge"] = 25165824;
  j["size"]["shortest_edge"] = 4096;
  j["patch_size"] = 16;
  j["temporal_patch_size"] = 2;
  j["merge_size"] = 2;
  j["image_mean"] = {0.5, 0.5, 0.5};
  j["image_std"] = {0.5, 0.5, 0.5};
  j["processor_class"] = "Qwen3VLProcessor";
  j["video_processor_type"] = "Qwen3VLVideoProcessor";
  return j.dump(4) + "\n";
}

}  // namespace qvl::model
