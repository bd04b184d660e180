// Vision stage as a graph (spec 5). Private to this room.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qvl/engine/ort/runtime.h"
#include "qvl/engine/stages.h"
#include "qvl/model/config.h"
#include "qvl/package/graph_io.h"
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
  // With `traced`, what the graph lets be seen is appended to it.
  void encode(const Part& part, VisionFeatures& out, const std::function<bool()>& poll,
              std::map<std::string, std::vector<float>>* traced) const;

  const char* grid_input() const { return joined_ ? package::kGenaiGridThw : package::kGridThw; }

  std::shared_ptr<const package::Package> package_;  // the runtime maps the weights from its folder
  std::shared_ptr<const Graph> graph_;
  const model::VisionConfig& config_;
  bool host_;
  bool joined_;  // genai layout: one output of all levels side by side
  std::optional<image::Grid> fixed_;
  std::vector<std::string> trace_names_;  // of the values that a trace wants, in the order of computation
};

}  // namespace qvl::engine::ort
