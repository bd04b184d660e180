// Embedding and decoder stages (spec 6).
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "qvl/base/pages_ahead.h"
#include "qvl/engine/native/head.h"
#include "qvl/engine/native/kv_cache.h"
#include "qvl/engine/native/weights.h"
#include "qvl/engine/stages.h"
#include "qvl/kernels/ops.h"
#include "qvl/model/config.h"
#include "qvl/model/positions.h"

namespace qvl::engine::native {

class NativeEmbed : public EmbedStage {
 public:
  NativeEmbed(const DecoderWeights& weights, DType activation) : weights_(weights), activation_(activation) {}
  Tensor embed(std::span<const int32_t> ids) const override;

 private:
  const DecoderWeights& weights_;
  DType activation_;
};

class NativeDecoder : public DecoderStage {
 public:
  // The config, the weights and the context outlive this stage. `cache`: the type of keys and values in memory, the
  // activations' or I8. `give_back` lets go of the weights' pages.
  NativeDecoder(const model::TextConfig& config, const DecoderWeights& weights, DType activation, DType cache,
                kernels::Context context, std::function<void()> give_back);

  std::unique_ptr<KvCache> new_cache() const override;
  bool decode_rows_are_independent() const override { return true; }
  Tensor forward(const DecoderInput& input, KvCache& cache, LogitsMode logits,
                 const StageHooks& hooks) const override;
  Tensor decode_together(const DecoderInput& input, std::span<const DecodeShare> shares,
                         const StageHooks& hooks) const override;
  // Only where there are threads beside the caller's.
  void expect() const override;
  void give_back() const override;
  std::vector<std::span<const std::byte>> weights_of_step() const override;
  bool reads_shortlist() const override { return head_.has_shortlist(); }

 private:
  // forward() of one timeline or a decode step of several.
  Tensor run(const DecoderInput& input, std::span<const DecodeShare> shares, LogitsMode logits,
             const StageHooks& hooks) const;
  Tensor logits(const kernels::ConstMatrix& x, LogitsMode mode, TopLogits top, kernels::LinearPath path) const;

  const model::TextConfig& config_;
  const DecoderWeights& weights_;
  Head head_;
  DType activation_;
  DType cache_;
  kernels::Context context_;
  model::MropeTable mrope_;
  std::function<void()> give_back_;
  std::unique_ptr<PagesAhead> ahead_;
};

}  // namespace qvl::engine::native
