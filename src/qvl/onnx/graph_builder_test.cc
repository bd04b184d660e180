#include "qvl/onnx/graph_builder.h"

#include <gtest/gtest.h>

#include <limits>

#include "qvl/base/error.h"
#include "qvl/onnx/proto.h"

namespace qvl::onnx {
namespace {

// Runs `body` and returns the error; fails the test when there is none.
template <typename F>
Error error_of(F body) {
  try {
    body();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "no error";
  return Error(ErrorCode::kIo, "none");
}

::onnx::ModelProto parsed(const GraphBuilder& graph, const ModelInfo& info = {}) {
  const std::string bytes = graph.serialize(info);
  ::onnx::ModelProto model;
  EXPECT_TRUE(model.ParseFromString(bytes));
  return model;
}

GraphBuilder example() {
  GraphBuilder g("example");
  const Value x = g.input("x", DType::kF32, {"batch", int64_t{4}});
  const Value w = g.weight("w", DType::kBF16, {3, 4}, {"text.data", 64, 24});
  Value y;
  {
    const GraphBuilder::Scope outer(g, "layer0");
    const GraphBuilder::Scope inner(g, "mlp");
    y = g.node("Gemm", {x, g.cast(w, DType::kF32), {}}, {{"transB", int64_t{1}}});
    y = g.add(y, g.f32(1.5f));
    y = g.add(y, g.f32(1.5f));
  }
  const std::vector<Value> made =
      g.nodes("SkipSimplifiedLayerNormalization", {y, y, g.f32s(std::vector<float>{1, 2, 3}, {3})},
              std::vector<Output>{{}, {.omitted = true}, {.omitted = true}, {.name = "sum"}},
              {{"epsilon", 1e-6f}}, kContribDomain);
  g.output(made[0], DType::kF32, {"batch", int64_t{3}});
  g.output(made[3], DType::kF32, {"batch", int64_t{3}});
  return g;
}

TEST(GraphBuilder, WritesWhatTheFormatAsksFor) {
  const ::onnx::ModelProto model =
      parsed(example(),
             {.opset = 19, .ir_version = 9, .producer_version = "0.1", .metadata = {{"b", "2"}, {"a", "1"}}});
  EXPECT_EQ(model.ir_version(), 9);
  EXPECT_EQ(model.producer_name(), "qvl");
  EXPECT_EQ(model.producer_version(), "0.1");
  ASSERT_EQ(model.opset_import_size(), 2);
  EXPECT_EQ(model.opset_import(0).domain(), "");
  EXPECT_EQ(model.opset_import(0).version(), 19);
  EXPECT_EQ(model.opset_import(1).domain(), "com.microsoft");
  EXPECT_EQ(model.opset_import(1).version(), 1);
  ASSERT_EQ(model.metadata_props_size(), 2);
  EXPECT_EQ(model.metadata_props(0).key(), "a");

  const ::onnx::GraphProto& graph = model.graph();
  ASSERT_EQ(graph.input_size(), 1);
  const auto& shape = graph.input(0).type().tensor_type().shape();
  EXPECT_EQ(shape.dim(0).dim_param(), "batch");
  EXPECT_EQ(shape.dim(1).dim_value(), 4);

  // 1.5 stands once, beside the norm's weight and the external one.
  ASSERT_EQ(graph.initializer_size(), 3);
  const ::onnx::TensorProto& w = graph.initializer(0);
  EXPECT_EQ(w.data_type(), ::onnx::TensorProto::BFLOAT16);
  EXPECT_EQ(w.data_location(), ::onnx::TensorProto::EXTERNAL);
  ASSERT_EQ(w.external_data_size(), 3);
  EXPECT_EQ(w.external_data(0).value(), "text.data");
  EXPECT_EQ(w.external_data(1).value(), "64");
  EXPECT_EQ(w.external_data(2).value(), "24");
  EXPECT_EQ(graph.initializer(1).raw_data(), std::string("\0\0\xc0\x3f", 4));

  ASSERT_EQ(graph.node_size(), 5);
  EXPECT_EQ(graph.node(0).output(0), "layer0/mlp/Cast");
  EXPECT_EQ(graph.node(1).input_size(), 2) << "a left-out input at the end is not written";
  EXPECT_EQ(graph.node(2).output(0), "layer0/mlp/Add");
  EXPECT_EQ(graph.node(3).output(0), "layer0/mlp/Add_1");
  const ::onnx::NodeProto& norm = graph.node(4);
  EXPECT_EQ(norm.domain(), "com.microsoft");
  ASSERT_EQ(norm.output_size(), 4);
  EXPECT_EQ(norm.output(0), "SkipSimplifiedLayerNormalization");
  EXPECT_EQ(norm.output(1), "");
  EXPECT_EQ(norm.output(3), "sum");
  EXPECT_EQ(norm.attribute(0).f(), 1e-6f);
  EXPECT_EQ(
      example().operator_counts(),
      (std::map<std::string, int64_t>{
          {"Add", 2}, {"Cast", 1}, {"Gemm", 1}, {"com.microsoft.SkipSimplifiedLayerNormalization", 1}}));
}

TEST(GraphBuilder, SameCallsSameBytes) {
  EXPECT_EQ(example().serialize({}), example().serialize({}));
}

TEST(GraphBuilder, ConstantsOfAllKinds) {
  GraphBuilder g("constants");
  EXPECT_EQ(g.i64(7).name, g.i64(7).name);
  EXPECT_NE(g.i64(7).name, g.i64s({7}).name) << "scalar and vector differ";
  EXPECT_NE(g.i64(0).name, g.i32(0).name);
  // -0 and 0 are equal numbers and different constants.
  EXPECT_NE(g.f32(0.0f).name, g.f32(-0.0f).name);
  EXPECT_EQ(g.f32(std::numeric_limits<float>::quiet_NaN()).name,
            g.f32(std::numeric_limits<float>::quiet_NaN()).name);
  const std::vector<std::byte> three(2, std::byte{0x88});
  const Value nibbles = g.constant_uint4({3}, three);
  const ::onnx::ModelProto model = parsed(g);
  const auto& last = model.graph().initializer(model.graph().initializer_size() - 1);
  EXPECT_EQ(last.name(), nibbles.name);
  EXPECT_EQ(last.data_type(), kUint4);
  EXPECT_EQ(error_of([&] { g.constant(DType::kF32, {2}, three); }).code(), ErrorCode::kInvalidArgument);
}

TEST(GraphBuilder, WeightsAreDeclaredOnce) {
  GraphBuilder g("weights");
  const ExternalData place{"text.data", 0, 16};
  EXPECT_EQ(g.weight("w", DType::kF32, {4}, place).name, "w");
  EXPECT_EQ(g.weight("w", DType::kF32, {4}, place).name, "w");
  EXPECT_EQ(parsed(g).graph().initializer_size(), 1);
  EXPECT_EQ(error_of([&] { g.weight("w", DType::kF32, {2, 2}, place); }).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] {
              g.weight("w", DType::kF32, {4}, {"text.data", 16, 16});
            }).code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] { g.weight("v", DType::kF32, {5}, place); }).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] {
              g.weight("v", DType::kF32, {4}, {"../text.data", 0, 16});
            }).code(),
            ErrorCode::kInvalidArgument);
  g.input("x", DType::kF32, {});
  EXPECT_EQ(error_of([&] { g.weight("x", DType::kF32, {4}, place); }).code(), ErrorCode::kInvalidArgument);
}

