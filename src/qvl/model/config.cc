#include "qvl/model/config.h"

#include <cmath>
#include <initializer_list>

#include "qvl/base/error.h"
#include "qvl/model/json_reader.h"

namespace qvl::model {
namespace {

// Far above every real model, and such that the parameter count of any accepted configuration fits 63 bits.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxCount = 1024;

void check_activation(const JsonReader& reader, std::string_view key, const std::string& expected) {
  const std::string got = reader.text(key, expected);
  if (got != expected) fail(ErrorCode::kUnsupported, reader.where(), std::string(key), expected, got);
}

RopeConfig read_rope(const JsonReader& text, int64_t max_positions) {
  // 4.57 writes rope_scaling and a rope_theta beside it, 5.x writes rope_parameters; the old one wins (spec
  // 1).
  JsonReader rope = text.object("rope_scaling");
  if (rope.empty()) rope = text.object("rope_parameters");
  RopeConfig result;
  result.theta = rope.number("rope_theta", text.number("rope_theta", result.theta));
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  const std::vector<int64_t> section =
      rope.integers("mrope_section", {result.mrope_section.begin(), result.mrope_section.end()});
  if (section.size() != 3) {
    fail(ErrorCode::kMismatch, rope.where(), "mrope_section", "three numbers",
         std::to_string(section.size()));
  }
  std::copy(section.begin(), section.end(), result.mrope_section.begin());
  if (rope.number("partial_rotary_factor", text.number("partial_rotary_factor", 1.0)) != 1.0) {
    fail(ErrorCode::kUnsupported, rope.where(), "partial_rotary_factor other than 1");
  }
  if (type == "default" || type == "mrope") return result;
  if (type != "yarn") {
    fail(ErrorCode::kUnsupported, rope.where(), "rope_type", "default, mrope or yarn", type);
  }
  result.type = RopeType::kYarn;
  result.original_max_positions = text.integer(
      "original_max_position_embeddings", rope.integer("original_max_position_embeddings", max_positions));
  if (result.original_max_positions < 1) {
    fail(ErrorCode::kMismatch, rope.where(), "original_max_position_embeddings", "a positive number",
         std::to_string(result.original_max_positions));
  }
  // A missing factor is the ratio of the two context lengths.
  result.factor = rope.number(
      "factor", static_cast<double>(max_positions) / static_cast<double>(result.original_max_positions));
  result.beta_fast = rope.number("beta_fast", result.beta_fast);
  result.beta_slow = rope.number("beta_slow", result.beta_slow);
  if (rope.has("attention_factor")) result.attention_factor = rope.number("attention_factor", 1.0);
  result.mscale = rope.number("mscale", 0.0);
  result.mscale_all_dim = rope.number("mscale_all_dim", 0.0);
  result.truncate = rope.boolean("truncate", true);
  return result;
}

TextConfig read_text(const JsonReader& reader) {
  TextConfig c;
  c.vocab_size = reader.integer("vocab_size", c.vocab_size);
  c.hidden_size = reader.integer("hidden_size", c.hidden_size);
  c.intermediate_size = reader.integer("intermediate_size", c.intermediate_size);
  c.num_layers = reader.integer("num_hidden_layers", c.num_layers);
  c.num_heads = reader.integer("num_attention_heads", c.num_heads);
  // An explicit null means as many as heads; an absent key means the default.
  c.num_kv_heads = reader.is_null("num_key_value_heads")
                       ? c.num_heads
                       : reader.integer("num_key_value_heads", c.num_kv_heads);
  c.head_dim = reader.integer("head_dim", c.head_dim);
  c.rms_norm_eps = reader.number("rms_norm_eps", c.rms_norm_eps);
  c.attention_bias = reader.boolean("attention_bias", c.attention_bias);
  c.max_positions = reader.integer("max_position_embeddings", c.max_positions);
  check_activation(reader, "hidden_act", "silu");
  c.rope = read_rope(reader, c.max_positions);
  return c;
}

// patch_size and temporal_patch_size may be a number or a list of equal numbers.
int64_t square_size(const JsonReader& reader, std::string_view key, int64_t fallback) {
  if (!reader.is_array(key)) return reader.integer(key, fallback);
  const std::vector<int64_t> sizes = reader.integers(key, {});
  for (const int64_t s : sizes) {
    if (s != sizes.front())
      fail(ErrorCode::kUnsupported, reader.where(), std::string(key) + " with unequal sides");
  }
  if (sizes.empty())
    fail(ErrorCode::kMismatch, reader.where(), std::string(key), "a number", "an empty list");
  return sizes.front();
}

VisionConfig read_vision(const JsonReader& reader) {
  VisionConfig c;
  c.depth = reader.integer("depth", c.depth);
  c.hidden_size = reader.integer("hidden_size", c.hidden_size);
  c.intermediate_size = reader.integer("intermediate_size", c.intermediate_size);
  c.num_heads = reader.integer("num_heads", c.num_heads);
  c.in_channels = reader.integer("in_channels", c.in_channels);
  c.patch_size = square_size(reader, "patch_size", c.patch_size);
  c.temporal_patch_size = square_size(reader, "temporal_patch_size", c.temporal_patch_size);
  c.spatial_merge_size = reader.integer("spatial_merge_size", c.spatial_merge_size);
  c.out_hidden_size = reader.integer("out_hidden_size", c.out_hidden_size);
  c.num_position_embeddings = reader.integer("num_position_embeddings", c.num_position_embeddings);
  c.deepstack_indexes = reader.integers("deepstack_visual_indexes", c.deepstack_indexes);
  check_activation(reader, "hidden_act", "gelu_pytorch_tanh");
  return c;
}

void check_range(std::string_view where, std::string_view key, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(ErrorCode::kMismatch, where, key, std::to_string(low) + " to " + std::to_string(high),
         std::to_string(value));
  }
}

void check_positive(std::string_view where, std::string_view key, double value) {
  if (!(value > 0.0) || !std::isfinite(value)) {
    fail(ErrorCode::kMismatch, where, key, "a positive number", std::to_string(value));
  }
}

void validate_rope(const TextConfig& c, const std::string& where) {
  const RopeConfig& rope = c.rope;
  check_positive(where, "rope_theta", rope.theta);
  int64_t sum = 0;
  for (const int64_t s : rope.mrope_section) {
    check_range(where, "mrope_section", s, 0, kMaxCount);
    sum += s;
  }
  if (sum != c.head_dim / 2) {
    fail(ErrorCode::kMismatch, where, "sum of mrope_section",
         std::to_string(c.head_dim / 2) + " (half of head_dim)", std::to_string(sum));
  }
  if (rope.type != RopeType::kYarn) return;
  if (rope.theta <= 1.0)
    fail(ErrorCode::kMismatch, where, "rope_theta with yarn", "above 1", std::to_string(rope.theta));
  if (!(rope.factor >= 1.0) || !std::isfinite(rope.factor)) {
    fail(ErrorCode::kMismatch, where, "yarn factor", "at least 1", std::to_string(rope.factor));
  }
  check_range(where, "original_max_position_embeddings", rope.original_max_positions, 1, int64_t{1} << 40);
  check_positive(where, "beta_fast", rope.beta_fast);
  check_positive(where, "beta_slow", rope.beta_slow);
  if (rope.beta_fast < rope.beta_slow) {
    fail(ErrorCode::kMismatch, where, "beta_fast", "at least beta_slow " + std::to_string(rope.beta_slow),
         std::to_string(rope.beta_fast));
  }
  if (rope.attention_factor) check_positive(where, "attention_factor", *rope.attention_factor);
}

void validate_text(const TextConfig& c, const std::string& where) {
  check_range(where, "vocab_size", c.vocab_size, 1, kMaxWidth);
  check_range(where, "hidden_size", c.hidden_size, 1, kMaxWidth);
  check_range(where, "intermediate_size", c.intermediate_size, 1, kMaxWidth);
  check_range(where, "num_hidden_layers", c.num_layers, 1, kMaxCount);
  check_range(where, "num_attention_heads", c.num_heads, 1, kMaxCount);
  check_range(where, "num_key_value_heads", c.num_kv_heads, 1, kMaxCount);
  check_range(where, "head_dim", c.head_dim, 2, 4096);
  check_positive(where, "rms_norm_eps", c.rms_norm_eps);
  check_range(where, "max_position_embeddings", c.max_positions, 1, int64_t{1} << 40);
  if (c.num_heads % c.num_kv_heads != 0) {
    fail(ErrorCode::kMismatch, where, "num_attention_heads",
         "a multiple of num_key_value_heads " + std::to_string(c.num_kv_heads), std::to_string(c.num_heads));
  }
  if (c.head_dim % 2 != 0)
    fail(ErrorCode::kMismatch, where, "head_dim", "an even number", std::to_string(c.head_dim));
  validate_rope(c, where);
}

void validate_vision(const VisionConfig& c, const std::string& where) {
  check_range(where, "depth", c.depth, 1, kMaxCount);
  check_range(where, "hidden_size", c.hidden_size, 1, kMaxWidth);
  check_range(where, "intermediate_size", c.intermediate_size, 1, kMaxWidth);
  check_range(where, "num_heads", c.num_heads, 1, kMaxCount);
  check_range(where, "in_channels", c.in_channels, 1, 64);
  check_range(where, "patch_size", c.patch_size, 1, 1024);
  check_range(where, "temporal_patch_size", c.temporal_patch_size, 1, 64);
  check_range(where, "spatial_merge_size", c.spatial_merge_size, 1, 8);
  check_range(where, "out_hidden_size", c.out_hidden_size, 1, kMaxWidth);
  check_range(where, "num_position_embeddings", c.num_position_embeddings, 1, kMaxWidth);
  if (c.hidden_size % c.num_heads != 0) {
    fail(ErrorCode::kMismatch, where, "hidden_size", "a multiple of num_heads " + std::to_string(c.num_heads),
         std::to_string(c.hidden_size));
  }
  // Half of the rotary width belongs to the row, half to the column, and each half is made of pairs.
  if (c.head_dim() % 4 != 0) {
    fail(ErrorCode::kMismatch, where, "head size hidden_size / num_heads", "a multiple of 4",
         std::to_string(c.head_dim()));
  }
  if (c.position_side() * c.position_side() != c.num_position_embeddings) {
    fail(ErrorCode::kMismatch, where, "num_position_embeddings", "a square",
         std::to_string(c.num_position_embeddings));
  }
  int64_t previous = -1;
  for (const int64_t index : c.deepstack_indexes) {
    if (index <= previous || index >= c.depth) {
      fail(ErrorCode::kMismatch, where, "deepstack_visual_indexes",
           "ascending block numbers below depth " + std::to_string(c.depth), std::to_string(index));
    }
    previous = index;
  }
}

void check_token(std::string_view where, std::string_view key, int32_t id, int64_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    fail(ErrorCode::kMismatch, where, key, "an id below vocab_size " + std::to_string(vocab_size),
         std::to_string(id));
  }
}

