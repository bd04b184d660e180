// Embedding and decoder graph without running them: names, shapes, operators, refusals. What they compute is
// held against the goldens by tests/onnx/check_graphs.py.

#include <gtest/gtest.h>

#include "qvl/base/error.h"
#include "qvl/export/graphs.h"
#include "qvl/onnx/model_file.h"
#include "qvl/package/graph_io.h"

namespace qvl::exporting {
namespace {

using quant::Format;

struct Graphs {
  onnx::ModelFile embedding, decoder;
};

Graphs text_graphs(const GraphOptions& options, Format format = Format::floating(DType::kF32),
                   bool attention_bias = false) {
  model::ModelConfig config = model::ModelConfig::load(QVL_SOURCE_DIR "/tests/fixtures/golden/model");
  config.text.attention_bias = attention_bias;
  WeightPlan plan(config, [&](const model::TensorSpec& spec) {
    const bool matrix = spec.precision == model::PrecisionClass::kMatrix ||
                        spec.precision == model::PrecisionClass::kEmbedding;
    return matrix ? format : Format::floating(DType::kF32);
  });
  const onnx::ModelInfo info{.opset = options.opset};
  Graphs graphs;
  graphs.embedding = onnx::ModelFile::parse(embedding_graph(plan, options).serialize(info), "embedding.onnx");
  graphs.decoder = onnx::ModelFile::parse(decoder_graph(plan, options).serialize(info), "decoder.onnx");
  return graphs;
}

std::map<std::string, std::string> described(const std::vector<onnx::ValueInfo>& values) {
  std::map<std::string, std::string> all;
  for (const onnx::ValueInfo& v : values) all[v.name] = v.describe();
  return all;
}

TEST(TextGraphs, InterfaceOfGraphIo) {
  const Graphs graphs = text_graphs({});
  EXPECT_EQ(described(graphs.embedding.inputs),
            (std::map<std::string, std::string>{{"input_ids", "I64 [batch, sequence]"},
                                                {"image_features", "F32 [features, 64]"},
                                                {"deepstack_features.0", "F32 [features, 64]"},
                                                {"deepstack_features.1", "F32 [features, 64]"},
                                                {"deepstack_features.2", "F32 [features, 64]"}}));
  EXPECT_EQ(described(graphs.embedding.outputs),
            (std::map<std::string, std::string>{{"inputs_embeds", "F32 [batch, sequence, 64]"},
                                                {"deepstack_embeds", "F32 [3, batch, sequence, 64]"}}));
  const auto inputs = described(graphs.decoder.inputs);
  EXPECT_EQ(inputs.size(), 5u + 2 * 4);
  EXPECT_EQ(inputs.at("position_ids"), "I64 [3, batch, sequence]");
  EXPECT_EQ(inputs.at("attention_mask"), "I64 [batch, total]");
  EXPECT_EQ(inputs.at("num_logits_to_keep"), "I64 [1]");
  EXPECT_EQ(inputs.at("past_key_values.3.value"), "F32 [batch, 2, past, 32]");
  const auto outputs = described(graphs.decoder.outputs);
  EXPECT_EQ(outputs.size(), 1u + 2 * 4);
  EXPECT_EQ(outputs.at("logits"), "F32 [batch, kept, 512]");
  EXPECT_EQ(outputs.at("present.0.key"), "F32 [batch, 2, cache, 32]");
}

TEST(TextGraphs, GenaiCarriesDeepStackInTheEmbeddings) {
  const Graphs graphs = text_graphs({.layout = Layout::kGenai});
  EXPECT_EQ(described(graphs.embedding.inputs),
            (std::map<std::string, std::string>{{"input_ids", "I64 [batch, sequence]"},
                                                {"image_features", "F32 [features, 256]"}}));
  EXPECT_EQ(described(graphs.embedding.outputs),
            (std::map<std::string, std::string>{{"inputs_embeds", "F32 [batch, sequence, 256]"}}));
  const auto inputs = described(graphs.decoder.inputs);
  EXPECT_FALSE(inputs.contains("deepstack_embeds"));
  EXPECT_FALSE(inputs.contains("num_logits_to_keep"));
  EXPECT_EQ(inputs.at("inputs_embeds"), "F32 [batch, sequence, 256]");
  EXPECT_EQ(described(graphs.decoder.outputs).at("logits"), "F32 [batch, 1, 512]");
  EXPECT_EQ(
      described(text_graphs({.layout = Layout::kGenai, .all_logits = true}).decoder.outputs).at("logits"),
      "F32 [batch, sequence, 512]");
}

TEST(TextGraphs, StaticHasNoFreeDimension) {
  for (const bool plain : {false, true}) {
    const Graphs graphs =
        text_graphs({.linear = {.plain = plain}, .static_sequence = 8, .static_context = 40});
    for (const auto* values : {&graphs.embedding.inputs, &graphs.embedding.outputs, &graphs.decoder.inputs,
                               &graphs.decoder.outputs}) {
      for (const onnx::ValueInfo& v : *values) {
        for (const onnx::Dim& d : v.dims)
          EXPECT_TRUE(std::holds_alternative<int64_t>(d)) << v.name << " " << v.describe();
      }
    }
    const auto inputs = described(graphs.decoder.inputs);
    EXPECT_EQ(inputs.at("past_key_values.0.key"), "F32 [1, 2, 32, 32]");
    EXPECT_EQ(inputs.at("attention_mask"), "I64 [1, 40]");
    EXPECT_FALSE(inputs.contains("num_logits_to_keep"));
    EXPECT_FALSE(graphs.decoder.operators.contains("Shape")) << "sizes are constants";
  }
}

TEST(TextGraphs, FusedAndPlainOperators) {
  const auto fused = text_graphs({}, Format::blocks(4, 32)).decoder.operators;
  EXPECT_EQ(fused.at("com.microsoft.GroupQueryAttention"), 4);
  EXPECT_EQ(fused.at("com.microsoft.SkipSimplifiedLayerNormalization"), 8);
  EXPECT_EQ(fused.at("com.microsoft.MatMulNBits"), 4 * 7 + 1);
  EXPECT_EQ(fused.at("com.microsoft.RotaryEmbedding"), 8);
  EXPECT_EQ(text_graphs({.opset = 23}).decoder.operators.at("RMSNormalization"), 1 + 2 * 4);

  const Graphs plain = text_graphs({.linear = {.plain = true}}, Format::blocks(4, 32));
  for (const auto* operators : {&plain.embedding.operators, &plain.decoder.operators}) {
    for (const auto& [name, count] : *operators) EXPECT_FALSE(name.starts_with("com.microsoft")) << name;
  }
  EXPECT_EQ(plain.embedding.opsets.size(), 1u);
}

TEST(TextGraphs, TiedMatrixIsOnePlaceForBothGraphs) {
  for (const Format format : {Format::floating(DType::kBF16), Format::blocks(4, 32, true), Format::row8()}) {
    const Graphs graphs = text_graphs({}, format);
    const auto place = [](const onnx::ModelFile& file) {
      for (const onnx::Initializer& i : file.initializers) {
        if (i.name == "model.language_model.embed_tokens.weight")
          return std::pair(i.external.offset, i.external.length);
      }
      return std::pair(uint64_t{1}, uint64_t{0});
    };
    EXPECT_EQ(place(graphs.embedding), place(graphs.decoder)) << format.name();
    EXPECT_GT(place(graphs.embedding).second, 0u) << format.name();
  }
}

TEST(TextGraphs, AttentionBiasesAreRead) {
  const Graphs graphs = text_graphs({}, Format::floating(DType::kF32), true);
  int found = 0;
  for (const onnx::Initializer& i : graphs.decoder.initializers) found += i.name.ends_with("_proj.bias");
  EXPECT_EQ(found, 4 * 4);
}

TEST(TextGraphs, RefusesOptionsThatCannotBe) {
  const auto code = [](const GraphOptions& options, Format format = Format::floating(DType::kF32)) {
    try {
      text_graphs(options, format);
    } catch (const Error& e) {
      return e.code();
    }
    ADD_FAILURE() << "no error";
    return ErrorCode::kIo;
  };
  EXPECT_EQ(code({.opset = 16}), ErrorCode::kUnsupported);
  EXPECT_EQ(code({.opset = 99}), ErrorCode::kUnsupported);
  EXPECT_EQ(code({.static_sequence = 8}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.static_context = 8}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.static_sequence = 9, .static_context = 8}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.static_sequence = -1, .static_context = -1}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.static_sequence = 8, .static_context = int64_t{1} << 40}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.layout = Layout::kGenai, .static_sequence = 8, .static_context = 40}),
            ErrorCode::kUnsupported);
  EXPECT_EQ(code({.linear = {.plain = true}, .opset = 20}, Format::blocks(4, 32)), ErrorCode::kUnsupported);
  EXPECT_NO_THROW(text_graphs({.opset = 17}, Format::blocks(4, 32)));
  EXPECT_NO_THROW(text_graphs({.linear = {.plain = true}, .opset = 17}, Format::row8()));
}

}  // namespace
}  // namespace qvl::exporting