TEST(GraphBuilder, NamesAreTakenOnce) {
  GraphBuilder g("names");
  const Value x = g.input("x", DType::kF32, {});
  EXPECT_EQ(error_of([&] { g.input("x", DType::kF32, {}); }).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] { g.input("", DType::kF32, {}); }).code(), ErrorCode::kInvalidArgument);
  // A generated name steps aside for a given one.
  g.node("Abs", {x}, {}, kStandardDomain, "Neg");
  EXPECT_EQ(g.node("Neg", {x}).name, "Neg_1");
  EXPECT_EQ(error_of([&] { g.node("Neg", {x}, {}, kStandardDomain, "x"); }).code(),
            ErrorCode::kInvalidArgument);
  g.output(x, DType::kF32, {});
  EXPECT_EQ(error_of([&] { g.output(x, DType::kF32, {}); }).code(), ErrorCode::kInvalidArgument);
}

TEST(GraphBuilder, RefusesWhatNothingDefines) {
  GraphBuilder g("undefined");
  g.input("x", DType::kF32, {});
  g.node("Add", {{"x"}, {"ghost"}});
  const Error error = error_of([&] { g.serialize({}); });
  EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(std::string(error.what()).find("'ghost'"), std::string::npos) << error.what();

  GraphBuilder h("output");
  h.output({"ghost"}, DType::kF32, {});
  EXPECT_EQ(error_of([&] { h.serialize({}); }).code(), ErrorCode::kInvalidArgument);
}

TEST(GraphBuilder, BodiesSeeTheGraphAroundThem) {
  GraphBuilder g("outer");
  const Value x = g.input("x", DType::kF32, {int64_t{2}});
  const Value one = g.f32(1.0f);
  const auto loop = [&] {
    GraphBuilder body = g.body("step");
    body.input("i", DType::kI64, {});
    const Value go = body.input("go", DType::kBool, {});
    const Value sum = body.input("sum", DType::kF32, {int64_t{2}});
    const Value w = body.weight("w", DType::kF32, {2}, {"d", 0, 8});
    body.output(body.node("Identity", {go}), DType::kBool, {});
    body.output(body.add(body.add(sum, one), body.mul(w, body.f32(2.0f))), DType::kF32, {int64_t{2}});
    return g.control("Loop", {g.i64(3), {}, x}, 1, {{"body", &body}})[0];
  };
  g.output(loop(), DType::kF32, {int64_t{2}});
  g.output(loop(), DType::kF32, {int64_t{2}});  // bodies beside each other may use the same names
  const ::onnx::ModelProto model = parsed(g);
  EXPECT_EQ(model.graph().node_size(), 2);
  ASSERT_TRUE(model.graph().node(0).attribute(0).has_g());
  // Weights belong to the outermost graph, constants to the body.
  EXPECT_EQ(model.graph().node(0).attribute(0).g().initializer_size(), 1);
  EXPECT_EQ(g.operator_counts().at("Add"), 4);

  // A graph that is not one of ours may hide names: refused.
  GraphBuilder stranger("stranger");
  stranger.output(stranger.input("x", DType::kF32, {}), DType::kF32, {});
  EXPECT_EQ(error_of([&] {
              g.control("If", {one}, 1, {{"then_branch", &stranger}});
            }).code(),
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace qvl::onnx
