// The model's configuration (spec 1): config.json in both spellings of the rotary keys, and
// generation_config.json. Everything is validated here, once; later stages rely on it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/base/json.h"

namespace qvl::model {

enum class RopeType { kDefault, kYarn };

// M-RoPE of the decoder (spec 6.3).
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 500000.0;                              // the library's default; releases say 5e6
  std::array<int64_t, 3> mrope_section = {24, 20, 20};  // t, h, w; sums to head_dim / 2
  // YaRN only.
  double factor = 1.0;
  int64_t original_max_positions = 0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  std::optional<double> attention_factor;  // absent: derived from factor (and mscale, mscale_all_dim)
  double mscale = 0.0;                     // 0: not given
  double mscale_all_dim = 0.0;
  bool truncate = true;
};

struct TextConfig {
  int64_t vocab_size = 151936;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 22016;
  int64_t num_layers = 32;
  int64_t num_heads = 32;
  int64_t num_kv_heads = 32;
  int64_t head_dim = 128;  // independent of hidden_size / num_heads
  double rms_norm_eps = 1e-6;
  bool attention_bias = false;
  int64_t max_positions = 128000;  // informative: no table depends on it
  RopeConfig rope;

  int64_t q_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
};

struct VisionConfig {
  int64_t depth = 27;
  int64_t hidden_size = 1152;
  int64_t intermediate_size = 4304;
  int64_t num_heads = 16;
  int64_t in_channels = 3;
  int64_t patch_size = 16;
  int64_t temporal_patch_size = 2;
  int64_t spatial_merge_size = 2;
  int64_t out_hidden_size = 3584;
  int64_t num_position_embeddings = 2304;
  std::vector<int64_t> deepstack_indexes = {8, 16, 24};

  int64_t deepstack_levels() const { return static_cast<int64_t>(deepstack_indexes.size()); }
  int64_t head_dim() const { return hidden_size / num_heads; }
  // Side of the square position table (48).
  int64_t position_side() const;
  // Values of one pixel row (1536).
  int64_t patch_width() const { return in_channels * temporal_patch_size * patch_size * patch_size; }
  // Rows that one merged token joins (4), and its width (4 * hidden_size).
  int64_t merge_rows() const { return spatial_merge_size * spatial_merge_size; }
  int64_t merged_width() const { return hidden_size * merge_rows(); }
};

struct ModelConfig {
  std::string model_type = "qwen3_vl";
  int32_t image_token_id = 151655;
  int32_t video_token_id = 151656;
  int32_t vision_start_token_id = 151652;
  int32_t vision_end_token_id = 151653;
  bool tie_word_embeddings = false;  // the top-level key decides
  // False when the top-level key is absent: then a checkpoint without lm_head.weight counts as tied.
  bool tie_is_explicit = true;
  std::string dtype = "bfloat16";      // "dtype" or the older "torch_dtype"; informative
  std::vector<int32_t> eos_token_ids;  // from text_config; used when generation_config.json says nothing
  TextConfig text;
  VisionConfig vision;

  // Key and value bytes that one token takes in a cache of F32, BF16 (147456 for 4B) or I8 elements, the last with a
  // float scale for each head of each of them (76032 for 4B). Throws kUnsupported for another type.
  int64_t kv_bytes_per_token(DType cache) const;

  // Reads FOLDER/config.json. Throws kNotFound, kFormat (not JSON, wrong type of a value), kMismatch (values
  // that contradict each other), kUnsupported (another model_type, MoE, quantised weights, unknown rope type
  // or activation).
  static ModelConfig load(const std::filesystem::path& folder);
  // `where` names the source in messages.
  static ModelConfig from_json(const Json& json, std::string_view where);
  // The checks of from_json alone, for configurations made in code.
  void validate(std::string_view where) const;
};

// generation_config.json (spec 7.6); a missing file or key keeps the default of the reference library.
struct GenerationConfig {
  bool do_sample = false;
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = 50;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;       // not a key of the reference library; read when a publisher writes it
  std::vector<int32_t> eos_token_ids;  // int or list in the file; empty: nothing said
  std::optional<int32_t> pad_token_id;
  std::optional<int32_t> bos_token_id;
  std::optional<int64_t> max_new_tokens;

  // Reads FOLDER/generation_config.json if there is one; eos ids fall back to config.json's text_config.
  // Throws kFormat, kMismatch (value out of range), kIo.
  static GenerationConfig load(const std::filesystem::path& folder, const ModelConfig& config);
  static GenerationConfig from_json(const Json& json, std::string_view where);
};

}  // namespace qvl::model
