// Embedding, decoder and greedy generation of the native engine against the reference implementation (spec 6).
#include <algorithm>
#include <cstring>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "golden.h"
#include "qvl/base/error.h"
#include "qvl/engine/native/kv_cache.h"
#include "qvl/engine/visual_features.h"
#include "qvl/model/positions.h"

namespace qvl::golden {
namespace {

using Param = std::tuple<std::string, Variant>;

std::optional<engine::VisionFeatures> encode(const checkpoint::SafetensorsFile& file, const engine::Engine& engine,
                                             const char* pixels, const char* grid) {
  if (!file.find(pixels)) return std::nullopt;
  return engine.vision().encode(f32(file, pixels), grids(file, grid));
}

Prompt make_prompt(const checkpoint::SafetensorsFile& file, const engine::Engine& engine) {
  Prompt p;
  for (int64_t id : i64(file, "input_ids")) p.ids.push_back(static_cast<int32_t>(id));
  const model::ModelConfig& config = engine.config();
  p.positions = model::mrope_positions(config, p.ids, grids(file, "image_grid_thw"), grids(file, "video_grid_thw"));
  p.embeds = engine.embed().embed(p.ids);
  const auto images = encode(file, engine, "pixel_values", "image_grid_thw");
  const auto videos = encode(file, engine, "pixel_values_videos", "video_grid_thw");
  p.visual = engine::place_visual_features(p.ids, config.image_token_id, config.video_token_id,
                                           images ? &*images : nullptr, videos ? &*videos : nullptr, p.embeds);
  return p;
}

const std::vector<std::string> kCases = {"text", "image", "two_images", "video", "image_video", "wide_image_last"};

class NativeText : public testing::TestWithParam<Param> {};

TEST_P(NativeText, EveryStageMatchesTheReference) {
  const auto& [name, variant] = GetParam();
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("text/" + name + ".safetensors"));
  const auto engine = tiny_engine(variant);
  const Prompt prompt = make_prompt(file, *engine);
  const int64_t length = static_cast<int64_t>(prompt.ids.size());

  const std::vector<int64_t> positions = i64(file, "position_ids");
  for (int a = 0; a < 3; ++a) {
    EXPECT_TRUE(std::ranges::equal(prompt.positions.row(a),
                                   std::span(positions).subspan(static_cast<size_t>(a * length), prompt.ids.size())));
  }
  EXPECT_EQ(prompt.positions.delta, i64(file, "rope_deltas")[0]);
  expect_close(prompt.embeds.to(DType::kF32).as<float>(), f32(file, "inputs_embeds"), {3e-5f, 0.025f}, variant,
               "inputs_embeds");

  std::map<std::string, Tensor, std::less<>> traced;
  engine::StageHooks hooks;
  hooks.trace = [&](std::string_view tensor, Tensor value) { traced.emplace(tensor, std::move(value)); };
  const auto cache = engine->decoder().new_cache();
  const Tensor logits = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kAll, hooks);
  for (const char* layer : {"layer0", "layer1", "layer2", "layer3"}) {
    expect_close(traced.at(layer).as<float>(), f32(file, layer), {2e-4f, 0.04f}, variant, layer);
  }
  expect_close(logits.as<float>(), f32(file, "logits"), {1e-4f, 0.05f}, variant, "logits");
  EXPECT_EQ(cache->length(), length);

  // The cache holds rotated keys and plain values.
  const auto& native = dynamic_cast<const engine::native::NativeKvCache&>(*cache);
  const kernels::KvView view = native.layer(0);
  const auto& t = engine->config().text;
  ASSERT_LE(length, view.block_tokens);
  for (const char* which : {"kv0.key", "kv0.value"}) {
    const void* block = std::string(which) == "kv0.key" ? view.key_blocks[0] : view.value_blocks[0];
    std::vector<float> cached;
    for (int64_t h = 0; h < t.num_kv_heads; ++h) {
      std::vector<float> head(static_cast<size_t>(length * t.head_dim));
      convert_elements(static_cast<const std::byte*>(block) + static_cast<size_t>(h * view.block_tokens * t.head_dim) *
                                                                  dtype_size_bytes(view.dtype),
                       view.dtype, head.data(), DType::kF32, length * t.head_dim);
      cached.insert(cached.end(), head.begin(), head.end());
    }
    expect_close(cached, f32(file, which), {1e-4f, 0.04f}, variant, which);
  }
}

