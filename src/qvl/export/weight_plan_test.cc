#include "qvl/export/weight_plan.h"

#include <gtest/gtest.h>

#include <set>

#include "qvl/base/error.h"
#include "qvl/package/graph_io.h"

namespace qvl::exporting {
namespace {

using model::PrecisionClass;
using model::TensorRole;
using quant::Format;

model::ModelConfig golden_config() {
  return model::ModelConfig::load(QVL_SOURCE_DIR "/tests/fixtures/golden/model");
}

FormatChooser all_matrices(Format format) {
  return [format](const model::TensorSpec& spec) {
    const bool matrix =
        spec.precision == PrecisionClass::kMatrix || spec.precision == PrecisionClass::kEmbedding;
    return matrix ? format : Format::floating(DType::kF32);
  };
}

// Every part of every tensor, in the order of their places.
std::vector<package::TensorPart> parts(const WeightPlan& plan) {
  std::vector<package::TensorPart> all;
  for (const StoredTensor* tensor : plan.tensors()) {
    all.push_back(tensor->data);
    for (const auto& part : {tensor->scales, tensor->zero_points}) {
      if (part) all.push_back(*part);
    }
  }
  return all;
}

TEST(WeightPlan, PlacesAreAlignedAndDoNotOverlap) {
  const model::ModelConfig config = golden_config();
  for (const char* name :
       {"f32", "bf16", "int4 b32", "int4 b64 zp", "int8 b128 zp bf16-scales", "int4 b32 i8-scales", "int8 row"}) {
    WeightPlan plan(config, all_matrices(quant::parse_format(name)));
    for (const model::TensorSpec& spec : model::tensor_table(config)) plan.store(spec.role, spec.layer);
    EXPECT_EQ(plan.tensors().size(), model::tensor_table(config).size());
    std::map<std::string, uint64_t> end;
    std::set<std::string> names;
    for (const package::TensorPart& part : parts(plan)) {
      EXPECT_EQ(part.offset % 64, 0u) << part.initializer;
      EXPECT_GE(part.offset, end[part.file]) << part.initializer;
      EXPECT_LT(part.offset, end[part.file] + 64)
          << part.initializer << ": no larger gap than alignment asks for";
      end[part.file] = part.offset + part.length;
      EXPECT_EQ(part.length, static_cast<uint64_t>(element_count(part.shape)) * dtype_size_bytes(part.dtype))
          << part.initializer;
      EXPECT_TRUE(names.insert(part.initializer).second) << part.initializer;
      const bool vision = part.initializer.starts_with("model.visual.");
      EXPECT_EQ(part.file, vision ? package::kVisionData : package::kTextData) << part.initializer;
    }
    EXPECT_EQ(plan.file_bytes(), end) << name;
  }
}

TEST(WeightPlan, PartsOfAFormat) {
  const model::ModelConfig config = golden_config();
  WeightPlan plan(config, all_matrices(quant::parse_format("int4 b64 zp bf16-scales")));
  const StoredTensor& down = plan.store(TensorRole::kTextDownWeight, 2);  // [64, 96]: one and a half blocks
  EXPECT_EQ(down.name, "model.language_model.layers.2.mlp.down_proj.weight");
  EXPECT_EQ(down.rows, 64);
  EXPECT_EQ(down.columns, 96);
  EXPECT_EQ(down.data.shape, (Shape{64, 2, 32}));
  EXPECT_EQ(down.data.dtype, DType::kU8);
  EXPECT_EQ(down.scales->initializer, down.name + ".scales");
  EXPECT_EQ(down.scales->dtype, DType::kBF16);
  EXPECT_EQ(down.scales->shape, (Shape{64, 2}));
  EXPECT_EQ(down.zero_points->shape, (Shape{64, 1}));
  EXPECT_EQ(&plan.store(TensorRole::kTextDownWeight, 2), &down) << "declared once";

  const StoredTensor& patch = plan.store(TensorRole::kPatchEmbedWeight);
  EXPECT_EQ(patch.rows, config.vision.hidden_size);
  EXPECT_EQ(patch.columns, 1536);
  const StoredTensor& norm = plan.store(TensorRole::kTextQNorm, 0);
  EXPECT_EQ(norm.rows, 1);
  EXPECT_EQ(norm.data.shape, (Shape{32}));
  EXPECT_FALSE(norm.scales.has_value());
}

TEST(WeightPlan, TiedHeadIsTheEmbedding) {
  model::ModelConfig config = golden_config();
  ASSERT_TRUE(config.tie_word_embeddings);
  WeightPlan tied(config, all_matrices(Format::row8()));
  EXPECT_EQ(&tied.head(), &tied.store(TensorRole::kTokenEmbedding));
  EXPECT_EQ(tied.tensors().size(), 1u);

  config.tie_word_embeddings = false;
  WeightPlan untied(config, all_matrices(Format::row8()));
  EXPECT_EQ(untied.head().name, "lm_head.weight");
  EXPECT_NE(&untied.head(), &untied.store(TensorRole::kTokenEmbedding));
}

TEST(WeightPlan, OnlyMatricesAreQuantised) {
  const model::ModelConfig config = golden_config();
  WeightPlan plan(config, [](const model::TensorSpec&) { return Format::blocks(4, 32); });
  for (const TensorRole role :
       {TensorRole::kTextFinalNorm, TensorRole::kVisionPosEmbed, TensorRole::kPatchEmbedBias}) {
    try {
      plan.store(role);
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(e.what()).find(model::tensor_name(role)), std::string::npos) << e.what();
    }
  }
  EXPECT_TRUE(plan.tensors().empty()) << "a refused tensor takes no place";
}

// Which operators a matrix becomes.
std::map<std::string, int64_t> operators(const char* format, bool plain, bool bias = false) {
  const model::ModelConfig config = golden_config();
  WeightPlan plan(config, all_matrices(quant::parse_format(format)));
  onnx::GraphBuilder g("linear");
  const onnx::Value x = g.input("x", DType::kF32, {"n", int64_t{96}});
  const StoredTensor* b = bias ? &plan.store(TensorRole::kVisionProjBias, 0) : nullptr;  // [64]
  g.output(linear(g, x, plan.store(TensorRole::kTextDownWeight, 0), b, {.accuracy_level = 4, .plain = plain}),
           DType::kF32, {"n", int64_t{64}});
  EXPECT_FALSE(g.serialize({}).empty());
  return g.operator_counts();
}

TEST(Linear, OperatorsFollowTheFormat) {
  using Counts = std::map<std::string, int64_t>;
  EXPECT_EQ(operators("f32", false), (Counts{{"Gemm", 1}}));
  EXPECT_EQ(operators("f32", false, true), (Counts{{"Gemm", 1}})) << "the bias belongs to the Gemm";
  EXPECT_EQ(operators("bf16", true), (Counts{{"Cast", 1}, {"Gemm", 1}}));
  EXPECT_EQ(operators("int4 b32", false, true), (Counts{{"com.microsoft.MatMulNBits", 1}}));
  EXPECT_EQ(operators("int4 b32 bf16-scales", false),
            (Counts{{"Cast", 1}, {"com.microsoft.MatMulNBits", 1}}));
  EXPECT_EQ(operators("int4 b32 i8-scales", false),
            (Counts{{"Slice", 2}, {"Cast", 2}, {"Pow", 1}, {"Mul", 1}, {"com.microsoft.MatMulNBits", 1}}));
  EXPECT_EQ(operators("int4 b32", true), (Counts{{"DequantizeLinear", 1}, {"Gemm", 1}}));
  EXPECT_EQ(operators("int8 b32 zp", true), (Counts{{"DequantizeLinear", 1}, {"Gemm", 1}}));
  EXPECT_EQ(operators("int4 b64", true), (Counts{{"DequantizeLinear", 1}, {"Slice", 1}, {"Gemm", 1}}))
      << "96 = 1.5 blocks";
  const Counts rows{
      {"DynamicQuantizeLinear", 1}, {"Transpose", 1}, {"MatMulInteger", 1}, {"Cast", 1}, {"Mul", 2}};
  EXPECT_EQ(operators("int8 row", false), rows);
  EXPECT_EQ(operators("int8 row", true), rows) << "standard operators already";
}

}  // namespace
}  // namespace qvl::exporting
