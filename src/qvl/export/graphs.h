// The graphs of the three stages (spec 5, 6, 10), written directly: what goes in and out is named in
// package/graph_io.h.
#pragma once

#include <optional>

#include "qvl/export/weight_plan.h"
#include "qvl/image/grid.h"
#include "qvl/onnx/graph_builder.h"
#include "qvl/package/manifest.h"

namespace qvl::exporting {

// kQvl: graph_io.h as it stands. kGenai, what onnxruntime-genai can feed: the DeepStack levels travel beside
// the features in one tensor of width (1+K)*D, so that vision has one output, embedding one image input and
// one output, and the decoder splits inputs_embeds.
using package::Layout;

struct GraphOptions {
  LinearOptions linear;
  Layout layout = Layout::kQvl;
  int64_t opset = 21;  // 17 to 24; weights in blocks need 21 with standard operators only
  // kGenai, whose decoder has no kLogitsToKeep: logits of all positions instead of the last one.
  bool all_logits = false;
  // Residual sum and norm of the vision blocks as one SkipLayerNormalization instead of Add and
  // LayerNormalization. The CPU provider of ONNX Runtime 1.32 takes 2.2 to 4.2 times as long for it, 5 to 9 %
  // of the whole encoder; other providers may gain. Without effect on graphs of standard operators.
  bool skip_layer_norm = false;
  // Fixed shapes (--static): the one image, and how many tokens a decoder call takes and the cache holds. See
  // embedding_graph and decoder_graph.
  std::optional<image::Grid> static_grid;
  int64_t static_sequence = 0;
  int64_t static_context = 0;
};

onnx::GraphBuilder vision_graph(WeightPlan& plan, const GraphOptions& options);
onnx::GraphBuilder vision_host_graph(WeightPlan& plan, const GraphOptions& options);

// Tokens to embeddings, visual placeholders replaced (spec 6.1). A count of features that is not the count of
// placeholders fails in a Reshape of the graph. With static_sequence S: ids [1, S], features [S, D] with the
// rows for this call's placeholders first and anything behind them.
onnx::GraphBuilder embedding_graph(WeightPlan& plan, const GraphOptions& options);

// Decoder and head (spec 6.2 to 6.7). Padding may stand anywhere where attention_mask is 0; batches are
// padded on the left. Fused operators write the cache in place when past and present are bound to one buffer
// of any capacity >= T (attention_mask tells T); GroupQueryAttention refuses several tokens on top of a past
// in a batch of several rows. kGenai reads attention_mask as its runtime fills it: padding on the right. With
// static_sequence S and static_context C: batch 1, S new tokens, past of C - S, attention_mask [1, C], logits
// of the last position alone, no kLogitsToKeep. Short chunks and short pasts are padded on the left with mask
// 0; the next call's past are the last C - S positions of present.
onnx::GraphBuilder decoder_graph(WeightPlan& plan, const GraphOptions& options);

}  // namespace qvl::exporting
