// Embedding and decoder stages as graphs (spec 6). Private to this room.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "qvl/engine/ort/kv_cache.h"
#include "qvl/engine/ort/runtime.h"
#include "qvl/engine/stages.h"
#include "qvl/model/config.h"
#include "qvl/package/package.h"

namespace qvl::engine::ort {

class OrtEmbed : public EmbedStage {
 public:
  OrtEmbed(std::shared_ptr<const package::Package> package, std::shared_ptr<const Graph> graph);

  // Float32. Rows of visual placeholders, which the graph would take from features, hold the embedding of
  // token 0: they are replaced by whoever places the features (engine/visual_features.h).
  Tensor embed(std::span<const int32_t> ids) const override;

 private:
  void embed(std::span<const int64_t> ids, float* out) const;

  std::shared_ptr<const package::Package> package_;  // the runtime maps the weights from its folder
  std::shared_ptr<const Graph> graph_;
  const model::ModelConfig& config_;
  int64_t levels_;
  bool joined_;         // genai layout: features of all levels side by side
  int64_t fixed_rows_;  // tokens a call, 0: any
};

class OrtDecoder : public DecoderStage {
 public:
  OrtDecoder(std::shared_ptr<const package::Package> package, std::shared_ptr<const Graph> graph);

  std::unique_ptr<KvCache> new_cache() const override;
  Tensor forward(const DecoderInput& input, KvCache& cache, LogitsMode logits,
                 const StageHooks& hooks) const override;

 private:
  // Rows [first, first + count) of an input; `keep` positions from the end get logits, written to `logits`.
  // With `traced`, the residual stream after each layer is appended to it.
  void step(const DecoderInput& input, int64_t first, int64_t count, int64_t keep, float* logits,
            OrtKvCache& cache, const std::function<bool()>& poll,
            std::map<int, std::vector<float>>* traced) const;

  std::shared_ptr<const package::Package> package_;
  std::shared_ptr<const Graph> graph_;
  const model::TextConfig& config_;
  int64_t levels_;
  bool joined_;
  bool counts_logits_;  // the graph has num_logits_to_keep
  bool last_logits_only_;
  CacheShape cache_shape_;
  int64_t fixed_rows_ = 0;  // tokens a call, 0: any
  int64_t fixed_context_ = 0;
  std::vector<std::string> layer_names_;  // of the values that a trace wants
};

}  // namespace qvl::engine::ort
