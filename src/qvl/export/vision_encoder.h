// The vision encoder as graph nodes: patches of one image or video and their positions in, features out
// (spec 5.1 to 5.5). The vision graphs differ in where patches and positions come from.
#pragma once

#include <vector>

#include "qvl/export/graphs.h"
#include "qvl/export/vision_positions.h"
#include "qvl/export/weight_plan.h"
#include "qvl/onnx/graph_builder.h"

namespace qvl::exporting {

// How attention stands in a graph of standard operators.
enum class PlainAttention {
  // One pair of products over all heads: what runtimes know how to fuse, no control flow. The scores take
  // t * heads * (h*w)^2 floats.
  kBatched,
  // A Loop over the heads: t * (h*w)^2 floats, and a quarter faster in ONNX Runtime at 4096 patches.
  kHeadByHead,
};

// Features of the frames of one size. `patches`: f32 [t*n, 1536]; `frame_shape`: i64 [3], {t, n, -1}. Returns
// image_features and deepstack_features.j, f32 [t*n/4, D] each, or with Layout::kGenai their concatenation.
std::vector<onnx::Value> vision_encoder(onnx::GraphBuilder& graph, const onnx::Value& patches,
                                        const onnx::Value& frame_shape, const VisionPositions& positions,
                                        WeightPlan& plan, const GraphOptions& options,
                                        PlainAttention attention);

}  // namespace qvl::exporting
