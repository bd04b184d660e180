#include "golden.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

namespace qvl::golden {

std::string small_model_path() {
  return QVL_SOURCE_DIR "/models/small";
}

std::string fixture_path(const std::string& relative) {
  return std::string(QVL_SOURCE_DIR "/tests/fixtures/golden/") + relative;
}

std::string variant_name(const Variant& variant) {
  return std::string(engine::precision_name(variant.precision)) + "_" + variant.kernels +
         (variant.kv == engine::KvType::kInt8 ? "_int8_cache" : "");
}

std::shared_ptr<const engine::Engine> tiny_engine(const Variant& variant, int threads) {
  static std::map<std::string, std::shared_ptr<const engine::Engine>> engines;
  auto& engine = engines[variant_name(variant) + std::to_string(threads)];
  if (!engine) engine = open_variant(variant, threads);
  return engine;
}

std::vector<float> f32(const checkpoint::SafetensorsFile& file, const std::string& name) {
  return file.get(name).to_f32();
}

std::vector<int64_t> i64(const checkpoint::SafetensorsFile& file, const std::string& name) {
  const checkpoint::TensorView& view = file.get(name);
  EXPECT_EQ(view.dtype, DType::kI64) << name;
  std::vector<int64_t> values(static_cast<size_t>(view.size()));
  std::memcpy(values.data(), view.bytes.data(), view.bytes.size());
  return values;
}

std::vector<image::Grid> grids(const checkpoint::SafetensorsFile& file, const std::string& name) {
  std::vector<image::Grid> result;
  if (!file.find(name)) return result;
  const std::vector<int64_t> v = i64(file, name);
  for (size_t i = 0; i + 2 < v.size(); i += 3) result.push_back({v[i], v[i + 1], v[i + 2]});
  return result;
}

void expect_close(std::span<const float> actual, std::span<const float> expected, const Limit& limit,
                  const Variant& variant, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  float largest = 0;
  float magnitude = 0;
  size_t where = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << what << " at " << i;
    magnitude = std::max(magnitude, std::fabs(expected[i]));
    const float d = std::fabs(actual[i] - expected[i]);
    if (d > largest) {
      largest = d;
      where = i;
    }
  }
  const float allowed =
      variant.precision == engine::Precision::kF32 ? limit.f32_abs : limit.bf16_relative * magnitude;
  EXPECT_LE(largest, allowed) << what << " differs most at " << where << ": " << actual[where]
                              << " instead of " << expected[where];
}

const std::vector<std::string>& text_cases() {
  static const std::vector<std::string> names = {"text",  "image",       "two_images",
                                                 "video", "image_video", "wide_image_last"};
  return names;
}

namespace {

std::optional<engine::VisionFeatures> encode(const checkpoint::SafetensorsFile& file,
                                             const engine::Engine& engine, const char* pixels,
                                             const char* grid) {
  if (!file.find(pixels)) return std::nullopt;
  return engine.vision().encode(f32(file, pixels), grids(file, grid));
}

}  // namespace

Prompt make_prompt(const checkpoint::SafetensorsFile& file, const engine::Engine& engine) {
  Prompt p;
  for (int64_t id : i64(file, "input_ids")) p.ids.push_back(static_cast<int32_t>(id));
  const model::ModelConfig& config = engine.config();
  p.positions =
      model::mrope_positions(config, p.ids, grids(file, "image_grid_thw"), grids(file, "video_grid_thw"));
  p.embeds = engine.embed().embed(p.ids);
  const auto images = encode(file, engine, "pixel_values", "image_grid_thw");
  const auto videos = encode(file, engine, "pixel_values_videos", "video_grid_thw");
  p.visual =
      engine::place_visual_features(p.ids, config.image_token_id, config.video_token_id,
                                    images ? &*images : nullptr, videos ? &*videos : nullptr, p.embeds);
  return p;
}

Tensor feed(const engine::Engine& engine, const Prompt& p, int64_t begin, int64_t end, engine::KvCache& cache,
            engine::LogitsMode mode, const engine::StageHooks& hooks) {
  const int64_t width = p.embeds.dim(1);
  const size_t item = dtype_size_bytes(p.embeds.dtype());
  Tensor part(p.embeds.dtype(), {end - begin, width});
  std::memcpy(part.data(),
              static_cast<const std::byte*>(p.embeds.data()) + static_cast<size_t>(begin * width) * item,
              part.size_bytes());
  engine::DecoderInput input;
  input.embeds = &part;
  const model::Positions positions = p.positions.slice(begin, end - begin);
  for (int a = 0; a < 3; ++a) input.positions[a] = positions.row(a);
  std::vector<int64_t> rows;
  for (int64_t r : p.visual.rows) {
    if (r < begin) ++input.deepstack_offset;
    if (r >= begin && r < end) rows.push_back(r - begin);
  }
  input.visual_rows = rows;
  input.deepstack = p.visual.deepstack;
  return engine.decoder().forward(input, cache, mode, hooks);
}

Tensor step(const engine::Engine& engine, int32_t id, int64_t position, engine::KvCache& cache) {
  const Tensor embeds = engine.embed().embed({&id, 1});
  engine::DecoderInput input;
  input.embeds = &embeds;
  for (auto& axis : input.positions) axis = {&position, 1};
  input.decode = true;
  return engine.decoder().forward(input, cache, engine::LogitsMode::kLast);
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace qvl::golden