TEST_P(NativeText, GreedyTokensMatchTheReference) {
  const auto& [name, variant] = GetParam();
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("text/" + name + ".safetensors"));
  const auto engine = tiny_engine(variant);
  const Prompt prompt = make_prompt(file, *engine);
  const int64_t length = static_cast<int64_t>(prompt.ids.size());
  const std::vector<int64_t> tokens = i64(file, "greedy.tokens");
  const std::vector<float> golden = f32(file, "greedy.logits");
  const int64_t vocab = engine->config().text.vocab_size;

  const auto cache = engine->decoder().new_cache();
  Tensor logits = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kLast);
  for (size_t i = 0; i < tokens.size(); ++i) {
    ASSERT_EQ(logits.size(), vocab);
    expect_close(logits.as<float>(), std::span(golden).subspan(i * static_cast<size_t>(vocab), static_cast<size_t>(vocab)),
                 {1e-4f, 0.06f}, variant, "greedy logits of step " + std::to_string(i));
    // bf16 noise exceeds the tiny model's smallest margins: there the reference's tokens are fed and logits compared.
    if (variant.precision == engine::Precision::kF32) {
      ASSERT_EQ(argmax(logits.as<float>()), tokens[i]) << "step " << i;
    }
    const int64_t position = length + static_cast<int64_t>(i) + prompt.positions.delta;
    logits = step(*engine, static_cast<int32_t>(tokens[i]), position, *cache);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, NativeText,
                         testing::Combine(testing::ValuesIn(kCases), testing::ValuesIn(native_variants())),
                         [](const testing::TestParamInfo<Param>& p) {
                           return std::get<0>(p.param) + "_" + variant_name(std::get<1>(p.param));
                         });

// The reference's left-padded batch gives each row what it gives alone. We run the rows unpadded, against the
// batch's own logits.
TEST(NativeTextBatch, UnpaddedRunsEqualTheRowsOfTheReferenceBatch) {
  const auto batch = checkpoint::SafetensorsFile::open(fixture_path("text/batch_left_pad.safetensors"));
  const std::vector<int64_t> mask = i64(batch, "attention_mask");
  const std::vector<int64_t> ids = i64(batch, "input_ids");
  const std::vector<int64_t> tokens = i64(batch, "greedy.tokens");
  const std::vector<float> golden = f32(batch, "greedy.logits");
  const size_t columns = mask.size() / 2;
  const std::string names[2] = {"image", "two_images"};
  const Variant variant{engine::Precision::kF32, "scalar"};
  const auto engine = tiny_engine(variant);
  const size_t vocab = static_cast<size_t>(engine->config().text.vocab_size);
  for (size_t row = 0; row < 2; ++row) {
    const auto file = checkpoint::SafetensorsFile::open(fixture_path("text/" + names[row] + ".safetensors"));
    const Prompt prompt = make_prompt(file, *engine);
    std::vector<int32_t> unpadded;
    for (size_t i = 0; i < columns; ++i) {
      if (mask[row * columns + i]) unpadded.push_back(static_cast<int32_t>(ids[row * columns + i]));
    }
    ASSERT_EQ(unpadded, prompt.ids);
    const int64_t length = static_cast<int64_t>(prompt.ids.size());
    const auto cache = engine->decoder().new_cache();
    Tensor logits = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kLast);
    for (size_t i = 0; i < 16; ++i) {
      const size_t at = row * 16 + i;
      expect_close(logits.as<float>(), std::span(golden).subspan(at * vocab, vocab), {1e-4f, 0}, variant,
                   names[row] + " step " + std::to_string(i));
      ASSERT_EQ(argmax(logits.as<float>()), tokens[at]);
      logits = step(*engine, static_cast<int32_t>(tokens[at]),
                    length + static_cast<int64_t>(i) + prompt.positions.delta, *cache);
    }
  }
}

// Chunked prefill is exact: same bits in logits and cache whatever the chunk (spec 6.7).
TEST(NativeTextPrefill, ResultsDoNotDependOnTheChunkSize) {
  for (const Variant& variant : native_variants()) {
    const auto engine = tiny_engine(variant);
    for (const std::string& name : kCases) {
      const auto file = checkpoint::SafetensorsFile::open(fixture_path("text/" + name + ".safetensors"));
      const Prompt prompt = make_prompt(file, *engine);
      const int64_t length = static_cast<int64_t>(prompt.ids.size());
      const auto whole_cache = engine->decoder().new_cache();
      const Tensor whole = feed(*engine, prompt, 0, length, *whole_cache, engine::LogitsMode::kLast);
      const Tensor whole_next = step(*engine, 7, length + prompt.positions.delta, *whole_cache);
      for (int64_t chunk : {1, 2, 3, 7, 16}) {
        const auto cache = engine->decoder().new_cache();
        Tensor last;
        for (int64_t begin = 0; begin < length; begin += chunk) {
          const int64_t end = std::min(length, begin + chunk);
          last = feed(*engine, prompt, begin, end, *cache,
                      end == length ? engine::LogitsMode::kLast : engine::LogitsMode::kNone);
        }
        EXPECT_TRUE(std::ranges::equal(last.as<float>(), whole.as<float>()))
            << variant_name(variant) << " " << name << " chunk " << chunk;
        const Tensor next = step(*engine, 7, length + prompt.positions.delta, *cache);
        EXPECT_TRUE(std::ranges::equal(next.as<float>(), whole_next.as<float>()))
            << variant_name(variant) << " " << name << " chunk " << chunk;
      }
    }
  }
}

