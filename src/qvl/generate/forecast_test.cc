#include "qvl/generate/forecast.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"
#include "qvl/generate/workload.h"
#include "qvl/model/public_shapes.h"

namespace qvl::generate {
namespace {

// 500 and 400 GOPS of products, 100 and 50 of attention, 20 GB/s.
SpeedProfile steady() {
  return {.vision_linear_s = 1 / 500e9,
          .vision_attention_s = 1 / 100e9,
          .vision_weight_s = 1 / 5e9,
          .prefill_linear_s = 1 / 400e9,
          .prefill_attention_s = 1 / 50e9,
          .prefill_weight_s = 1 / 10e9,
          .decode_byte_s = 1 / 20e9,
          .decode_weight_bytes = 2'600'000'000,
          .element_bytes = 2};
}

Question photo() {
  return {.pictures = {{768, 1024}}, .text_tokens = 13, .answer_tokens = 100, .preprocess_seconds = 0.02};
}

Forecast predict(const Question& question, const image::ImageProcessorConfig& processor = {}) {
  static const model::ModelConfig config = model::public_config("4b");
  return forecast(config, steady(), {.base_bytes = 100, .vision_weight_bytes = 800'000'000, .text_weight_bytes = 2'600'000'000},
                  question, processor);
}

TEST(Forecast, FollowsFromTheProfile) {
  Question question = photo();
  question.prefill_chunk = 512;
  const Forecast f = predict(question);
  EXPECT_EQ(f.patches, 3072);
  EXPECT_EQ(f.image_tokens, 768);
  EXPECT_EQ(f.prompt_tokens, 781);
  const image::Grid grid{1, 48, 64};
  const model::ModelConfig config = model::public_config("4b");
  const Operations vision = vision_operations(config.vision, {&grid, 1});
  // Blocks (four squares and the MLP), four mergers, the patch embedding.
  const double weights = 24.0 * 1024 * (4 * 1024 + 2 * 4096) + 4.0 * 4096 * (4096 + 2560) + 1536.0 * 1024;
  EXPECT_DOUBLE_EQ(f.vision_seconds, vision.linear / 500e9 + vision.attention / 100e9 + weights / 5e9);
  // 781 tokens: two calls, of 512 and of 269.
  const Operations prefill = prefill_operations(config.text, 781);
  const double layers = 36.0 * 2560 * (2 * 4096 + 2 * 1024 + 3 * 9728), head = 151936.0 * 2560;
  EXPECT_NEAR(f.prefill_seconds, prefill.linear / 400e9 + prefill.attention / 50e9 + (2 * layers + head) / 10e9, 1e-9);
  // One call of 781 unpacks the weights once.
  EXPECT_NEAR(predict(photo()).prefill_seconds, f.prefill_seconds - layers / 10e9, 1e-9);
  EXPECT_DOUBLE_EQ(f.first_token_seconds, 0.02 + f.vision_seconds + f.prefill_seconds);
  EXPECT_NEAR(f.tokens_per_second, 20e9 / (2.6e9 + 832 * 147456), 1e-6);
  EXPECT_NEAR(f.answer_seconds, f.first_token_seconds + 99 / f.tokens_per_second, 1e-9);
  // Text weights, keys and values of four blocks, features; all of the vision's is less.
  EXPECT_GT(f.peak_bytes, 2'600'000'000 + 1024 * 147456);
  EXPECT_LT(f.peak_bytes, 2'900'000'000);
}

TEST(Forecast, KeysAndValuesTakeWhatTheirTypeTakes) {
  const model::ModelConfig config = model::public_config("4b");
  const auto with = [&](DType cache) {
    return forecast(config, steady(), {.text_weight_bytes = 2'600'000'000, .kv_dtype = cache}, photo(), {});
  };
  const Forecast bf16 = with(DType::kBF16), int8 = with(DType::kI8);
  EXPECT_EQ(bf16.kv_bytes, 1024 * 147456);
  EXPECT_EQ(int8.kv_bytes, 1024 * 76032);
  EXPECT_EQ(bf16.peak_bytes - int8.peak_bytes, 1024 * (147456 - 76032));
  EXPECT_NEAR(int8.tokens_per_second, 20e9 / (2.6e9 + 832 * 76032), 1e-6);
}

TEST(Forecast, MemoryIsThatOfTheLargerPhase) {
  Question question = photo();
  question.pictures = {{4000, 4000}};
  const Forecast large = predict(question);
  EXPECT_EQ(large.patches, 62500);
  // Pixels, five times the width of the encoder and the rest of 62,500 patches.
  EXPECT_GT(large.peak_bytes, 2'600'000'000 + 2'000'000'000);
  question.pictures.clear();
  EXPECT_EQ(predict(question).vision_seconds, 0);
  EXPECT_EQ(predict(question).prompt_tokens, 13);
}

TEST(Plan, GivesTheLargestPicturesThatFit) {
  const Question question = photo();
  const image::ImageProcessorConfig processor;
  const auto at = [&](const image::ImageProcessorConfig& c) { return predict(question, c); };
  const double full = predict(question).first_token_seconds;

  const Plan enough = plan_pictures({.seconds = full + 0.01}, processor, at);
  EXPECT_FALSE(enough.reduced);
  EXPECT_EQ(enough.max_pixels, processor.max_pixels);

  const Plan half = plan_pictures({.seconds = full / 2}, processor, at);
  EXPECT_TRUE(half.reduced);
  EXPECT_LE(half.chosen.first_token_seconds, full / 2);
  EXPECT_EQ(half.full.patches, 3072);
  EXPECT_LT(half.chosen.patches, 3072);
  EXPECT_GT(half.chosen.patches, 1200);
  // What the processor then makes of it is what was planned, and the next size up would not fit.
  image::ImageProcessorConfig bounded = processor;
  bounded.max_pixels = half.max_pixels;
  EXPECT_EQ(predict(question, bounded).resized, half.chosen.resized);
  bounded.max_pixels = half.max_pixels + 2 * 32 * 32;
  const Forecast next = predict(question, bounded);
  EXPECT_TRUE(next.first_token_seconds > full / 2 || next.resized == half.chosen.resized);
}

TEST(Plan, KeepsBothBudgets) {
  Question question = photo();
  question.pictures = {{4000, 4000}, {2000, 1000}};
  const image::ImageProcessorConfig processor;
  const auto at = [&](const image::ImageProcessorConfig& c) { return predict(question, c); };
  const Plan plan = plan_pictures({.seconds = 1000, .bytes = 2'950'000'000}, processor, at);
  EXPECT_TRUE(plan.reduced);
  EXPECT_LE(plan.chosen.peak_bytes, 2'950'000'000);
  ASSERT_EQ(plan.chosen.resized.size(), 2u);
  const Plan tighter = plan_pictures({.seconds = 20, .bytes = 2'950'000'000}, processor, at);
  EXPECT_LE(tighter.chosen.first_token_seconds, 20);
  EXPECT_LE(tighter.chosen.patches, plan.chosen.patches);
}

TEST(Plan, SaysWhatTheSmallestTakes) {
  const Question question = photo();
  try {
    plan_pictures({.seconds = 0.1, .bytes = 1000}, {}, [&](const auto& c) { return predict(question, c); });
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kLimit);
    const std::string what = e.what();
    EXPECT_NE(what.find("expected 0.1 s and 0 MB"), std::string::npos) << what;
    EXPECT_NE(what.find("s to the first token and"), std::string::npos) << what;
  }
}

ProfileSample sample(double linear, double attention, double weights, const WorkRates& rates) {
  return {.linear = linear,
          .attention = attention,
          .weights = weights,
          .seconds = linear * rates.linear + attention * rates.attention + weights * rates.weights};
}

TEST(SpeedProfile, FindsTheRatesOfSamples) {
  // A layer of the 4B on 32, 256 and 2,048 tokens.
  const WorkRates rates{1.4e-12, 4e-12, 7e-11};
  std::vector<ProfileSample> samples = {sample(6.46e9, 8.65e6, 1.009e8, rates), sample(51.7e9, 5.39e8, 1.009e8, rates),
                                        sample(413e9, 34.4e9, 1.009e8, rates)};
  const WorkRates found = fit_rates(samples);
  EXPECT_NEAR(found.linear, rates.linear, 1e-6 * rates.linear);
  EXPECT_NEAR(found.attention, rates.attention, 1e-6 * rates.attention);
  EXPECT_NEAR(found.weights, rates.weights, 1e-6 * rates.weights);
  // The largest in a fast moment would make attention faster than nothing: no rate is negative, the samples stay explained.
  samples[2].seconds *= 0.75;
  const WorkRates noisy = fit_rates(samples);
  EXPECT_EQ(noisy.attention, 0);
  EXPECT_GT(noisy.linear, 0);
  EXPECT_GT(noisy.weights, 0);
  for (const ProfileSample& s : samples)
    EXPECT_NEAR(s.linear * noisy.linear + s.weights * noisy.weights, s.seconds, 0.1 * s.seconds);
}

TEST(SpeedProfile, FewerSamplesHaveFewerRates) {
  const WorkRates two{2, 0, 3};
  const WorkRates found = fit_rates(std::array{sample(10, 1, 5, two), sample(100, 40, 5, two)});
  EXPECT_NEAR(found.linear, 2, 1e-9);
  EXPECT_EQ(found.attention, 0);
  EXPECT_NEAR(found.weights, 3, 1e-9);
  const WorkRates same = fit_rates(std::array{sample(10, 1, 5, two), sample(20, 2, 10, two)});  // one mixture twice
  EXPECT_NEAR(same.linear, 3.5, 1e-9);
  EXPECT_EQ(same.attention + same.weights, 0);
  EXPECT_THROW(fit_rates({}), Error);
  EXPECT_THROW(fit_rates(std::array{sample(10, 1, 5, two), ProfileSample{.linear = 1}}), Error);
  EXPECT_THROW(fit_rates(std::array{ProfileSample{.seconds = 1}}), Error);
}

TEST(SpeedProfile, ReturnsFromJsonAsItWent) {
  const SpeedProfile a = steady();
  const SpeedProfile b = SpeedProfile::from_json(parse_json(a.to_json().dump(), "test"), "test");
  EXPECT_EQ(b.to_json(), a.to_json());
  Json json = a.to_json();
  json.erase("decode_byte_s");
  EXPECT_THROW(SpeedProfile::from_json(json, "test"), Error);
  json["decode_byte_s"] = -1;
  EXPECT_THROW(SpeedProfile::from_json(json, "test"), Error);
  EXPECT_THROW(SpeedProfile::from_json(Json::array(), "test"), Error);
}

TEST(SpeedProfile, MeasuresAnyEngineAndCanBeStopped) {
  testing::FakeEngine fake;
  const SpeedProfile p = measure_speed_profile(fake, 1000);
  EXPECT_GT(p.vision_linear_s + p.vision_attention_s + p.vision_weight_s, 0);
  EXPECT_GT(p.prefill_linear_s + p.prefill_attention_s + p.prefill_weight_s, 0);
  EXPECT_GT(p.decode_part_s, 0);
  EXPECT_GT(p.decode_byte_s, 0);
  EXPECT_EQ(p.element_bytes, 4);
  int calls = 0;
  try {
    measure_speed_profile(fake, 1000, [&](int64_t, int64_t) { return ++calls < 20; });
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kCancelled);
  }
}

TEST(SpeedProfile, MeasuresAStageWithLittleRoom) {
  testing::FakeEngine fake;
  const auto limited = [&fake](ErrorCode code) {
    fake.on_prefill_ = [&fake, code] {
      if (fake.calls_.prefill_chunks.back() > 256) fail(code, "fake", "room");
    };
  };
  limited(ErrorCode::kLimit);
  EXPECT_GT(measure_speed_profile(fake, 1000).prefill_linear_s, 0);
  EXPECT_GT(std::ranges::max(fake.calls_.prefill_chunks), 256);
  limited(ErrorCode::kIo);
  EXPECT_THROW(measure_speed_profile(fake, 1000), Error);
}

// A decoder that tells when its layers begin.
class LayeredEngine final : public engine::Engine {
 public:
  explicit LayeredEngine(int layers) : decoder_(this) { fake_.config_.text.num_layers = layers; }
  const model::ModelConfig& config() const override { return fake_.config(); }
  const engine::EngineInfo& info() const override { return fake_.info(); }
  const engine::VisionStage& vision() const override { return fake_.vision(); }
  const engine::EmbedStage& embed() const override { return fake_.embed(); }
  const engine::DecoderStage& decoder() const override { return decoder_; }
  ThreadPool& pool() const override { return fake_.pool(); }

  mutable std::vector<int> layers_begun_;  // of each call
  mutable std::vector<int64_t> contexts_;
  bool broken_ = false;

 private:
  struct Decoder final : engine::DecoderStage {
    explicit Decoder(const LayeredEngine* owner) : owner_(owner) {}
    std::unique_ptr<engine::KvCache> new_cache() const override { return owner_->fake_.decoder().new_cache(); }
    Tensor forward(const engine::DecoderInput& input, engine::KvCache& cache, engine::LogitsMode mode,
                   const engine::StageHooks& hooks) const override {
      owner_->contexts_.push_back(cache.length());
      owner_->layers_begun_.push_back(0);
      const int layers = owner_->config().text.num_layers;
      for (int i = 0; i < layers; ++i) {
        if (owner_->broken_) fail(ErrorCode::kCancelled, "layered", "somebody else's");
        if (!hooks.progress(i, layers)) fail(ErrorCode::kCancelled, "layered", "stopped");
        ++owner_->layers_begun_.back();
      }
      Tensor out = owner_->fake_.decoder().forward(input, cache, mode, {});
      hooks.progress(layers, layers);
      return out;
    }
    const LayeredEngine* owner_;
  };
  testing::FakeEngine fake_;
  Decoder decoder_;
};

TEST(SpeedProfile, DecodingIsMeasuredAgainOnAPartOfTheWeights) {
  const auto all_are = [](const auto& counts, int64_t n) {
    return counts.size() >= 6 && std::ranges::all_of(counts, [n](int64_t count) { return count == n; });
  };
  LayeredEngine large(36);  // of 64 MB each: four are enough
  EXPECT_GT(measure_decode_part(large, 36 * int64_t{64'000'000}), 0);
  EXPECT_TRUE(all_are(large.layers_begun_, 4));
  EXPECT_TRUE(all_are(large.contexts_, 0));
  LayeredEngine small(36);
  EXPECT_GT(measure_decode_part(small, 1000), 0);
  EXPECT_TRUE(all_are(small.layers_begun_, 36));
  EXPECT_TRUE(all_are(small.contexts_, 0));
  small.broken_ = true;
  EXPECT_THROW(measure_decode_part(small, 1000), Error);
}

TEST(SpeedProfile, DecodingFollowsThePartThatWasMeasured) {
  const testing::FakeEngine fake;
  SpeedProfile kept = steady();
  kept.decode_part_s = 1e6;  // a very slow moment
  const SpeedProfile now = with_decoding_now(kept, fake);
  EXPECT_LT(now.decode_part_s, 1e3);
  EXPECT_NEAR(now.decode_byte_s / now.decode_part_s, kept.decode_byte_s / kept.decode_part_s,
              1e-9 * kept.decode_byte_s / kept.decode_part_s);
  EXPECT_EQ(now.vision_linear_s, kept.vision_linear_s);
  kept.decode_part_s = 0;  // unknown
  EXPECT_EQ(with_decoding_now(kept, fake).decode_byte_s, kept.decode_byte_s);
}

}  // namespace
}  // namespace qvl::generate