// One id, a list of ids, or nothing.
std::vector<int32_t> token_ids(const JsonReader& reader, std::string_view key) {
  std::vector<int32_t> ids;
  if (reader.is_array(key)) {
    for (const int64_t id : reader.integers(key, {})) ids.push_back(reader.narrow(key, id));
  } else if (reader.has(key)) {
    ids.push_back(reader.narrow(key, reader.integer(key, 0)));
  }
  return ids;
}

}  // namespace

int64_t VisionConfig::position_side() const {
  auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(num_position_embeddings)));
  while (side * side > num_position_embeddings) --side;
  while ((side + 1) * (side + 1) <= num_position_embeddings) ++side;
  return side;
}

int64_t ModelConfig::kv_bytes_per_token(DType cache) const {
  if (cache != DType::kF32 && cache != DType::kBF16 && cache != DType::kI8)
    fail(ErrorCode::kUnsupported, "kv cache", "type of the elements", "F32, BF16 or I8", dtype_name(cache));
  const int64_t scale_bytes = cache == DType::kI8 ? static_cast<int64_t>(sizeof(float)) : 0;
  return 2 * text.num_layers *
         (text.kv_width() * static_cast<int64_t>(dtype_size_bytes(cache)) + text.num_kv_heads * scale_bytes);
}

