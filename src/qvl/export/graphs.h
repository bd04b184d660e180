// The graphs of the three stages (spec 5, 6, 10), written directly: what goes in and out is named in
// package/graph_io.h.
#pragma once

#include <optional>

#include "qvl/export/weight_plan.h"
#include "qvl/image/grid.h"
#include "qvl/onnx/graph_builder.h"

namespace qvl::exporting {

enum class Layout {
  kQvl,    // graph_io.h as it stands
  // What onnxruntime-genai can feed: the DeepStack levels travel beside the features in one tensor of width (1+K)*D, so
  // that vision has one output, embedding one image input and one output, and the decoder splits inputs_embeds.
  kGenai,
};

struct GraphOptions {
  LinearOptions linear;
  Layout layout = Layout::kQvl;
  int64_t opset = 21;
  // Fixed shapes (--static): the one image, and how many tokens a decoder call takes and the cache holds.
  std::optional<image::Grid> static_grid;
  int64_t static_sequence = 0;
  int64_t static_context = 0;
};

onnx::GraphBuilder vision_graph(WeightPlan& plan, const GraphOptions& options);
onnx::GraphBuilder vision_host_graph(WeightPlan& plan, const GraphOptions& options);
onnx::GraphBuilder embedding_graph(WeightPlan& plan, const GraphOptions& options);
onnx::GraphBuilder decoder_graph(WeightPlan& plan, const GraphOptions& options);

}  // namespace qvl::exporting
