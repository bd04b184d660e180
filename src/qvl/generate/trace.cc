#include "qvl/generate/trace.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/engine/visual_features.h"
#include "qvl/generate/sampler.h"
#include "qvl/model/positions.h"

namespace qvl::generate {
namespace {

Tensor grid_tensor(const std::vector<image::Grid>& grids) {
  Tensor t(DType::kI64, {static_cast<int64_t>(grids.size()), 3});
  auto v = t.as<int64_t>();
  for (size_t i = 0; i < grids.size(); ++i) {
    v[3 * i] = grids[i].t, v[3 * i + 1] = grids[i].h, v[3 * i + 2] = grids[i].w;
  }
  return t;
}

template <typename T>
Tensor id_tensor(const std::vector<T>& ids) {
  Tensor t(DType::kI64, {static_cast<int64_t>(ids.size())});
  std::copy(ids.begin(), ids.end(), t.as<int64_t>().begin());
  return t;
}

void check_pixels(const Tensor& pixels, const std::vector<image::Grid>& grids,
                  const model::VisionConfig& vision, const char* name) {
  int64_t patches = 0;
  for (const image::Grid& g : grids) {
    if (g.t < 1 || g.h < 1 || g.w < 1 || g.h % vision.spatial_merge_size || g.w % vision.spatial_merge_size) {
      fail(ErrorCode::kMismatch, "trace", cat("grid of ", name),
           cat("positive, height and width multiples of ", vision.spatial_merge_size),
           cat(g.t, "x", g.h, "x", g.w));
    }
    patches += g.patches();
  }
  if (patches == 0 && pixels.empty()) return;
  const Shape wanted = {patches, vision.patch_width()};
  if (pixels.dtype() == DType::kF32 && pixels.shape() == wanted) return;
  fail(ErrorCode::kMismatch, "trace", name, cat("F32 ", shape_string(wanted), " by the grids"),
       cat(dtype_name(pixels.dtype()), " ", shape_string(pixels.shape())));
}

Tensor rows_of(const Tensor& t, int64_t begin, int64_t end) {
  const size_t row_bytes = t.dim(0) > 0 ? t.size_bytes() / static_cast<size_t>(t.dim(0)) : 0;
  Tensor out(t.dtype(), {end - begin, t.dim(1)});
  if (end > begin) {
    std::memcpy(out.data(), static_cast<const std::byte*>(t.data()) + static_cast<size_t>(begin) * row_bytes,
                static_cast<size_t>(end - begin) * row_bytes);
  }
  return out;
}

engine::VisionFeatures rows_of(const engine::VisionFeatures& f, int64_t begin, int64_t end) {
  engine::VisionFeatures out;
  out.merged = rows_of(f.merged, begin, end);
  for (const Tensor& level : f.deepstack) out.deepstack.push_back(rows_of(level, begin, end));
  return out;
}

}  // namespace

std::vector<TracedTensor> trace_prefill(const engine::Engine& engine, const TraceInput& input,
                                        const TraceOptions& options, const engine::ProgressFn& progress) {
  const model::ModelConfig& config = engine.config();
  if (input.ids.empty()) fail(ErrorCode::kInvalidArgument, "trace", "prompt", "at least one token", "none");
  const auto tokens = static_cast<int64_t>(input.ids.size());
  if (tokens > config.text.max_positions) {
    fail(ErrorCode::kLimit, "trace", "prompt", cat("at most ", config.text.max_positions, " tokens"),
         cat(tokens));
  }
  check_pixels(input.pixel_values, input.image_grids, config.vision, "pixel_values");
  check_pixels(input.pixel_values_videos, input.video_grids, config.vision, "pixel_values_videos");

  std::vector<TracedTensor> out;
  auto add = [&out](std::string_view name, Tensor value) {
    out.push_back({std::string(name), std::move(value)});
  };
  auto has = [&out](std::string_view name) {
    return std::any_of(out.begin(), out.end(), [&](const TracedTensor& t) { return t.name == name; });
  };
  // A stage may offer more than the contract names.
  auto add_contracted = [&add](std::string_view name, Tensor value) {
    if (name != "vision.patch_embed") add(name, std::move(value));
  };
  engine::StageHooks hooks{.trace = {}, .progress = progress};
  if (!options.stages_only) hooks.trace = add_contracted;

  add("input_ids", id_tensor(input.ids));
  if (!input.image_grids.empty()) {
    add("pixel_values", input.pixel_values.copy());
    add("image_grid_thw", grid_tensor(input.image_grids));
  }
  if (!input.video_grids.empty()) {
    add("pixel_values_videos", input.pixel_values_videos.copy());
    add("video_grid_thw", grid_tensor(input.video_grids));
  }

  engine::VisionFeatures images, videos;
  std::vector<image::Grid> grids = input.image_grids;
  grids.insert(grids.end(), input.video_grids.begin(), input.video_grids.end());
  if (!grids.empty()) {
    std::vector<float> pixels;
    pixels.reserve(static_cast<size_t>(input.pixel_values.size() + input.pixel_values_videos.size()));
    for (const Tensor* t : {&input.pixel_values, &input.pixel_values_videos}) {
      if (!t->empty()) pixels.insert(pixels.end(), t->as<float>().begin(), t->as<float>().end());
    }
    const engine::VisionFeatures features = engine.vision().encode(pixels, grids, hooks);
    if (!has("vision.merged")) add("vision.merged", features.merged.to(DType::kF32));
    for (size_t j = 0; j < features.deepstack.size(); ++j) {
      const std::string name = cat("vision.deepstack", j);
      if (!has(name)) add(name, features.deepstack[j].to(DType::kF32));
    }
    int64_t image_rows = 0;
    for (const image::Grid& g : input.image_grids)
      image_rows += g.merged_tokens(config.vision.spatial_merge_size);
    images = rows_of(features, 0, image_rows);
    videos = rows_of(features, image_rows, features.merged.dim(0));
  }

  const model::Positions positions =
      model::mrope_positions(config, input.ids, input.image_grids, input.video_grids);
  Tensor position_ids(DType::kI64, {3, tokens});
  for (int a = 0; a < 3; ++a) {
    std::copy(positions.row(a).begin(), positions.row(a).end(),
              position_ids.as<int64_t>().begin() + a * tokens);
  }
  add("position_ids", std::move(position_ids));

  Tensor embeds = engine.embed().embed(input.ids);
  const engine::VisualRows placed = engine::place_visual_features(
      input.ids, config.image_token_id, config.video_token_id, input.image_grids.empty() ? nullptr : &images,
      input.video_grids.empty() ? nullptr : &videos, embeds);
  add("inputs_embeds", embeds.to(DType::kF32));

  const std::unique_ptr<engine::KvCache> cache = engine.decoder().new_cache();
  engine::DecoderInput step;
  step.embeds = &embeds;
  for (int a = 0; a < 3; ++a) step.positions[a] = positions.row(a);
  step.visual_rows = placed.rows;
  step.deepstack = placed.deepstack;
  Tensor logits = engine.decoder().forward(step, *cache, engine::LogitsMode::kAll, hooks);
  const auto vocabulary = static_cast<size_t>(logits.dim(1));

  std::vector<int32_t> said;
  std::vector<float> decoded;
  std::span<const float> last = logits.as<float>().last(vocabulary);
  Sampler greedy({.greedy = true}, 0, static_cast<int64_t>(vocabulary));
  Tensor step_logits;
  while (static_cast<int64_t>(said.size()) < options.greedy_tokens) {
    said.push_back(greedy.sample(last));
    if (static_cast<int64_t>(said.size()) == options.greedy_tokens || cache->length() >= config.text.max_positions)
      break;
    const size_t i = said.size() - 1;
    const int32_t token = i < options.follow.size() ? static_cast<int32_t>(options.follow[i]) : said[i];
    const Tensor row = engine.embed().embed(std::span(&token, 1));
    const int64_t position = cache->length() + positions.delta;
    engine::DecoderInput next;
    next.embeds = &row;
    for (auto& axis : next.positions) axis = std::span(&position, 1);
    next.decode = true;
    step_logits = engine.decoder().forward(next, *cache, engine::LogitsMode::kLast,
                                           {.trace = {}, .progress = progress});
    last = step_logits.as<float>();
    if (options.decode_logits) decoded.insert(decoded.end(), last.begin(), last.end());
  }
  if (!has("logits")) add("logits", std::move(logits));
  add("greedy_tokens", id_tensor(said));
  if (options.decode_logits) {
    Tensor steps(DType::kF32, {static_cast<int64_t>(decoded.size() / vocabulary), static_cast<int64_t>(vocabulary)});
    std::copy(decoded.begin(), decoded.end(), steps.as<float>().begin());
    add("decode_logits", std::move(steps));
  }
  return out;
}

}  // namespace qvl::generate