ModelConfig ModelConfig::load(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  return from_json(parse_json_file(path), path.string());
}

ModelConfig ModelConfig::from_json(const Json& json, std::string_view where) {
  const JsonReader reader(json, std::string(where));
  ModelConfig c;
  if (!reader.has("model_type")) {
    fail(ErrorCode::kMismatch, where, "model_type", c.model_type, "no such key",
         "not a Qwen3-VL configuration");
  }
  c.model_type = reader.text("model_type", c.model_type);
  if (c.model_type == "qwen3_vl_moe") {
    fail(ErrorCode::kUnsupported, where,
         "model_type qwen3_vl_moe: mixture-of-experts models (30B-A3B, 235B-A22B) are not implemented; use a "
         "dense "
         "Qwen3-VL (2B, 4B, 8B, 32B)");
  }
  if (c.model_type != "qwen3_vl")
    fail(ErrorCode::kUnsupported, where, "model_type", "qwen3_vl", c.model_type);
  const JsonReader text = reader.object("text_config");
  const JsonReader vision = reader.object("vision_config");
  for (const JsonReader* part : {&reader, &text, &vision}) {
    if (!part->has("quantization_config")) continue;
    const JsonReader quantization = part->object("quantization_config");
    fail(ErrorCode::kUnsupported, part->where(),
         "quantised checkpoint (quantization_config, method " + quantization.text("quant_method", "unknown") +
             "): use the original bf16 checkpoint");
  }
  c.image_token_id = reader.token("image_token_id", c.image_token_id);
  c.video_token_id = reader.token("video_token_id", c.video_token_id);
  c.vision_start_token_id = reader.token("vision_start_token_id", c.vision_start_token_id);
  c.vision_end_token_id = reader.token("vision_end_token_id", c.vision_end_token_id);
  c.tie_is_explicit = reader.has("tie_word_embeddings");
  c.tie_word_embeddings = reader.boolean("tie_word_embeddings", false);
  for (const char* key : {"torch_dtype", "dtype"}) {
    c.dtype = text.text(key, c.dtype);
    c.dtype = reader.text(key, c.dtype);
  }
  c.eos_token_ids = token_ids(text, "eos_token_id");
  c.text = read_text(text);
  c.vision = read_vision(vision);
  c.validate(where);
  return c;
}

