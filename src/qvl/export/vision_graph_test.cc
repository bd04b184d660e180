// Vision graphs without running them: names, shapes, operators, refusals. What they compute is held against
// goldens and a reference by tests/onnx/check_vision.py.

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/export/graphs.h"
#include "qvl/onnx/model_file.h"
#include "qvl/package/graph_io.h"

namespace qvl::exporting {
namespace {

using quant::Format;

constexpr int64_t kBlocks = 4, kLevels = 3;  // of the golden model

struct Graphs {
  onnx::ModelFile vision, host;
};

Graphs vision_graphs(const GraphOptions& options, Format format = Format::floating(DType::kF32)) {
  const model::ModelConfig config = model::ModelConfig::load(QVL_SOURCE_DIR "/tests/fixtures/golden/model");
  WeightPlan plan(config, [&](const model::TensorSpec& spec) {
    return spec.precision == model::PrecisionClass::kMatrix ? format : Format::floating(DType::kF32);
  });
  const onnx::ModelInfo info{.opset = options.opset};
  Graphs graphs;
  graphs.vision = onnx::ModelFile::parse(vision_graph(plan, options).serialize(info), "vision.onnx");
  graphs.host = onnx::ModelFile::parse(vision_host_graph(plan, options).serialize(info), "vision_host.onnx");
  return graphs;
}

std::map<std::string, std::string> described(const std::vector<onnx::ValueInfo>& values) {
  std::map<std::string, std::string> all;
  for (const onnx::ValueInfo& v : values) all[v.name] = v.describe();
  return all;
}

using Described = std::map<std::string, std::string>;

TEST(VisionGraphs, InterfaceOfGraphIo) {
  const Graphs graphs = vision_graphs({});
  const Described outputs{{"image_features", "F32 [features, 64]"},
                          {"deepstack_features.0", "F32 [features, 64]"},
                          {"deepstack_features.1", "F32 [features, 64]"},
                          {"deepstack_features.2", "F32 [features, 64]"}};
  EXPECT_EQ(described(graphs.vision.inputs),
            (Described{{"pixel_values", "F32 [patches, 1536]"}, {"grid_thw", "I64 [images, 3]"}}));
  EXPECT_EQ(described(graphs.vision.outputs), outputs);
  EXPECT_EQ(described(graphs.host.inputs), (Described{{"pixel_values", "F32 [frames, frame_patches, 1536]"},
                                                      {"position_taps", "I64 [4, frame_patches]"},
                                                      {"position_weights", "F32 [4, frame_patches]"},
                                                      {"rotary_cos", "F32 [frame_patches, 8]"},
                                                      {"rotary_sin", "F32 [frame_patches, 8]"}}));
  EXPECT_EQ(described(graphs.host.outputs), outputs);
}

TEST(VisionGraphs, GenaiHasOneOutputOfAllLevels) {
  const Graphs graphs = vision_graphs({.layout = Layout::kGenai});
  EXPECT_EQ(described(graphs.vision.inputs),
            (Described{{"pixel_values", "F32 [patches, 1536]"}, {"image_grid_thw", "I64 [images, 3]"}}));
  EXPECT_EQ(described(graphs.vision.outputs), (Described{{"image_features", "F32 [features, 256]"}}));
}

TEST(VisionGraphs, StaticHasNumbersAndOnlyPixels) {
  const Graphs graphs = vision_graphs({.static_grid = image::Grid{2, 4, 6}});
  EXPECT_EQ(described(graphs.vision.inputs), (Described{{"pixel_values", "F32 [48, 1536]"}}));
  EXPECT_EQ(described(graphs.vision.outputs).at("deepstack_features.2"), "F32 [12, 64]");
  EXPECT_EQ(described(graphs.host.inputs).at("pixel_values"), "F32 [2, 24, 1536]");
  EXPECT_EQ(described(graphs.host.outputs).at("image_features"), "F32 [12, 64]");
  const GraphOptions plain{.linear = {.plain = true}, .static_grid = image::Grid{1, 4, 6}};
  EXPECT_FALSE(vision_graphs(plain).vision.operators.contains("Loop"));  // fixed hardware has no control flow
}

TEST(VisionGraphs, FusedOperators) {
  for (const onnx::ModelFile& graph : {vision_graphs({}).vision, vision_graphs({}).host}) {
    const auto& n = graph.operators;
    EXPECT_EQ(n.at("com.microsoft.MultiHeadAttention"), kBlocks);
    EXPECT_EQ(n.at("com.microsoft.RotaryEmbedding"), 2 * kBlocks);
    EXPECT_EQ(n.at("com.microsoft.FastGelu"), kBlocks);
    EXPECT_EQ(n.at("com.microsoft.BiasGelu"), 1 + kLevels);
    EXPECT_EQ(n.at("LayerNormalization"), 2 * kBlocks + 1 + kLevels);
    EXPECT_EQ(n.at("Gemm"), 1 + 4 * kBlocks + 2 * (1 + kLevels));
    EXPECT_FALSE(n.contains("Softmax"));
  }
  const auto fused = vision_graphs({.skip_layer_norm = true}).vision.operators;
  EXPECT_EQ(fused.at("com.microsoft.SkipLayerNormalization"), 2 * kBlocks);
  EXPECT_EQ(fused.at("LayerNormalization"), 1 + kLevels);
}

TEST(VisionGraphs, PlainIsStandardOnly) {
  for (const int64_t opset : {17, 21}) {
    const Graphs graphs = vision_graphs({.linear = {.plain = true}, .opset = opset});
    for (const onnx::ModelFile& graph : {graphs.vision, graphs.host}) {
      EXPECT_EQ(graph.opsets, (std::map<std::string, int64_t>{{"", opset}}));
      EXPECT_EQ(graph.operators.contains("Gelu"), opset >= 20);
    }
  }
}

// Both graphs read the same bytes, and each tensor is declared once, also where a Loop uses it.
TEST(VisionGraphs, ShareTheirWeights) {
  for (const Format& format : {Format::floating(DType::kBF16), Format::row8(), Format::blocks(8, 32)}) {
    const Graphs graphs = vision_graphs({}, format);
    std::map<std::string, uint64_t> offsets[2];
    for (const onnx::ModelFile* graph : {&graphs.vision, &graphs.host}) {
      auto& own = offsets[graph == &graphs.host];
      for (const onnx::Initializer& weight : graph->initializers) {
        if (weight.external.file.empty()) continue;
        EXPECT_EQ(weight.external.file, package::kVisionData);
        EXPECT_TRUE(own.emplace(weight.name, weight.external.offset).second) << weight.name;
      }
    }
    EXPECT_EQ(offsets[0], offsets[1]);
    EXPECT_GE(offsets[0].size(), size_t{3} + 12 * kBlocks + 6 * (1 + kLevels)) << format.name();
  }
}

TEST(VisionGraphs, SameBytesEachTime) {
  const model::ModelConfig config = model::ModelConfig::load(QVL_SOURCE_DIR "/tests/fixtures/golden/model");
  const auto bytes = [&] {
    WeightPlan plan(config, [](const model::TensorSpec&) { return Format::floating(DType::kF32); });
    return vision_graph(plan, {}).serialize({.opset = 21});
  };
  EXPECT_EQ(bytes(), bytes());
}

TEST(VisionGraphs, RefusesGridsThatDoNotMerge) {
  for (const image::Grid& grid :
       {image::Grid{1, 3, 4}, image::Grid{1, 4, 5}, image::Grid{0, 4, 4}, image::Grid{1, 0, 4}}) {
    EXPECT_THROW(vision_graphs({.static_grid = grid}), Error) << grid.t << " " << grid.h << " " << grid.w;
  }
  EXPECT_THROW(vision_graphs({.opset = 16}), Error);
}

}  // namespace
}  // namespace qvl::exporting
