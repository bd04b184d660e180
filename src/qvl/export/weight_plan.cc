// Places of tensors in the data files, and the operators that read them (spec 10). See the header.

#include "qvl/export/weight_plan.h"

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/package/graph_io.h"
#include "qvl/quant/block_codec.h"
#include "qvl/quant/shortlist.h"

namespace qvl::exporting {
namespace {

using model::PrecisionClass;
using model::TensorRole;
using onnx::GraphBuilder;
using onnx::Value;

bool is_matrix(PrecisionClass precision) {
  return precision == PrecisionClass::kMatrix || precision == PrecisionClass::kEmbedding;
}

// Value of every zero point that is not stored (quant/format.h), for DequantizeLinear, whose own default is
// 0.
Value default_zero_points(GraphBuilder& graph, int bits, const Shape& shape) {
  const uint64_t count = static_cast<uint64_t>(element_count(shape));
  if (bits == 4) return graph.constant_uint4(shape, std::vector<std::byte>((count + 1) / 2, std::byte{0x88}));
  return graph.constant(DType::kU8, shape, std::vector<std::byte>(count, std::byte{0x80}));
}

// Of a weight.
Value as_f32(const GraphBuilder& graph, Value value, DType stored) {
  return stored == DType::kF32 ? value : graph.outermost().cast(std::move(value), DType::kF32);
}

// All of a weight, computed once however often a graph's body runs.
Value stored_scales_f32(const GraphBuilder& user, const StoredTensor& w) {
  GraphBuilder graph = user.outermost();
  return scales_f32(graph, declare(graph, *w.scales), w);
}

// Blocks through DequantizeLinear (opset 21): [N, K] in float32.
Value dequantized_blocks(const GraphBuilder& user, const StoredTensor& w) {
  GraphBuilder graph = user.outermost();
  const quant::Format& format = w.format;
  const int64_t blocks = format.block_count(w.columns);
  const int64_t padded = blocks * format.block;
  Value zero_points;
  if (!format.zero_points) {
    zero_points = default_zero_points(graph, format.bits, {w.rows, blocks});
  } else if (format.bits == 8) {
    zero_points = declare(graph, *w.zero_points);
  } else if (blocks % 2 == 0) {
    zero_points = graph.weight_uint4(w.zero_points->initializer, {w.rows, blocks}, external(*w.zero_points));
  } else {
    // A row of nibbles ends with an unused one.
    const Value all =
        graph.weight_uint4(w.zero_points->initializer, {w.rows, blocks + 1}, external(*w.zero_points));
    const Value cut = graph.slice(graph.cast(all, DType::kI32), 1, 0, blocks);  // Slice knows no UINT4
    zero_points = graph.node("Cast", {cut}, {{"to", onnx::kUint4}});
  }
  const Value data = format.bits == 4
                         ? graph.weight_uint4(w.data.initializer, {w.rows, padded}, external(w.data))
                         : graph.weight(w.data.initializer, DType::kU8, {w.rows, padded}, external(w.data));
  const Value scales = stored_scales_f32(graph, w);
  Value floats = graph.node("DequantizeLinear", {data, scales, zero_points},
                            {{"axis", int64_t{1}}, {"block_size", format.block}});
  if (padded != w.columns) floats = graph.slice(floats, 1, 0, w.columns);
  return floats;
}

Value gemm(GraphBuilder& graph, Value x, Value w, Value bias) {
  return graph.node("Gemm", {std::move(x), std::move(w), std::move(bias)}, {{"transB", int64_t{1}}});
}

Value row8_zero_point(GraphBuilder& graph) {
  const auto zero = static_cast<std::byte>(quant::default_zero_point(quant::Format::row8()));
  return graph.constant(DType::kU8, {}, std::span(&zero, 1));
}

// The activations are quantised per call, unsigned with a zero point; ONNX Runtime fuses the whole chain. The weights
// are unsigned as well: uint8 times int8 saturates there on processors without VNNI.
Value integer_linear(GraphBuilder& graph, Value x, const StoredTensor& w, Value bias) {
  const std::vector<Value> quantized = graph.nodes("DynamicQuantizeLinear", {std::move(x)}, 3);
  const Value transposed = graph.outermost().transpose(declare(graph, w.data), {1, 0});
  const Value sums = graph.node("MatMulInteger", {quantized[0], transposed, quantized[2], row8_zero_point(graph)});
  const Value scale = graph.mul(quantized[1], declare(graph, *w.scales));
  const Value y = graph.mul(graph.cast(sums, DType::kF32), scale);
  return bias ? graph.add(y, bias) : y;
}

}  // namespace

WeightPlan::WeightPlan(const model::ModelConfig& config, FormatChooser chooser)
    : config_(config), chooser_(std::move(chooser)) {}

const StoredTensor& WeightPlan::store(TensorRole role, int layer) {
  const std::pair key(role, layer);
  if (const auto found = stored_.find(key); found != stored_.end()) return found->second;

  const model::TensorSpec spec{model::tensor_name(role, layer), role, layer,
                               model::tensor_shape(config_, role), model::precision_class(role)};
  StoredTensor tensor;
  tensor.name = spec.name;
  tensor.role = role;
  tensor.layer = layer;
  tensor.format = chooser_(spec);
  tensor.format.validate();
  if (tensor.format.kind != quant::Kind::kFloat && !is_matrix(spec.precision)) {
    fail(ErrorCode::kInvalidArgument, spec.name, "format of a tensor that is no weight matrix",
         "f32, bf16 or f16", tensor.format.name());
  }
  const bool vector = spec.shape.size() == 1;
  tensor.rows = vector ? 1 : spec.shape[0];
  tensor.columns = element_count(spec.shape) / tensor.rows;

  place(tensor, vector);
  const StoredTensor& kept = stored_.emplace(key, std::move(tensor)).first->second;
  order_.push_back(&kept);
  return kept;
}

package::TensorPart WeightPlan::place_part(const char* file, std::string initializer, DType type, Shape shape, uint64_t length) {
  uint64_t& end = file_bytes_[file];
  const uint64_t offset = (end + package::kPartAlignmentBytes - 1) / package::kPartAlignmentBytes * package::kPartAlignmentBytes;
  end = offset + length;
  return {std::move(initializer), file, offset, length, type, std::move(shape)};
}

void WeightPlan::place(StoredTensor& tensor, bool vector) {
  const char* const file = model::is_vision_role(tensor.role) ? package::kVisionData : package::kTextData;
  const auto part = [&](std::string initializer, DType type, Shape shape, uint64_t length) {
    return place_part(file, std::move(initializer), type, std::move(shape), length);
  };
  const quant::Format& f = tensor.format;
  const int64_t rows = tensor.rows, columns = tensor.columns, blocks = f.block_count(columns);
  const std::string scales = tensor.name + ".scales";
  const uint64_t data_bytes = f.data_bytes(rows, columns), scale_bytes = f.scale_bytes(rows, columns);
  switch (f.kind) {
    case quant::Kind::kFloat:
      tensor.data = part(tensor.name, f.float_type, vector ? Shape{columns} : Shape{rows, columns}, data_bytes);
      break;
    case quant::Kind::kBlock:
      tensor.data = part(tensor.name, DType::kU8, {rows, blocks, f.block * f.bits / 8}, data_bytes);
      tensor.scales = part(scales, f.scale_type, {rows, f.scale_count(columns)}, scale_bytes);
      if (f.zero_points) {
        tensor.zero_points = part(tensor.name + ".zero_points", DType::kU8, {rows, (blocks * f.bits + 7) / 8},
                                  f.zero_point_bytes(rows, columns));
      }
      break;
    case quant::Kind::kRow8:
      tensor.data = part(tensor.name, DType::kU8, {rows, columns}, data_bytes);
      tensor.scales = part(scales, DType::kF32, {rows}, scale_bytes);
      break;
  }
}

const StoredTensor& WeightPlan::head() {
  return store(model::head_role(config_.tie_word_embeddings));
}

const package::ShortlistEntry& WeightPlan::store_head_shortlist() {
  const StoredTensor& whole = head();
  const int64_t rows = whole.rows, blocks = quant::shortlist_blocks(whole.columns);
  const quant::ShortlistBytes bytes = quant::shortlist_bytes(rows, whole.columns);
  const auto part = [&](const char* name, DType type, Shape shape, uint64_t length) {
    return place_part(package::kTextData, std::string(kShortlistName) + "." + name, type, std::move(shape), length);
  };
  package::ShortlistEntry entry{.rows = rows, .columns = whole.columns, .coarse = {}, .fine = {}, .scales = {}};
  const int64_t groups = (rows + quant::kShortlistGroup - 1) / quant::kShortlistGroup;
  entry.coarse = part("coarse", DType::kU8, {groups, blocks, quant::kShortlistCoarseBytes}, bytes.coarse);
  entry.scales = part("scales", DType::kBF16, {groups, blocks, quant::kShortlistGroup}, bytes.scales);
  entry.fine = part("fine", DType::kU8, {rows, quant::shortlist_fine_bytes(whole.columns)}, bytes.fine);
  return head_shortlist_.emplace(std::move(entry));
}

onnx::ExternalData external(const package::TensorPart& part) {
  return {part.file, part.offset, part.length};
}

Value declare(GraphBuilder& graph, const package::TensorPart& part) {
  return graph.weight(part.initializer, part.dtype, part.shape, external(part));
}

Value scales_f32(GraphBuilder& graph, Value stored, const StoredTensor& weight) {
  const quant::Format& f = weight.format;
  if (f.scale_type == DType::kF32) return stored;
  if (f.scale_type != DType::kI8) return graph.cast(std::move(stored), DType::kF32);
  // Cut before they become floats: a runtime that folds all this holds everything in between meanwhile.
  const auto part = [&](int64_t begin, int64_t end) { return graph.cast(graph.slice(stored, -1, begin, end), DType::kF32); };
  const Value exponents = part(0, 1), codes = part(1, f.scale_count(weight.columns));
  return graph.mul(codes, graph.node("Pow", {graph.f32(2), exponents}));
}

Value linear(GraphBuilder& graph, Value x, const StoredTensor& weight, const StoredTensor* bias,
             const LinearOptions& options) {
  const Value b = bias != nullptr ? dense(graph, *bias) : Value{};
  switch (weight.format.kind) {
    case quant::Kind::kFloat:
      return gemm(graph, std::move(x), dense(graph, weight), b);
    case quant::Kind::kRow8:
      return integer_linear(graph, std::move(x), weight, b);
    case quant::Kind::kBlock:
      break;
  }
  if (options.plain) return gemm(graph, std::move(x), dequantized_blocks(graph, weight), b);
  const Value data = declare(graph, weight.data);
  const Value scales = stored_scales_f32(graph, weight);
  const Value zero_points = weight.zero_points ? declare(graph, *weight.zero_points) : Value{};
  return graph.node("MatMulNBits", {std::move(x), data, scales, zero_points, {}, b},
                    {{"K", weight.columns},
                     {"N", weight.rows},
                     {"bits", int64_t{weight.format.bits}},
                     {"block_size", weight.format.block},
                     {"accuracy_level", int64_t{options.accuracy_level}}},
                    onnx::kContribDomain);
}

Value dense(GraphBuilder& graph, const StoredTensor& tensor) {
  if (tensor.format.kind != quant::Kind::kFloat) {
    fail(ErrorCode::kInvalidArgument, tensor.name, "format of a tensor that the graph reads as floats",
         "f32, bf16 or f16", tensor.format.name());
  }
  return as_f32(graph, declare(graph, tensor.data), tensor.data.dtype);
}

}  // namespace qvl::exporting