void ModelConfig::validate(std::string_view where) const {
  const std::string prefix(where);
  validate_text(text, prefix + ": text_config");
  validate_vision(vision, prefix + ": vision_config");
  if (vision.out_hidden_size != text.hidden_size) {
    fail(ErrorCode::kMismatch, where, "vision out_hidden_size",
         "the text hidden_size " + std::to_string(text.hidden_size), std::to_string(vision.out_hidden_size));
  }
  if (vision.deepstack_levels() > text.num_layers) {
    fail(ErrorCode::kMismatch, where, "number of deepstack_visual_indexes",
         "at most the " + std::to_string(text.num_layers) + " decoder layers",
         std::to_string(vision.deepstack_levels()));
  }
  check_token(where, "image_token_id", image_token_id, text.vocab_size);
  check_token(where, "video_token_id", video_token_id, text.vocab_size);
  check_token(where, "vision_start_token_id", vision_start_token_id, text.vocab_size);
  check_token(where, "vision_end_token_id", vision_end_token_id, text.vocab_size);
  if (image_token_id == video_token_id) {
    fail(ErrorCode::kMismatch, where, "image_token_id and video_token_id", "two different ids",
         std::to_string(image_token_id) + " twice");
  }
}

GenerationConfig GenerationConfig::load(const std::filesystem::path& folder, const ModelConfig& config) {
  const std::filesystem::path path = folder / "generation_config.json";
  std::error_code ignored;
  GenerationConfig result;
  if (std::filesystem::exists(path, ignored)) result = from_json(parse_json_file(path), path.string());
  if (result.eos_token_ids.empty()) result.eos_token_ids = config.eos_token_ids;
  for (const int32_t id : result.eos_token_ids)
    check_token(path.string(), "eos_token_id", id, config.text.vocab_size);
  return result;
}

GenerationConfig GenerationConfig::from_json(const Json& json, std::string_view where) {
  const JsonReader reader(json, std::string(where));
  GenerationConfig c;
  c.do_sample = reader.boolean("do_sample", c.do_sample);
  c.temperature = reader.number("temperature", c.temperature);
  c.top_p = reader.number("top_p", c.top_p);
  c.top_k = reader.integer("top_k", c.top_k);
  c.min_p = reader.number("min_p", c.min_p);
  c.repetition_penalty = reader.number("repetition_penalty", c.repetition_penalty);
  c.presence_penalty = reader.number("presence_penalty", c.presence_penalty);
  c.eos_token_ids = token_ids(reader, "eos_token_id");
  if (reader.has("pad_token_id")) c.pad_token_id = reader.token("pad_token_id", 0);
  if (reader.has("bos_token_id")) c.bos_token_id = reader.token("bos_token_id", 0);
  if (reader.has("max_new_tokens")) c.max_new_tokens = reader.integer("max_new_tokens", 0);

  const auto out_of_range = [&](std::string_view key, std::string_view expected, double got) {
    fail(ErrorCode::kMismatch, where, key, expected, std::to_string(got));
  };
  if (!(c.temperature >= 0.0)) out_of_range("temperature", "at least 0", c.temperature);
  if (!(c.top_p > 0.0 && c.top_p <= 1.0)) out_of_range("top_p", "above 0 and at most 1", c.top_p);
  if (c.top_k < 0) out_of_range("top_k", "at least 0 (0: off)", static_cast<double>(c.top_k));
  if (!(c.min_p >= 0.0 && c.min_p <= 1.0)) out_of_range("min_p", "0 to 1", c.min_p);
  if (!(c.repetition_penalty > 0.0)) out_of_range("repetition_penalty", "above 0", c.repetition_penalty);
  if (!std::isfinite(c.presence_penalty)) out_of_range("presence_penalty", "a number", c.presence_penalty);
  if (c.max_new_tokens && *c.max_new_tokens < 1) {
    out_of_range("max_new_tokens", "at least 1", static_cast<double>(*c.max_new_tokens));
  }
  return c;
}

}  // namespace qvl::model
