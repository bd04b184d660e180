// embedding.onnx: token ids to embeddings, visual placeholders replaced by features (spec 6.1, 10.2 "Masked
// scatter"). It reads the token embedding where the head has it: a tied matrix exists once.

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/export/graph_options.h"
#include "qvl/export/graphs.h"
#include "qvl/package/graph_io.h"
#include "qvl/quant/block_codec.h"

namespace qvl::exporting {
namespace {

using model::TensorRole;
using onnx::Dim;
using onnx::Dims;
using onnx::GraphBuilder;
using onnx::Value;

// Rows of 4-bit values, [B, S, bytes] uint8 to [B, S, 2 * bytes] float32; the low nibble is the even element.
Value unpacked_nibbles(GraphBuilder& g, const Value& bytes) {
  const std::byte four[] = {std::byte{4}};
  const Value shift = g.constant(DType::kU8, {}, four);
  const Value high = g.node("BitShift", {bytes, shift}, {{"direction", "RIGHT"}});
  const Value low = g.node("BitShift", {g.node("BitShift", {bytes, shift}, {{"direction", "LEFT"}}), shift},
                           {{"direction", "RIGHT"}});
  const Value pairs = g.concat({g.unsqueeze(low, {3}), g.unsqueeze(high, {3})}, 3);
  return g.cast(g.reshape(pairs, {0, 0, -1}), DType::kF32);
}

// Blocks with standard operators: the rows are gathered first, so that only they are unpacked. [B, S, padded
// width]
Value gathered_blocks(GraphBuilder& g, const StoredTensor& e, const Value& ids) {
  const quant::Format& f = e.format;
  const int64_t blocks = f.block_count(e.columns);
  const auto unpacked = [&](const Value& bytes) {
    return f.bits == 4 ? unpacked_nibbles(g, bytes) : g.cast(bytes, DType::kF32);
  };
  const Value data =
      g.weight(e.data.initializer, DType::kU8, {e.rows, blocks * f.block * f.bits / 8}, external(e.data));
  const Value q = g.reshape(unpacked(g.gather(data, ids)), {0, 0, blocks, f.block});
  Value zero = g.f32(f.bits == 4 ? 8.0f : 128.0f);
  if (f.zero_points) {
    zero = unpacked(g.gather(declare(g, *e.zero_points), ids));
    if (f.bits == 4 && blocks % 2 != 0) zero = g.slice(zero, 2, 0, blocks);
    zero = g.unsqueeze(zero, {3});
  }
  const Value scales = scales_f32(g, g.gather(declare(g, *e.scales), ids), e);
  return g.reshape(g.mul(g.sub(q, zero), g.unsqueeze(scales, {3})), {0, 0, -1});
}

// E[ids] in float32, [B, S, D].
Value embedded(GraphBuilder& g, const StoredTensor& e, const Value& ids, bool plain) {
  const quant::Format& f = e.format;
  switch (f.kind) {
    case quant::Kind::kFloat: {
      const Value rows = g.gather(declare(g, e.data), ids);
      return f.float_type == DType::kF32 ? rows : g.cast(rows, DType::kF32);
    }
    case quant::Kind::kRow8: {
      const auto zero = static_cast<float>(quant::default_zero_point(f));
      const Value rows = g.sub(g.cast(g.gather(declare(g, e.data), ids), DType::kF32), g.f32(zero));
      return g.mul(rows, g.unsqueeze(g.gather(declare(g, *e.scales), ids), {2}));
    }
    case quant::Kind::kBlock:
      break;
  }
  const int64_t padded = f.block_count(e.columns) * f.block;
  Value rows;
  if (plain) {
    rows = gathered_blocks(g, e, ids);
  } else {
    // The bytes of MatMulNBits' B, seen as [V, bytes of a row].
    const Value data =
        g.weight(e.data.initializer, DType::kU8, {e.rows, padded * f.bits / 8}, external(e.data));
    const Value scales = scales_f32(g, declare(g, *e.scales), e);
    const Value zero_points = f.zero_points ? declare(g, *e.zero_points) : Value{};
    rows = g.node("GatherBlockQuantized", {data, ids, scales, zero_points},
                  {{"bits", int64_t{f.bits}},
                   {"block_size", f.block},
                   {"gather_axis", int64_t{0}},
                   {"quantize_axis", int64_t{1}}},
                  onnx::kContribDomain);
  }
  return padded == e.columns ? rows : g.slice(rows, 2, 0, e.columns);
}

}  // namespace

onnx::GraphBuilder embedding_graph(WeightPlan& plan, const GraphOptions& options) {
  check_options(options, plan.config());
  const model::ModelConfig& config = plan.config();
  const int64_t width = config.text.hidden_size;
  const int64_t levels = config.vision.deepstack_levels();
  const bool genai = options.layout == Layout::kGenai;
  const bool fixed = options.static_sequence > 0;
  const int64_t feature_width = genai ? (1 + levels) * width : width;

  GraphBuilder g("embedding");
  const Dims token_dims = fixed ? Dims{int64_t{1}, options.static_sequence} : Dims{"batch", "sequence"};
  const Dim feature_rows = fixed ? Dim{options.static_sequence} : Dim{"features"};
  const Value ids = g.input(package::kInputIds, DType::kI64, token_dims);
  std::vector<Value> features{g.input(package::kImageFeatures, DType::kF32, {feature_rows, feature_width})};
  for (int64_t j = 0; j < levels && !genai; ++j) {
    features.push_back(
        g.input(package::deepstack_features_name(static_cast<int>(j)), DType::kF32, {feature_rows, width}));
  }

  Value text;
  {
    const GraphBuilder::Scope scope(g, "text");
    text = embedded(g, plan.store(TensorRole::kTokenEmbedding), ids, options.linear.plain);
  }

  // Which feature row stands where; text reads a row of zeros behind the last one.
  Value visual, row, count;
  {
    const GraphBuilder::Scope scope(g, "placeholders");
    visual = g.node("Or", {g.node("Equal", {ids, g.i64(config.image_token_id)}),
                           g.node("Equal", {ids, g.i64(config.video_token_id)})});
    const Value flat = g.reshape(g.cast(visual, DType::kI64), {-1});
    const Value running = g.node("CumSum", {flat, g.i64(0)});
    const Value index = g.node("Reshape", {g.sub(running, g.i64(1)), g.node("Shape", {ids})});
    count = fixed ? g.i64s({options.static_sequence})
                  : g.node("ReduceSum", {flat, g.i64s({0})}, {{"keepdims", int64_t{1}}});
    row = g.node("Where", {visual, index, count});
  }
  // [rows, w] -> [B, S, w]; the Reshape copies nothing and refuses another number of rows than placeholders.
  const auto placed = [&](const Value& table, int64_t row_width) {
    const Value exact = fixed ? table
                              : g.node("Reshape", {table, g.concat({count, g.i64s({row_width})}, 0)},
                                       {{"allowzero", int64_t{1}}});
    const std::vector<float> zeros(static_cast<size_t>(row_width), 0.0f);
    return g.gather(g.concat({exact, g.f32s(zeros, {1, row_width})}, 0), row);
  };
  const auto replaced = [&](const Value& by, std::string out) {
    return g.node("Where", {g.unsqueeze(visual, {2}), by, text}, {}, onnx::kStandardDomain, std::move(out));
  };

  Dims embed_dims = token_dims;
  embed_dims.push_back(feature_width);
  if (genai && levels > 0) {
    const GraphBuilder::Scope scope(g, "features");
    const Value all = placed(features[0], feature_width);
    const std::vector<Value> parts =
        g.nodes("Split", {all, g.i64s({width, levels * width})}, 2, {{"axis", int64_t{2}}});
    g.output(g.node("Concat", {replaced(parts[0], {}), parts[1]}, {{"axis", int64_t{2}}},
                    onnx::kStandardDomain, package::kInputsEmbeds),
             DType::kF32, embed_dims);
    return g;
  }
  const GraphBuilder::Scope scope(g, "features");
  g.output(replaced(placed(features[0], width), package::kInputsEmbeds), DType::kF32, embed_dims);
  if (levels > 0) {
    std::vector<Value> planes;
    for (int64_t j = 0; j < levels; ++j) planes.push_back(g.unsqueeze(placed(features[1 + j], width), {0}));
    Dims dims{levels};
    dims.insert(dims.end(), embed_dims.begin(), embed_dims.end());
    g.output(
        g.node("Concat", planes, {{"axis", int64_t{0}}}, onnx::kStandardDomain, package::kDeepstackEmbeds),
        DType::kF32, dims);
  }
  return g;
}

}  // namespace qvl::exporting
