// Positions of patches in the vision graphs (spec 5.2, 5.3). See the header.

#include "qvl/export/vision_positions.h"

#include <array>
#include <span>
#include <utility>
#include <vector>

#include "qvl/model/positions.h"

namespace qvl::exporting {
namespace {

using onnx::GraphBuilder;
using onnx::Value;

constexpr double kVisionTheta = 10000.0;  // spec 5.3; no key of the configuration

// One axis of the interpolation: position `p` of `n` falls between the table's lines `low` and `high`.
struct Axis {
  Value low, high;       // i64 [n]
  Value near, distance;  // f32 [n], 1 - d and d
};

Axis interpolate(GraphBuilder& g, const Value& p, const Value& p_f32, const Value& n, int64_t side) {
  const Value one = g.i64(1);
  const Value top = g.f32(static_cast<float>(side - 1));
  const Value last = g.cast(g.sub(n, one), DType::kF32);
  const Value step = g.div(top, last);
  // The reference's linspace grows from 0 in the first half and comes down from the top in the second.
  const Value rising = g.mul(step, p_f32);
  const Value falling = g.sub(top, g.mul(step, g.sub(last, p_f32)));
  const Value in_first_half = g.node("Less", {p, g.div(n, g.i64(2))});
  const Value at = g.node("Where", {in_first_half, rising, falling});
  const Value floor = g.node("Floor", {at});
  Axis axis;
  axis.low = g.cast(floor, DType::kI64);
  axis.high = g.node("Min", {g.add(axis.low, one), g.i64(side - 1)});
  axis.distance = g.sub(at, floor);
  axis.near = g.sub(g.f32(1.0f), axis.distance);
  return axis;
}

// Four rows [n] above each other: [4, n].
Value stack(GraphBuilder& g, const std::array<Value, 4>& rows, std::string out) {
  std::vector<Value> parts;
  for (const Value& row : rows) parts.push_back(g.unsqueeze(row, {0}));
  return g.node("Concat", std::move(parts), {{"axis", int64_t{0}}}, onnx::kStandardDomain, std::move(out));
}

}  // namespace

VisionPositions computed_positions(GraphBuilder& g, const Value& h, const Value& w,
                                   const model::VisionConfig& config) {
  const GraphBuilder::Scope scope(g, "positions");
  const int64_t side = config.position_side();
  const Value merge = g.i64(config.spatial_merge_size);
  const Value merge_rows = g.i64(config.merge_rows());

  // Blocks of merge x merge patches run row by row, and so do the patches inside (spec 3.4).
  const Value k = g.node("Range", {g.i64(0), g.mul(h, w), g.i64(1)});
  const Value block = g.div(k, merge_rows);
  const Value inside = g.node("Mod", {k, merge_rows});
  const Value blocks_per_row = g.div(w, merge);
  const Value row = g.add(g.mul(g.div(block, blocks_per_row), merge), g.div(inside, merge));
  const Value column =
      g.add(g.mul(g.node("Mod", {block, blocks_per_row}), merge), g.node("Mod", {inside, merge}));
  const Value row_f32 = g.cast(row, DType::kF32);
  const Value column_f32 = g.cast(column, DType::kF32);

  VisionPositions result;
  const Axis y = interpolate(g, row, row_f32, h, side);
  const Axis x = interpolate(g, column, column_f32, w, side);
  const Value top = g.mul(y.low, g.i64(side));
  const Value bottom = g.mul(y.high, g.i64(side));
  result.taps = stack(g, {g.add(top, x.low), g.add(top, x.high), g.add(bottom, x.low), g.add(bottom, x.high)},
                      "position_taps");
  result.weights = stack(g,
                         {g.mul(y.near, x.near), g.mul(y.near, x.distance), g.mul(y.distance, x.near),
                          g.mul(y.distance, x.distance)},
                         "position_weights");

  const std::vector<float> inv_freq = model::rope_inv_freq(config.head_dim() / 2, kVisionTheta);
  const Value frequencies = g.f32s(inv_freq, {1, static_cast<int64_t>(inv_freq.size())});
  const Value angles = g.concat(
      {g.mul(g.unsqueeze(row_f32, {1}), frequencies), g.mul(g.unsqueeze(column_f32, {1}), frequencies)}, 1);
  result.cos = g.node("Cos", {angles}, {}, onnx::kStandardDomain, "rotary_cos");
  result.sin = g.node("Sin", {angles}, {}, onnx::kStandardDomain, "rotary_sin");
  return result;
}

VisionPositions constant_positions(GraphBuilder& g, const image::Grid& grid,
                                   const model::VisionConfig& config) {
  const image::Grid frame{1, grid.h, grid.w};
  const std::span<const image::Grid> frames(&frame, 1);
  const int64_t n = frame.patches();
  const model::VisionTaps taps =
      model::vision_taps(frames, config.position_side(), config.spatial_merge_size);
  const model::CosSin rotary = model::vision_cos_sin(frames, config.head_dim(), config.spatial_merge_size);
  VisionPositions result;
  result.taps = g.constant(DType::kI64, {4, n}, std::as_bytes(std::span(taps.index)));
  result.weights = g.f32s(taps.weight, {4, n});
  result.cos = g.f32s(rotary.cos, {rotary.rows, rotary.width});
  result.sin = g.f32s(rotary.sin, {rotary.rows, rotary.width});
  return result;
}

}  // namespace qvl::exporting