// Work is cut by sizes alone, so the number of threads changes no bit.
TEST(NativeTextPrefill, ThreadsDoNotChangeTheResult) {
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("text/image_video.safetensors"));
  for (const Variant& variant : native_variants()) {
    std::vector<float> first;
    for (int threads : {1, 2, 3}) {
      const auto engine = tiny_engine(variant, threads);
      const Prompt prompt = make_prompt(file, *engine);
      const int64_t length = static_cast<int64_t>(prompt.ids.size());
      const auto cache = engine->decoder().new_cache();
      const Tensor prefill = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kAll);
      const Tensor next = step(*engine, 7, length + prompt.positions.delta, *cache);
      std::vector<float> all(prefill.as<float>().begin(), prefill.as<float>().end());
      all.insert(all.end(), next.as<float>().begin(), next.as<float>().end());
      if (first.empty()) first = all;
      EXPECT_EQ(all, first) << variant_name(variant) << " threads " << threads;
    }
  }
}

TEST(NativeTextCache, TruncatedAndRefilledGivesTheSame) {
  const Variant variant{engine::Precision::kF32, "scalar"};
  const auto engine = tiny_engine(variant);
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("text/two_images.safetensors"));
  const Prompt prompt = make_prompt(file, *engine);
  const int64_t length = static_cast<int64_t>(prompt.ids.size());
  const auto cache = engine->decoder().new_cache();
  const Tensor first = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kLast);
  step(*engine, 3, length + prompt.positions.delta, *cache);
  EXPECT_EQ(cache->length(), length + 1);
  cache->truncate(10);
  const Tensor second = feed(*engine, prompt, 10, length, *cache, engine::LogitsMode::kLast);
  EXPECT_TRUE(std::ranges::equal(first.as<float>(), second.as<float>()));
  EXPECT_THROW(cache->truncate(length + 1), Error);
}

TEST(NativeTextCache, AnErrorLeavesTheTimelineAsItWas) {
  const auto engine = tiny_engine({engine::Precision::kF32, "scalar"});
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("text/text.safetensors"));
  const Prompt prompt = make_prompt(file, *engine);
  const int64_t length = static_cast<int64_t>(prompt.ids.size());
  const auto cache = engine->decoder().new_cache();
  feed(*engine, prompt, 0, 4, *cache, engine::LogitsMode::kNone);
  engine::StageHooks cancel;
  cancel.progress = [](int64_t done, int64_t) { return done < 2; };
  EXPECT_THROW(feed(*engine, prompt, 4, length, *cache, engine::LogitsMode::kLast, cancel), Error);
  EXPECT_EQ(cache->length(), 4);
  const Tensor rest = feed(*engine, prompt, 4, length, *cache, engine::LogitsMode::kLast);
  const auto fresh = engine->decoder().new_cache();
  const Tensor whole = feed(*engine, prompt, 0, length, *fresh, engine::LogitsMode::kLast);
  EXPECT_TRUE(std::ranges::equal(rest.as<float>(), whole.as<float>()));
}

TEST(NativeTextStage, RefusesInputThatDoesNotFit) {
  const auto engine = tiny_engine({engine::Precision::kF32, "scalar"});
  const std::vector<int32_t> bad_ids = {512};
  EXPECT_THROW(engine->embed().embed(bad_ids), Error);
  const std::vector<int32_t> negative = {-1};
  EXPECT_THROW(engine->embed().embed(negative), Error);
  const std::vector<int32_t> ids = {1, 2, 3};
  const Tensor embeds = engine->embed().embed(ids);
  const std::vector<int64_t> positions = {0, 1, 2};
  const auto cache = engine->decoder().new_cache();
  const auto attempt = [&](auto change) {
    engine::DecoderInput input;
    input.embeds = &embeds;
    for (auto& axis : input.positions) axis = positions;
    change(input);
    EXPECT_THROW(engine->decoder().forward(input, *cache, engine::LogitsMode::kLast), Error);
    EXPECT_EQ(cache->length(), 0);
  };
  const Tensor wrong_width(DType::kF32, {3, 65});
  const Tensor wrong_type(DType::kBF16, {3, 64});
  const Tensor level = Tensor::zeros(DType::kF32, {1, 64});
  const std::vector<int64_t> two_rows = {0, 1};
  const std::vector<int64_t> outside = {3};
  attempt([&](engine::DecoderInput& i) { i.embeds = nullptr; });
  attempt([&](engine::DecoderInput& i) { i.embeds = &wrong_width; });
  attempt([&](engine::DecoderInput& i) { i.embeds = &wrong_type; });
  attempt([&](engine::DecoderInput& i) { i.positions[1] = std::span(positions).first(2); });
  attempt([&](engine::DecoderInput& i) {
    i.visual_rows = two_rows;
    i.deepstack = {&level, 1};
  });
  attempt([&](engine::DecoderInput& i) { i.visual_rows = outside; });
  const auto other = tiny_engine({engine::Precision::kBF16, "scalar"})->decoder().new_cache();
  engine::DecoderInput input;
  input.embeds = &embeds;
  for (auto& axis : input.positions) axis = positions;
  EXPECT_THROW(engine->decoder().forward(input, *other, engine::LogitsMode::kLast), Error);
}

}  // namespace
}  // namespace qvl::golden
