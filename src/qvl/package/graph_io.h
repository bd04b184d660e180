// The one place that names the inputs and outputs of the exported graphs. Exporter, ONNX Runtime engine, docs
// and tests read it. Sizes: N images or videos, P patches, M = P/4 merged tokens, D hidden, K DeepStack
// levels, B batch, S new tokens, T all tokens so far, L decoder layers.
#pragma once

#include <string>

namespace qvl::package {

// vision.onnx: any number of images and videos of any sizes in one call; positions are computed inside.
inline constexpr char kPixelValues[] = "pixel_values";  // f32 [P, 1536], rows in merge-block order (spec 3.4)
inline constexpr char kGridThw[] = "grid_thw";          // i64 [N, 3]
inline constexpr char kGenaiGridThw[] =
    "image_grid_thw";  // its name in the genai layout: that runtime feeds no other
inline constexpr char kImageFeatures[] = "image_features";  // f32 [M, D]
inline std::string deepstack_features_name(int j) {
  return "deepstack_features." + std::to_string(j);
}  // f32 [M, D]

// vision_host.onnx, for one image or video whose t frames are a batch: positions are made by the caller.
inline constexpr char kPositionTaps[] =
    "position_taps";  // i64 [4, h*w], rows of the position table (spec 5.2)
inline constexpr char kPositionWeights[] = "position_weights";  // f32 [4, h*w]
inline constexpr char kVisionCos[] = "rotary_cos";              // f32 [h*w, head_dim/2]
inline constexpr char kVisionSin[] = "rotary_sin";              // f32 [h*w, head_dim/2]
// there pixel_values is f32 [t, h*w, 1536]; outputs as above with M = t*h*w/4

// embedding.onnx: rows of visual placeholders are replaced by the features in order; M = 0 for text alone.
inline constexpr char kInputIds[] = "input_ids";  // i64 [B, S]
// inputs image_features f32 [M, D], deepstack_features.j f32 [M, D]
inline constexpr char kInputsEmbeds[] = "inputs_embeds";  // f32 [B, S, D]
inline constexpr char kDeepstackEmbeds[] =
    "deepstack_embeds";  // f32 [K, B, S, D]; zero rows where no picture is

// decoder.onnx
// inputs inputs_embeds, deepstack_embeds (as above)
inline constexpr char kPositionIds[] = "position_ids";      // i64 [3, B, S]: t, h, w (spec 6.2)
inline constexpr char kAttentionMask[] = "attention_mask";  // i64 [B, T]: 1 for tokens, 0 for padding
inline constexpr char kLogitsToKeep[] =
    "num_logits_to_keep";  // i64 [1]: logits of the last n positions, 1 <= n <= S
inline std::string past_key_name(int layer) {
  return "past_key_values." + std::to_string(layer) + ".key";
}  // f32 [B, KV, T-S, hd]
inline std::string past_value_name(int layer) {
  return "past_key_values." + std::to_string(layer) + ".value";
}
inline std::string present_key_name(int layer) {
  return "present." + std::to_string(layer) + ".key";
}  // f32 [B, KV, T, hd]
inline std::string present_value_name(int layer) {
  return "present." + std::to_string(layer) + ".value";
}
inline constexpr char kLogits[] = "logits";  // f32 [B, n, vocab]

// Files of a package.
inline constexpr char kManifestFile[] = "qvl.json";
inline constexpr char kVisionGraph[] = "vision.onnx";
inline constexpr char kVisionHostGraph[] = "vision_host.onnx";
inline constexpr char kEmbeddingGraph[] = "embedding.onnx";
inline constexpr char kDecoderGraph[] = "decoder.onnx";
inline constexpr char kVisionData[] = "vision.data";
inline constexpr char kTextData[] =
    "text.data";  // decoder, embedding and head, so that a tied head is stored once

}  // namespace qvl::package
