// Vision stage as a graph (spec 5). Private to this room.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "qvl/engine/ort/runtime.h"
#include "qvl/engine/stages.h"
#include "qvl/model/config.h"
#include "qvl/package/package.h"

namespace qvl::engine::ort {

class OrtVision : public VisionStage {
 public:
  // `host`: the graph is vision_host.onnx. Throws kMismatch when the graph is not one of this package's.
  OrtVision(std::shared_ptr<const package::Package> package, std::shared_ptr<const Graph> graph, bool host);

  VisionFeatures encode(std::span<const float> pixel_values, std::span<const image::Grid> grids,
                        const StageHooks& hooks) const override;

 private:
  // Images that go through the graph together, and where their rows stand.
  struct Part {
    std::span<const image::Grid> grids;
    const float* pixels = nullptr;
    int64_t patches = 0;
    int64_t first_merged = 0;
  };

  std::vector<Part> split(std::span<const float> pixels, std::span<const image::Grid> grids) const;
  void encode(const Part& part, VisionFeatures& out, const std::function<bool()>& poll) const;

  std::shared_ptr<const package::Package> package_;  // the runtime maps the weights from its folder
  std::shared_ptr<const Graph> graph_;
  const model::VisionConfig& config_;
  bool host_;
  bool joined_;  // genai layout: one output of all levels side by side
  std::optional<image::Grid> fixed_;
};

}  // namespace qvl::engine::ort
