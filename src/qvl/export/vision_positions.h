// Where the patches of one image or video frame lie: rows of the position table with their weights, and the
// rotary tables (spec 5.2, 5.3), as nodes of a graph or as constants. Used by the vision graphs.
#pragma once

#include "qvl/image/grid.h"
#include "qvl/model/config.h"
#include "qvl/onnx/graph_builder.h"

namespace qvl::exporting {

// For the n = h*w patches of a frame, in the order of spec 3.4; all frames of a video share them.
struct VisionPositions {
  onnx::Value taps;     // i64 [4, n], rows of the position table
  onnx::Value weights;  // f32 [4, n]
  onnx::Value cos;      // f32 [n, head_dim/2]
  onnx::Value sin;      // f32 [n, head_dim/2]
};

// Computes them from h and w (i64 scalars). The same float32 operations in the same order as the reference:
// taps and weights are equal to the bit. In a body or graph of its own scope the results are called
// position_taps, position_weights, rotary_cos and rotary_sin.
VisionPositions computed_positions(onnx::GraphBuilder& graph, const onnx::Value& h, const onnx::Value& w,
                                   const model::VisionConfig& config);

// The positions of a known grid, as constants.
VisionPositions constant_positions(onnx::GraphBuilder& graph, const image::Grid& grid,
                                   const model::VisionConfig& config);

}  // namespace qvl::exporting
