// The model that ships, from picture file to tokens, through both engines and their mixes, against the
// reference library's own greedy tokens on 50 prompts (tests/fixtures/small/greedy.json, written by
// tools/small/make_fixtures.py).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "golden.h"
#include "qvl/base/json.h"
#include "qvl/generate/pipeline.h"

namespace qvl::golden {
namespace {

// In bf16 two implementations round sums of thousands of products in different orders, so logits of the same
// prompt differ by a few bf16 steps (spec B: 3.5 % of the largest). A token counts as equal when it is our
// best, or within this share of the largest logit of our best.
constexpr float kBf16Noise = 0.02f;
// What an int8 KV cache adds to that, and all there is in float32.
constexpr float kInt8CacheNoise = 0.02f;

const Json& fixture() {
  static const Json json = parse_json_file(QVL_SOURCE_DIR "/tests/fixtures/small/greedy.json");
  return json;
}

std::vector<generate::ChatMessage> conversation(const Json& messages, generate::Pipeline& pipeline) {
  std::vector<generate::ChatMessage> result;
  for (const Json& m : messages) {
    generate::ChatMessage message;
    message.message.role = text::parse_role(m.at("role").get<std::string>());
    const Json& content = m.at("content");
    if (content.is_string()) {
      message.message.parts.push_back(text::ContentPart::make_text(content.get<std::string>()));
    } else {
      for (const Json& part : content) {
        if (part.at("type") == "image") {
          generate::VisualInput input;
          input.path = std::string(QVL_SOURCE_DIR "/") + part.at("image").get<std::string>();
          message.visuals.push_back(pipeline.load(input));
          message.message.parts.push_back(text::ContentPart::image());
        } else {
          message.message.parts.push_back(text::ContentPart::make_text(part.at("text").get<std::string>()));
        }
      }
    }
    result.push_back(std::move(message));
  }
  return result;
}

class SmallModel : public testing::TestWithParam<Variant> {};

TEST_P(SmallModel, GreedyTokensEqualTheReference) {
  const Variant& variant = GetParam();
  const bool f32 = variant.precision == engine::Precision::kF32;
  const bool int8_cache = variant.kv == engine::KvType::kInt8;
  const float noise = (f32 ? 0.0f : kBf16Noise) + (int8_cache ? kInt8CacheNoise : 0.0f);
  const auto engine = open_small(variant);
  const auto assets =
      std::make_shared<const generate::Assets>(generate::Assets::load(small_model_path(), engine->config()));
  generate::Pipeline pipeline(engine, assets,
                              std::make_shared<generate::ImageMemory>(generate::kDefaultImageMemoryBytes));

  ASSERT_EQ(fixture().at("cases").size(), 50u);
  int exact = 0;
  for (const Json& c : fixture().at("cases")) {
    const std::string name = c.at("kind").get<std::string>() + ": " + c.at("text").get<std::string>();
    const auto chat = conversation(c.at("messages"), pipeline);
    const generate::Prompt made = pipeline.make_prompt(chat, {});
    const auto expected_ids = c.at("input_ids").get<std::vector<int32_t>>();
    ASSERT_EQ(made.ids, expected_ids) << name;
    const auto tokens = c.at(f32 ? "f32" : "bf16").at("tokens").get<std::vector<int32_t>>();

    // The prompt, then the reference's tokens one by one: every step is compared, also after a near tie.
    Prompt prompt;
    prompt.ids = made.ids;
    std::vector<image::Grid> grids;
    std::vector<engine::VisionFeatures> parts;
    engine::VisionFeatures images;
    int64_t rows = 0;
    for (const auto& message : chat) {
      for (const auto& visual : message.visuals) {
        const Tensor& pixels = pipeline.pixels(*visual);
        const image::Grid grid = visual->info().grid;
        grids.push_back(grid);
        parts.push_back(engine->vision().encode(pixels.as<float>(), {&grid, 1}));
        rows += parts.back().merged.dim(0);
      }
    }
    if (!parts.empty()) {
      const auto join = [&](auto member) {
        const Tensor& first = member(parts[0]);
        Tensor all(first.dtype(), {rows, first.dim(1)});
        auto* out = static_cast<std::byte*>(all.data());
        for (auto& p : parts) {
          std::memcpy(out, member(p).data(), member(p).size_bytes());
          out += member(p).size_bytes();
        }
        return all;
      };
      images.merged = join([](engine::VisionFeatures& f) -> Tensor& { return f.merged; });
      for (size_t j = 0; j < parts[0].deepstack.size(); ++j) {
        images.deepstack.push_back(
            join([j](engine::VisionFeatures& f) -> Tensor& { return f.deepstack[j]; }));
      }
    }
    const model::ModelConfig& config = engine->config();
    prompt.positions = model::mrope_positions(config, prompt.ids, grids, {});
    prompt.embeds = engine->embed().embed(prompt.ids);
    prompt.visual = engine::place_visual_features(prompt.ids, config.image_token_id, config.video_token_id,
                                                  parts.empty() ? nullptr : &images, nullptr, prompt.embeds);
    const int64_t length = static_cast<int64_t>(prompt.ids.size());
    const auto cache = engine->decoder().new_cache();
    Tensor logits = feed(*engine, prompt, 0, length, *cache, engine::LogitsMode::kLast);
    bool same = true;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto l = logits.as<float>();
      const int32_t best = argmax(l);
      if (best != tokens[i]) {
        same = false;
        const float largest = std::fabs(*std::max_element(
            l.begin(), l.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); }));
        const float gap = l[static_cast<size_t>(best)] - l[static_cast<size_t>(tokens[i])];
        EXPECT_LE(gap, noise * largest) << name << " step " << i << " token " << best;
      }
      logits = step(*engine, tokens[i], length + static_cast<int64_t>(i) + prompt.positions.delta, *cache);
    }
    exact += same;
  }
  EXPECT_GE(exact, f32 && !int8_cache ? 50 : 45) << "answers of 50 that are equal token by token";
  RecordProperty("exact_answers", exact);
}

INSTANTIATE_TEST_SUITE_P(Golden, SmallModel, testing::ValuesIn(small_variants()),
                         [](const testing::TestParamInfo<Variant>& p) { return variant_name(p.param); });

}  // namespace
}  // namespace qvl::golden
