// vision.onnx and vision_host.onnx (spec 5, 10; package/graph_io.h). See graphs.h.
//
// vision.onnx takes any number of images and videos of any sizes. Patches of different images do not attend
// to each other, so a Loop runs the whole encoder once for each row of grid_thw, with the frames as batch
// axis: no mask, memory for the largest image alone, and per image the same operators at the same speed as
// the graph without a Loop. Rows of features are appended to what the Loop carries.

#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/export/graph_options.h"
#include "qvl/export/graphs.h"
#include "qvl/export/vision_encoder.h"
#include "qvl/export/vision_positions.h"
#include "qvl/package/graph_io.h"

namespace qvl::exporting {
namespace {

using onnx::Dim;
using onnx::GraphBuilder;
using onnx::Value;

// Name and width of each output.
struct Feature {
  std::string name;
  int64_t width = 0;
};

std::vector<Feature> feature_outputs(const model::VisionConfig& config, Layout layout) {
  const auto levels = config.deepstack_levels();
  if (layout == Layout::kGenai) return {{package::kImageFeatures, (1 + levels) * config.out_hidden_size}};
  std::vector<Feature> features{{package::kImageFeatures, config.out_hidden_size}};
  for (int j = 0; j < levels; ++j)
    features.push_back({package::deepstack_features_name(j), config.out_hidden_size});
  return features;
}

void check(const model::ModelConfig& model, const GraphOptions& options) {
  check_options(options, model);
  if (!options.static_grid) return;
  const image::Grid& grid = *options.static_grid;
  const int64_t merge = model.vision.spatial_merge_size;
  if (grid.t < 1 || grid.h < merge || grid.w < merge || grid.h % merge != 0 || grid.w % merge != 0) {
    fail(ErrorCode::kInvalidArgument, "export", "fixed grid of the vision graph",
         fmt::format("t at least 1, h and w multiples of {}", merge),
         fmt::format("{} x {} x {}", grid.t, grid.h, grid.w));
  }
}

// pixel_values in the number of rows that grid_thw speaks of: inputs that do not fit each other fail in this
// node, whose name says so, instead of giving the features of fewer patches. The shape is no Concat, because
// ONNX Runtime replaces such a shape by one that takes any number of rows.
Value checked_patches(GraphBuilder& g, const Value& pixels, const Value& grids, int64_t width) {
  const auto column = [&](int64_t i) { return g.gather(grids, g.i64(i), 1); };
  const Value each = g.mul(column(0), g.mul(column(1), column(2)));
  const Value rows = g.node("ReduceSum", {each}, {{"keepdims", int64_t{1}}});  // [1]
  const Value shape = g.add(g.mul(rows, g.i64s({1, 0})), g.i64s({0, width}));
  return g.node("Reshape", {pixels, shape}, {{"allowzero", int64_t{1}}}, onnx::kStandardDomain,
                "pixel_values_have_the_rows_of_grid_thw");
}

// `rows` is the count of feature rows, or a name for it.
void set_outputs(GraphBuilder& g, std::vector<Value> values, const std::vector<Feature>& features,
                 const Dim& rows) {
  for (size_t i = 0; i < features.size(); ++i) {
    const Value named =
        g.node("Identity", {std::move(values[i])}, {}, onnx::kStandardDomain, features[i].name);
    g.output(named, DType::kF32, {rows, features[i].width});
  }
}

// One grid, known now: positions are constants and nothing depends on values.
GraphBuilder static_vision_graph(WeightPlan& plan, const GraphOptions& options) {
  const model::VisionConfig& config = plan.config().vision;
  const image::Grid& grid = *options.static_grid;
  GraphBuilder g("vision");
  const Value pixels = g.input(package::kPixelValues, DType::kF32, {grid.patches(), config.patch_width()});
  const Value frame_shape = g.i64s({grid.t, grid.h * grid.w, -1});
  std::vector<Value> values = vision_encoder(g, pixels, frame_shape, constant_positions(g, grid, config),
                                             plan, options, PlainAttention::kBatched);
  set_outputs(g, std::move(values), feature_outputs(config, options.layout),
              grid.merged_tokens(config.spatial_merge_size));
  return g;
}

}  // namespace

GraphBuilder vision_graph(WeightPlan& plan, const GraphOptions& options) {
  const model::VisionConfig& config = plan.config().vision;
  check(plan.config(), options);
  if (options.static_grid) return static_vision_graph(plan, options);
  const std::vector<Feature> features = feature_outputs(config, options.layout);

  GraphBuilder g("vision");
  const Value pixels =
      g.input(package::kPixelValues, DType::kF32, {std::string("patches"), config.patch_width()});
  const char* grid_name = options.layout == Layout::kGenai ? package::kGenaiGridThw : package::kGridThw;
  const Value grids = g.input(grid_name, DType::kI64, {std::string("images"), int64_t{3}});
  const Value all_patches = checked_patches(g, pixels, grids, config.patch_width());

  GraphBuilder body = g.body("image");
  const Value index = body.input("image_index", DType::kI64, {});
  const Value go_on = body.input("image_go_on", DType::kBool, {});
  const Value begin = body.input("image_begin", DType::kI64, {int64_t{1}});  // first row of pixel_values
  std::vector<Value> before;
  for (const Feature& f : features) {
    before.push_back(body.input("before." + f.name, DType::kF32, {"rows_before." + f.name, f.width}));
  }
  const Value grid = body.gather(grids, index);
  const Value t = body.gather(grid, body.i64(0));
  const Value h = body.gather(grid, body.i64(1));
  const Value w = body.gather(grid, body.i64(2));
  const Value frame_patches = body.mul(h, w);
  const Value end = body.add(begin, body.mul(t, frame_patches));
  const Value patches = body.node("Slice", {all_patches, begin, end, body.i64s({0})});
  const Value frame_shape =
      body.concat({body.unsqueeze(t, {0}), body.unsqueeze(frame_patches, {0}), body.i64s({-1})}, 0);
  const VisionPositions positions = computed_positions(body, h, w, config);
  const std::vector<Value> made =
      vision_encoder(body, patches, frame_shape, positions, plan, options, PlainAttention::kHeadByHead);
  body.output(body.node("Identity", {go_on}), DType::kBool, {});
  body.output(end, DType::kI64, {int64_t{1}});
  for (size_t i = 0; i < features.size(); ++i) {
    const Value after = body.concat({before[i], made[i]}, 0);
    body.output(after, DType::kF32, {"rows_after." + features[i].name, features[i].width});
  }

  const Value count = g.squeeze(g.node("Shape", {grids}, {{"start", int64_t{0}}, {"end", int64_t{1}}}), {0});
  std::vector<Value> inputs{count, {}, g.i64s({0})};
  for (const Feature& f : features) inputs.push_back(g.f32s({}, {0, f.width}));
  std::vector<Value> carried = g.control("Loop", std::move(inputs), 1 + features.size(), {{"body", &body}});
  std::vector<Value> values(std::make_move_iterator(carried.begin() + 1),
                            std::make_move_iterator(carried.end()));
  set_outputs(g, std::move(values), features, std::string("features"));
  return g;
}

GraphBuilder vision_host_graph(WeightPlan& plan, const GraphOptions& options) {
  const model::VisionConfig& config = plan.config().vision;
  check(plan.config(), options);
  Dim frames = std::string("frames"), n = std::string("frame_patches"), rows = std::string("features");
  if (options.static_grid) {
    frames = options.static_grid->t;
    n = options.static_grid->h * options.static_grid->w;
    rows = options.static_grid->merged_tokens(config.spatial_merge_size);
  }

  GraphBuilder g("vision_host");
  const int64_t half = config.head_dim() / 2;
  const Value pixels = g.input(package::kPixelValues, DType::kF32, {frames, n, config.patch_width()});
  VisionPositions positions;
  positions.taps = g.input(package::kPositionTaps, DType::kI64, {int64_t{4}, n});
  positions.weights = g.input(package::kPositionWeights, DType::kF32, {int64_t{4}, n});
  positions.cos = g.input(package::kVisionCos, DType::kF32, {n, half});
  positions.sin = g.input(package::kVisionSin, DType::kF32, {n, half});
  const Value shape = g.node("Shape", {pixels}, {{"start", int64_t{0}}, {"end", int64_t{2}}});
  const Value patches = g.reshape(pixels, {-1, config.patch_width()});
  std::vector<Value> values =
      vision_encoder(g, patches, g.concat({shape, g.i64s({-1})}, 0), positions, plan, options,
                     options.static_grid ? PlainAttention::kBatched : PlainAttention::kHeadByHead);
  set_outputs(g, std::move(values), feature_outputs(config, options.layout), rows);
  return g;
}

}  // namespace qvl::exporting
