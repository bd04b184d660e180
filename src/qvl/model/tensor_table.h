// THE tensor table (spec 2): which tensors a model of a given configuration consists of, under which
// canonical names, in which shapes and roles. The loaders, the exporter, `qvl info` and `qvl synth` all read
// it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/model/config.h"

namespace qvl::model {

enum class TensorRole {
  // Vision, once.
  kPatchEmbedWeight,  // [Dv, C, T, ps, ps]
  kPatchEmbedBias,
  kVisionPosEmbed,  // [side * side, Dv]
  // Vision block `layer`.
  kVisionNorm1Weight,
  kVisionNorm1Bias,
  kVisionNorm2Weight,
  kVisionNorm2Bias,
  kVisionQkvWeight,  // [3 Dv, Dv], rows q, k, v
  kVisionQkvBias,
  kVisionProjWeight,
  kVisionProjBias,
  kVisionFc1Weight,
  kVisionFc1Bias,
  kVisionFc2Weight,
  kVisionFc2Bias,
  // Main merger; norm over [Dv], before the 2x2 regrouping.
  kMergerNormWeight,
  kMergerNormBias,
  kMergerFc1Weight,
  kMergerFc1Bias,
  kMergerFc2Weight,
  kMergerFc2Bias,
  // DeepStack merger `layer` (its number j, not the block's); norm over [4 Dv], after the regrouping.
  kDeepstackNormWeight,
  kDeepstackNormBias,
  kDeepstackFc1Weight,
  kDeepstackFc1Bias,
  kDeepstackFc2Weight,
  kDeepstackFc2Bias,
  // Text.
  kTokenEmbedding,  // [vocab, D]
  kTextInputNorm,   // decoder layer `layer` from here
  kTextPostAttentionNorm,
  kTextQWeight,
  kTextKWeight,
  kTextVWeight,
  kTextOWeight,
  kTextQBias,  // the four biases only with attention_bias
  kTextKBias,
  kTextVBias,
  kTextOBias,
  kTextQNorm,
  kTextKNorm,
  kTextGateWeight,
  kTextUpWeight,
  kTextDownWeight,
  kTextFinalNorm,  // once
  kLmHead,         // [vocab, D], only untied
};

// What a tensor may be stored as: matrices are quantised, the rest stays in floating point.
enum class PrecisionClass { kMatrix, kNorm, kBias, kEmbedding, kPositionTable };

struct TensorSpec {
  std::string name;  // canonical
  TensorRole role = TensorRole::kPatchEmbedWeight;
  int layer = -1;  // vision block, DeepStack merger or decoder layer; -1 outside of these
  Shape shape;
  PrecisionClass precision = PrecisionClass::kMatrix;
};

// The matrix that makes the logits: of its own, or the embedding's.
constexpr TensorRole head_role(bool tied) {
  return tied ? TensorRole::kTokenEmbedding : TensorRole::kLmHead;
}

// The canonical name of a role; `layer` is needed exactly by the roles of blocks, layers and DeepStack
// mergers (kInvalidArgument otherwise).
std::string tensor_name(TensorRole role, int layer = -1);
PrecisionClass precision_class(TensorRole role);
bool is_vision_role(TensorRole role);

// The shape of a role in this configuration.
Shape tensor_shape(const ModelConfig& config, TensorRole role);

// All tensors of the model in the order of computation: vision, embedding, layers, final norm, head. 713 for
// 4B.
std::vector<TensorSpec> tensor_table(const ModelConfig& config);

struct ParameterCount {
  int64_t total = 0;
  int64_t vision = 0;
};
// A tied head counts once.
ParameterCount parameter_count(const ModelConfig& config);

// One tensor found in a checkpoint, for check_checkpoint.
struct FoundTensor {
  std::string name;  // canonical
  DType dtype = DType::kF32;
  Shape shape;
  std::string file;           // for messages
  std::string original_name;  // spelling in the file, for messages when it differs; may be empty
};

struct CheckpointMatch {
  // True when logits use the embedding matrix: the configuration says so, or says nothing and there is no
  // head.
  bool tied_head = false;
  // The configuration says tied but lm_head.weight is there. It then must equal the embedding; the caller,
  // who has the bytes, checks that (same_head below words the error).
  bool redundant_head = false;
  int64_t parameters = 0;
  // Tensors that are no part of the model and known to be harmless (stored rotary tables). Logged.
  std::vector<std::string> ignored;
};

// Compares a checkpoint with the table. Throws kMismatch listing up to five faults (missing, surplus,
// misshapen, wrong element type) with file and tensor names; `where` names the folder. Weights must be F32,
// BF16 or F16; element types may differ between tensors.
CheckpointMatch check_checkpoint(const ModelConfig& config, std::span<const FoundTensor> found,
                                 std::string_view where);

// The error for a redundant head whose bytes differ from the embedding. Always throws kMismatch.
[[noreturn]] void fail_different_head(std::string_view where, std::string_view file);

}  // namespace qvl::model
