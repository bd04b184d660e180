#include "qvl/engine/ort/vision.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/engine/stage_input.h"
#include "qvl/model/positions.h"
#include "qvl/package/graph_io.h"

namespace qvl::engine::ort {
namespace {

constexpr int64_t kAny = -1;

std::string grid_string(const image::Grid& g) {
  return "(" + std::to_string(g.t) + ", " + std::to_string(g.h) + ", " + std::to_string(g.w) + ")";
}

}  // namespace

OrtVision::OrtVision(std::shared_ptr<const package::Package> package, std::shared_ptr<const Graph> graph,
                     bool host)
    : package_(std::move(package)),
      graph_(std::move(graph)),
      config_(package_->config().vision),
      host_(host),
      joined_(package_->manifest().layout == package::Layout::kGenai) {
  const auto& sizes = package_->manifest().static_sizes;
  if (sizes) fixed_ = image::Grid{sizes->grid_t, sizes->grid_h, sizes->grid_w};
  const int64_t levels = config_.deepstack_levels();
  const int64_t width = config_.out_hidden_size;

  std::vector<Port> inputs;
  if (host_) {
    inputs = {{package::kPixelValues, DType::kF32, {kAny, kAny, config_.patch_width()}},
              {package::kPositionTaps, DType::kI64, {4, kAny}},
              {package::kPositionWeights, DType::kF32, {4, kAny}},
              {package::kVisionCos, DType::kF32, {kAny, config_.head_dim() / 2}},
              {package::kVisionSin, DType::kF32, {kAny, config_.head_dim() / 2}}};
  } else {
    inputs = {{package::kPixelValues, DType::kF32, {kAny, config_.patch_width()}}};
    // A graph for one size has its positions as constants.
    if (!fixed_) inputs.push_back({grid_input(), DType::kI64, {kAny, 3}});
  }
  std::vector<Port> outputs = {
      {package::kImageFeatures, DType::kF32, {kAny, joined_ ? (1 + levels) * width : width}}};
  for (int j = 0; j < levels && !joined_; ++j) {
    outputs.push_back({package::deepstack_features_name(j), DType::kF32, {kAny, width}});
  }
  graph_->expect(inputs, outputs);
  trace_names_ = {"vision.pos_embed"};
  for (int64_t i = 0; i < config_.depth; ++i) trace_names_.push_back("vision.block" + std::to_string(i));
}

std::vector<OrtVision::Part> OrtVision::split(std::span<const float> pixels,
                                              std::span<const image::Grid> grids) const {
  std::vector<Part> parts;
  Part next{.grids = {}, .pixels = pixels.data()};
  const auto finish = [&] {
    parts.push_back(next);
    next.pixels += next.patches * config_.patch_width();
    next.first_merged += next.patches / config_.merge_rows();
    next.patches = 0;
  };
  const bool one_by_one = host_ || fixed_;
  for (size_t i = 0; i < grids.size(); ++i) {
    if (fixed_ && grids[i] != *fixed_) {
      fail(ErrorCode::kMismatch, graph_->where(), "grid (t, h, w) of a package with fixed sizes",
           grid_string(*fixed_), grid_string(grids[i]), "resize the image, or export without --static");
    }
    next.patches += grids[i].patches();
    if (one_by_one) {
      next.grids = grids.subspan(i, 1);
      finish();
    }
  }
  if (!one_by_one) {
    next.grids = grids;
    finish();
  }
  return parts;
}

void OrtVision::encode(const Part& part, VisionFeatures& out, const std::function<bool()>& poll,
                       std::map<std::string, std::vector<float>>* traced) const {
  const Graph& graph = traced ? graph_->traced(trace_names_) : *graph_;
  const Runtime& runtime = graph.runtime();
  const Handle<OrtIoBinding> binding = graph.new_binding();
  std::vector<Handle<OrtValue>> values;
  const auto value = [&](const void* data, DType type, const Shape& shape) -> const OrtValue* {
    values.push_back(make_value(runtime, data, type, shape));
    return values.back().get();
  };
  const auto input = [&](const char* name, const void* data, DType type, const Shape& shape) {
    graph.bind_input(binding.get(), name, value(data, type, shape));
  };

  model::VisionTaps taps;
  model::CosSin rotary;
  std::vector<int64_t> thw;
  if (host_) {
    const image::Grid grid = part.grids[0];
    const image::Grid frame{1, grid.h, grid.w};
    const int64_t rows = frame.patches();
    taps = model::vision_taps({&frame, 1}, config_.position_side(), config_.spatial_merge_size);
    rotary = model::vision_cos_sin({&frame, 1}, config_.head_dim(), config_.spatial_merge_size);
    input(package::kPixelValues, part.pixels, DType::kF32, {grid.t, rows, config_.patch_width()});
    input(package::kPositionTaps, taps.index.data(), DType::kI64, {4, rows});
    input(package::kPositionWeights, taps.weight.data(), DType::kF32, {4, rows});
    input(package::kVisionCos, rotary.cos.data(), DType::kF32, {rows, rotary.width});
    input(package::kVisionSin, rotary.sin.data(), DType::kF32, {rows, rotary.width});
  } else {
    for (const image::Grid& g : part.grids) thw.insert(thw.end(), {g.t, g.h, g.w});
    input(package::kPixelValues, part.pixels, DType::kF32, {part.patches, config_.patch_width()});
    if (!fixed_) input(grid_input(), thw.data(), DType::kI64, {static_cast<int64_t>(part.grids.size()), 3});
  }

  const int64_t merged = part.patches / config_.merge_rows();
  const int64_t width = config_.out_hidden_size;
  const auto rows_of = [&](Tensor& t) { return t.as<float>().data() + part.first_merged * width; };
  Tensor joined;
  if (joined_) {
    joined = Tensor(DType::kF32, {merged, static_cast<int64_t>(1 + out.deepstack.size()) * width});
    graph.bind_output(binding.get(), package::kImageFeatures,
                      value(joined.data(), DType::kF32, joined.shape()));
  } else {
    graph.bind_output(binding.get(), package::kImageFeatures,
                      value(rows_of(out.merged), DType::kF32, {merged, width}));
    for (size_t j = 0; j < out.deepstack.size(); ++j) {
      graph.bind_output(binding.get(), package::deepstack_features_name(static_cast<int>(j)).c_str(),
                        value(rows_of(out.deepstack[j]), DType::kF32, {merged, width}));
    }
  }
  // An image can need much memory for a moment: it goes back to the system.
  if (traced) graph.bind_traced(binding.get());
  graph.run(binding.get(), poll, /*shrink=*/true);
  if (traced) {
    const std::vector<Tensor> seen = graph.traced_values(binding.get());
    for (size_t i = 0; i < seen.size(); ++i) {
      std::vector<float>& all = (*traced)[graph.traced_names()[i]];
      const auto rows = seen[i].as<float>();
      // Positions are made for one frame and serve all.
      const int64_t times = part.patches / std::max<int64_t>(seen[i].dim(0), 1);
      for (int64_t t = 0; t < times; ++t) all.insert(all.end(), rows.begin(), rows.end());
    }
  }
  if (!joined_) return;
  for (int64_t row = 0; row < merged; ++row) {
    const float* source = joined.as<float>().data() + row * joined.dim(1);
    std::memcpy(rows_of(out.merged) + row * width, source, static_cast<size_t>(width) * sizeof(float));
    for (Tensor& level : out.deepstack) {
      source += width;
      std::memcpy(rows_of(level) + row * width, source, static_cast<size_t>(width) * sizeof(float));
    }
  }
}

VisionFeatures OrtVision::encode(std::span<const float> pixels, std::span<const image::Grid> grids,
                                 const StageHooks& hooks) const {
  const int64_t patches = check_vision_input(pixels, grids, config_);
  const Shape shape = {patches / config_.merge_rows(), config_.out_hidden_size};
  VisionFeatures out;
  out.merged = Tensor(DType::kF32, shape);
  for (int64_t j = 0; j < config_.deepstack_levels(); ++j) out.deepstack.emplace_back(DType::kF32, shape);

  const std::vector<Part> parts = split(pixels, grids);
  const int64_t total = static_cast<int64_t>(parts.size());
  std::map<std::string, std::vector<float>> traced;
  for (int64_t i = 0; i < total; ++i) {
    if (hooks.progress && !hooks.progress(i, total)) fail(ErrorCode::kCancelled, "vision", "cancelled");
    std::function<bool()> poll;
    if (hooks.progress) poll = [&] { return hooks.progress(i, total); };
    encode(parts[static_cast<size_t>(i)], out, poll, hooks.trace ? &traced : nullptr);
  }
  if (hooks.trace) {
    for (const std::string& name : trace_names_) {
      const auto found = traced.find(name);
      if (found == traced.end()) continue;
      Tensor value(DType::kF32, {patches, config_.hidden_size});
      if (found->second.size() != static_cast<size_t>(value.size())) continue;
      std::ranges::copy(found->second, value.as<float>().begin());
      hooks.trace(name, std::move(value));
    }
    for (size_t j = 0; j < out.deepstack.size(); ++j) {
      hooks.trace("vision.deepstack" + std::to_string(j), out.deepstack[j].copy());
    }
    hooks.trace("vision.merged", out.merged.copy());
  }
  if (hooks.progress) hooks.progress(total, total);
  return out;
}

}  // namespace qvl::engine::ort
