#include "qvl/model/tensor_table.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "qvl/base/error.h"
#include "qvl/base/log.h"

namespace qvl::model {
namespace {

// Where a role occurs; it decides the prefix of the name and how often the role appears.
enum class Place { kVision, kVisionBlock, kMerger, kDeepstack, kText, kTextLayer, kTop };

struct RoleRow {
  TensorRole role;
  Place place;
  std::string_view suffix;
  PrecisionClass precision;
};

constexpr auto kMatrix = PrecisionClass::kMatrix;
constexpr auto kNorm = PrecisionClass::kNorm;
constexpr auto kBias = PrecisionClass::kBias;

using Role = TensorRole;

// In the order of computation, which is also the order of the enumeration.
// clang-format off
constexpr std::array kRoles{
    RoleRow{Role::kPatchEmbedWeight, Place::kVision, "patch_embed.proj.weight", kMatrix},
    RoleRow{Role::kPatchEmbedBias, Place::kVision, "patch_embed.proj.bias", kBias},
    RoleRow{Role::kVisionPosEmbed, Place::kVision, "pos_embed.weight", PrecisionClass::kPositionTable},
    RoleRow{Role::kVisionNorm1Weight, Place::kVisionBlock, "norm1.weight", kNorm},
    RoleRow{Role::kVisionNorm1Bias, Place::kVisionBlock, "norm1.bias", kNorm},
    RoleRow{Role::kVisionNorm2Weight, Place::kVisionBlock, "norm2.weight", kNorm},
    RoleRow{Role::kVisionNorm2Bias, Place::kVisionBlock, "norm2.bias", kNorm},
    RoleRow{Role::kVisionQkvWeight, Place::kVisionBlock, "attn.qkv.weight", kMatrix},
    RoleRow{Role::kVisionQkvBias, Place::kVisionBlock, "attn.qkv.bias", kBias},
    RoleRow{Role::kVisionProjWeight, Place::kVisionBlock, "attn.proj.weight", kMatrix},
    RoleRow{Role::kVisionProjBias, Place::kVisionBlock, "attn.proj.bias", kBias},
    RoleRow{Role::kVisionFc1Weight, Place::kVisionBlock, "mlp.linear_fc1.weight", kMatrix},
    RoleRow{Role::kVisionFc1Bias, Place::kVisionBlock, "mlp.linear_fc1.bias", kBias},
    RoleRow{Role::kVisionFc2Weight, Place::kVisionBlock, "mlp.linear_fc2.weight", kMatrix},
    RoleRow{Role::kVisionFc2Bias, Place::kVisionBlock, "mlp.linear_fc2.bias", kBias},
    RoleRow{Role::kMergerNormWeight, Place::kMerger, "norm.weight", kNorm},
    RoleRow{Role::kMergerNormBias, Place::kMerger, "norm.bias", kNorm},
    RoleRow{Role::kMergerFc1Weight, Place::kMerger, "linear_fc1.weight", kMatrix},
    RoleRow{Role::kMergerFc1Bias, Place::kMerger, "linear_fc1.bias", kBias},
    RoleRow{Role::kMergerFc2Weight, Place::kMerger, "linear_fc2.weight", kMatrix},
    RoleRow{Role::kMergerFc2Bias, Place::kMerger, "linear_fc2.bias", kBias},
    RoleRow{Role::kDeepstackNormWeight, Place::kDeepstack, "norm.weight", kNorm},
    RoleRow{Role::kDeepstackNormBias, Place::kDeepstack, "norm.bias", kNorm},
    RoleRow{Role::kDeepstackFc1Weight, Place::kDeepstack, "linear_fc1.weight", kMatrix},
    RoleRow{Role::kDeepstackFc1Bias, Place::kDeepstack, "linear_fc1.bias", kBias},
    RoleRow{Role::kDeepstackFc2Weight, Place::kDeepstack, "linear_fc2.weight", kMatrix},
    RoleRow{Role::kDeepstackFc2Bias, Place::kDeepstack, "linear_fc2.bias", kBias},
    RoleRow{Role::kTokenEmbedding, Place::kText, "embed_tokens.weight", PrecisionClass::kEmbedding},
    RoleRow{Role::kTextInputNorm, Place::kTextLayer, "input_layernorm.weight", kNorm},
    RoleRow{Role::kTextPostAttentionNorm, Place::kTextLayer, "post_attention_layernorm.weight", kNorm},
    RoleRow{Role::kTextQWeight, Place::kTextLayer, "self_attn.q_proj.weight", kMatrix},
    RoleRow{Role::kTextKWeight, Place::kTextLayer, "self_attn.k_proj.weight", kMatrix},
    RoleRow{Role::kTextVWeight, Place::kTextLayer, "self_attn.v_proj.weight", kMatrix},
    RoleRow{Role::kTextOWeight, Place::kTextLayer, "self_attn.o_proj.weight", kMatrix},
    RoleRow{Role::kTextQBias, Place::kTextLayer, "self_attn.q_proj.bias", kBias},
    RoleRow{Role::kTextKBias, Place::kTextLayer, "self_attn.k_proj.bias", kBias},
    RoleRow{Role::kTextVBias, Place::kTextLayer, "self_attn.v_proj.bias", kBias},
    RoleRow{Role::kTextOBias, Place::kTextLayer, "self_attn.o_proj.bias", kBias},
    RoleRow{Role::kTextQNorm, Place::kTextLayer, "self_attn.q_norm.weight", kNorm},
    RoleRow{Role::kTextKNorm, Place::kTextLayer, "self_attn.k_norm.weight", kNorm},
    RoleRow{Role::kTextGateWeight, Place::kTextLayer, "mlp.gate_proj.weight", kMatrix},
    RoleRow{Role::kTextUpWeight, Place::kTextLayer, "mlp.up_proj.weight", kMatrix},
    RoleRow{Role::kTextDownWeight, Place::kTextLayer, "mlp.down_proj.weight", kMatrix},
    RoleRow{Role::kTextFinalNorm, Place::kText, "norm.weight", kNorm},
    RoleRow{Role::kLmHead, Place::kTop, "lm_head.weight", kMatrix},
};
// clang-format on

constexpr bool rows_follow_enum() {
  for (size_t i = 0; i < kRoles.size(); ++i) {
    if (static_cast<size_t>(kRoles[i].role) != i) return false;
  }
  return static_cast<size_t>(TensorRole::kLmHead) + 1 == kRoles.size();
}
static_assert(rows_follow_enum());

const RoleRow& row(TensorRole role) {
  return kRoles[static_cast<size_t>(role)];
}

bool is_layered(Place place) {
  return place == Place::kVisionBlock || place == Place::kDeepstack || place == Place::kTextLayer;
}

bool is_attention_bias(TensorRole role) {
  return role >= TensorRole::kTextQBias && role <= TensorRole::kTextOBias;
}

class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : config_(config) {}

