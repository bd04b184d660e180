// The vision stage: patches to merged tokens and DeepStack features (spec 5).
#pragma once

#include <functional>
#include <vector>

#include "qvl/base/thread_pool.h"
#include "qvl/engine/native/weights.h"
#include "qvl/engine/stages.h"
#include "qvl/kernels/ops.h"
#include "qvl/model/config.h"

namespace qvl::engine::native {

class NativeVision : public VisionStage {
 public:
  // The config, the weights' owners and the context outlive this stage. `give_back` lets go of the weights' pages.
  NativeVision(const model::VisionConfig& config, VisionWeights weights, DType activation,
               kernels::AttentionProducts attention, kernels::Context context, std::function<void()> give_back)
      : config_(config),
        weights_(std::move(weights)),
        activation_(activation),
        attention_(attention),
        context_(context),
        give_back_(std::move(give_back)) {}

  VisionFeatures encode(std::span<const float> pixel_values, std::span<const image::Grid> grids,
                        const StageHooks& hooks) const override;
  void give_back() const override { give_back_(); }
  bool frames_are_independent() const override { return true; }

 private:
  // Activations of a call, all that grows with the patches. Every step of every block and merger works in them.
  struct Workspace {
    kernels::Matrix x;       // [P, dim], the residual stream
    kernels::Matrix y;       // [P, dim], normed; what attention says; normed rows of a merger
    kernels::Matrix qkv;     // [P, 3 dim] while heads attend; between blocks the hidden rows of a merger [P/4, 4 dim]
    kernels::Matrix hidden;  // [up to 1024, intermediate], a piece of the MLP, where qkv stood
  };

  // `pause`, which may be empty, is called between pieces of work in these.
  void embed_patches(std::span<const float> pixels, std::span<const image::Grid> grids,
                     const kernels::Matrix& x, const StageHooks& hooks, const kernels::Pause& pause) const;
  void block(const VisionBlockWeights& w, std::span<const int64_t> segments, const float* cos,
             const float* sin, const Workspace& s, const kernels::Pause& pause) const;
  // y = act(x . W^T + bias) (+ residual), piece by piece.
  void linear(kernels::ConstMatrix x, const kernels::Weight& w, kernels::Activation activation,
              kernels::ConstMatrix residual, kernels::Matrix y, const kernels::Pause& pause) const;
  // Of s.x, which stays as it is.
  Tensor merge(const MergerWeights& w, bool norm_after_regrouping, const Workspace& s, const kernels::Pause& pause) const;

  const model::VisionConfig& config_;
  VisionWeights weights_;
  DType activation_;
  kernels::AttentionProducts attention_;
  kernels::Context context_;
  std::function<void()> give_back_;
};

}  // namespace qvl::engine::native