  void add_place(Place place, int layer) {
    for (const RoleRow& r : kRoles) {
      if (r.place == place) add(r.role, layer);
    }
  }

  void add(TensorRole role, int layer = -1) {
    if (is_attention_bias(role) && !config_.text.attention_bias) return;
    table_.push_back(
        {tensor_name(role, layer), role, layer, tensor_shape(config_, role), precision_class(role)});
  }

  std::vector<TensorSpec> take() { return std::move(table_); }

 private:
  const ModelConfig& config_;
  std::vector<TensorSpec> table_;
};

// "name (as 'spelling') in FILE"
std::string describe(const FoundTensor& t) {
  std::string s = "'" + t.name + "'";
  if (!t.original_name.empty() && t.original_name != t.name) s += " (stored as '" + t.original_name + "')";
  return t.file.empty() ? s : s + " in " + t.file;
}

// Rotary tables are computed, never read; some writers store them all the same.
bool is_known_buffer(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("rotary_pos_emb.inv_freq") ||
         name.ends_with("rotary_emb.original_inv_freq");
}

bool is_weight_type(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

}  // namespace

PrecisionClass precision_class(TensorRole role) {
  return row(role).precision;
}

bool is_vision_role(TensorRole role) {
  return role < TensorRole::kTokenEmbedding;
}

std::string tensor_name(TensorRole role, int layer) {
  const RoleRow& r = row(role);
  if (is_layered(r.place) != (layer >= 0)) {
    fail(ErrorCode::kInvalidArgument, "tensor table", "layer of tensor " + std::string(r.suffix),
         is_layered(r.place) ? "a number" : "none", std::to_string(layer));
  }
  std::string name;
  switch (r.place) {
    case Place::kVision:
      name = "model.visual.";
      break;
    case Place::kVisionBlock:
      name = "model.visual.blocks." + std::to_string(layer) + ".";
      break;
    case Place::kMerger:
      name = "model.visual.merger.";
      break;
    case Place::kDeepstack:
      name = "model.visual.deepstack_merger_list." + std::to_string(layer) + ".";
      break;
    case Place::kText:
      name = "model.language_model.";
      break;
    case Place::kTextLayer:
      name = "model.language_model.layers." + std::to_string(layer) + ".";
      break;
    case Place::kTop:
      break;
  }
  return name.append(r.suffix);
}

Shape tensor_shape(const ModelConfig& config, TensorRole role) {
  const VisionConfig& v = config.vision;
  const TextConfig& t = config.text;
  const int64_t dv = v.hidden_size;
  const int64_t iv = v.intermediate_size;
  const int64_t h4 = v.merged_width();
  const int64_t d = t.hidden_size;
  switch (role) {
    case TensorRole::kPatchEmbedWeight:
      return {dv, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size};
    case TensorRole::kVisionPosEmbed:
      return {v.num_position_embeddings, dv};
    case TensorRole::kPatchEmbedBias:
    case TensorRole::kVisionNorm1Weight:
    case TensorRole::kVisionNorm1Bias:
    case TensorRole::kVisionNorm2Weight:
    case TensorRole::kVisionNorm2Bias:
    case TensorRole::kVisionProjBias:
    case TensorRole::kVisionFc2Bias:
    case TensorRole::kMergerNormWeight:
    case TensorRole::kMergerNormBias:
      return {dv};
    case TensorRole::kVisionQkvWeight:
      return {3 * dv, dv};
    case TensorRole::kVisionQkvBias:
      return {3 * dv};
    case TensorRole::kVisionProjWeight:
      return {dv, dv};
    case TensorRole::kVisionFc1Weight:
      return {iv, dv};
    case TensorRole::kVisionFc1Bias:
      return {iv};
    case TensorRole::kVisionFc2Weight:
      return {dv, iv};
    case TensorRole::kDeepstackNormWeight:
    case TensorRole::kDeepstackNormBias:
    case TensorRole::kMergerFc1Bias:
    case TensorRole::kDeepstackFc1Bias:
      return {h4};
    case TensorRole::kMergerFc1Weight:
    case TensorRole::kDeepstackFc1Weight:
      return {h4, h4};
    case TensorRole::kMergerFc2Weight:
    case TensorRole::kDeepstackFc2Weight:
      return {v.out_hidden_size, h4};
    case TensorRole::kMergerFc2Bias:
    case TensorRole::kDeepstackFc2Bias:
      return {v.out_hidden_size};
    case TensorRole::kTokenEmbedding:
    case TensorRole::kLmHead:
      return {t.vocab_size, d};
    case TensorRole::kTextInputNorm:
    case TensorRole::kTextPostAttentionNorm:
    case TensorRole::kTextFinalNorm:
    case TensorRole::kTextOBias:
      return {d};
    case TensorRole::kTextQWeight:
      return {t.q_width(), d};
    case TensorRole::kTextKWeight:
    case TensorRole::kTextVWeight:
      return {t.kv_width(), d};
    case TensorRole::kTextOWeight:
      return {d, t.q_width()};
    case TensorRole::kTextQBias:
      return {t.q_width()};
    case TensorRole::kTextKBias:
    case TensorRole::kTextVBias:
      return {t.kv_width()};
    case TensorRole::kTextQNorm:
    case TensorRole::kTextKNorm:
      return {t.head_dim};
    case TensorRole::kTextGateWeight:
    case TensorRole::kTextUpWeight:
      return {t.intermediate_size, d};
    case TensorRole::kTextDownWeight:
      return {d, t.intermediate_size};
  }
  fail(ErrorCode::kInvalidArgument, "tensor table", "unknown tensor role");
}

std::vector<TensorSpec> tensor_table(const ModelConfig& config) {
  TableBuilder builder(config);
  builder.add_place(Place::kVision, -1);
  for (int i = 0; i < config.vision.depth; ++i) builder.add_place(Place::kVisionBlock, i);
  builder.add_place(Place::kMerger, -1);
  const int levels = static_cast<int>(config.vision.deepstack_levels());
  for (int j = 0; j < levels; ++j) builder.add_place(Place::kDeepstack, j);
  builder.add(TensorRole::kTokenEmbedding);
  for (int i = 0; i < config.text.num_layers; ++i) builder.add_place(Place::kTextLayer, i);
  builder.add(TensorRole::kTextFinalNorm);
  if (!config.tie_word_embeddings) builder.add(TensorRole::kLmHead);
  return builder.take();
}

ParameterCount parameter_count(const ModelConfig& config) {
  ParameterCount count;
  for (const TensorSpec& spec : tensor_table(config)) {
    const int64_t n = element_count(spec.shape);
    count.total += n;
    if (is_vision_role(spec.role)) count.vision += n;
  }
  return count;
}

CheckpointMatch check_checkpoint(const ModelConfig& config, std::span<const FoundTensor> found,
                                 std::string_view where) {
  constexpr size_t kMaxListed = 5;
  CheckpointMatch match;
  std::vector<std::string> faults;

  std::unordered_map<std::string_view, const FoundTensor*> by_name;
  for (const FoundTensor& t : found) {
    if (!by_name.emplace(t.name, &t).second) faults.push_back("twice: " + describe(t));
  }
  const std::string head_name = tensor_name(TensorRole::kLmHead);
  const bool has_head = by_name.contains(head_name);
  match.tied_head = config.tie_word_embeddings || (!config.tie_is_explicit && !has_head);
  match.redundant_head = match.tied_head && has_head;

  ModelConfig expected = config;
  expected.tie_word_embeddings = match.tied_head && !has_head;
  for (const TensorSpec& spec : tensor_table(expected)) {
    const auto it = by_name.find(spec.name);
    if (it == by_name.end()) {
      faults.push_back("missing: '" + spec.name + "' " + shape_string(spec.shape));
      continue;
    }
    const FoundTensor& t = *it->second;
    by_name.erase(it);
    if (t.shape != spec.shape) {
      faults.push_back("misshapen: " + describe(t) + " is " + shape_string(t.shape) + ", should be " +
                       shape_string(spec.shape));
    } else if (!is_weight_type(t.dtype)) {
      faults.push_back("wrong type: " + describe(t) + " is " + std::string(dtype_name(t.dtype)) +
                       ", should be BF16, F16 or F32");
    } else if (!(match.redundant_head && spec.role == TensorRole::kLmHead)) {
      match.parameters += element_count(spec.shape);
    }
  }
  for (const FoundTensor& t : found) {
    const auto it = by_name.find(t.name);
    if (it == by_name.end() || it->second != &t) continue;
    if (is_known_buffer(t.name)) {
      match.ignored.push_back(t.name);
    } else {
      faults.push_back("surplus: " + describe(t));
    }
  }

  if (!faults.empty()) {
    std::string message = "the tensors do not fit config.json: ";
    for (size_t i = 0; i < std::min(faults.size(), kMaxListed); ++i) message += (i ? "; " : "") + faults[i];
    if (faults.size() > kMaxListed)
      message += "; and " + std::to_string(faults.size() - kMaxListed) + " more";
    fail(ErrorCode::kMismatch, where, message);
  }
  if (!match.ignored.empty()) {
    log_message(LogLevel::kInfo, std::string(where) + ": " + std::to_string(match.ignored.size()) +
                                     " stored rotary tables are not used, e.g. " + match.ignored.front());
  }
  if (match.tied_head && !config.tie_word_embeddings) {
    log_message(LogLevel::kInfo, std::string(where) +
                                     ": neither tie_word_embeddings nor lm_head.weight is there: " +
                                     "the embedding matrix serves as head");
  }
  return match;
}

void fail_different_head(std::string_view where, std::string_view file) {
  fail(ErrorCode::kMismatch, where,
       "config.json ties the head to the embedding (tie_word_embeddings), but 'lm_head.weight' in " +
           std::string(file) + " differs from it (set tie_word_embeddings to false to use it)");
}

}  // namespace qvl::model
