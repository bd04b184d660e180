#include "qvl/generate/forecast.h"

#include <gtest/gtest.h>

#include <limits>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"
#include "qvl/generate/workload.h"
#include "qvl/model/public_shapes.h"

namespace qvl::generate {
namespace {

// 500 GOPS of products, 100 of attention, 20 GB/s.
SpeedProfile steady() {
  return {.vision_linear_s = 1 / 500e9,
          .vision_attention_s = 1 / 100e9,
          .prefill_linear_s = 1 / 400e9,
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
  EXPECT_DOUBLE_EQ(f.vision_seconds, vision.linear / 500e9 + vision.attention / 100e9);
  // 781 tokens: two calls, of 512 and of 269.
  const Operations prefill = prefill_operations(config.text, 781);
  const double layers = 36.0 * 2560 * (2 * 4096 + 2 * 1024 + 3 * 9728), head = 151936.0 * 2560;
  EXPECT_NEAR(f.prefill_seconds, prefill.linear / 400e9 + prefill.attention / 100e9 + (2 * layers + head) / 10e9, 1e-9);
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

TEST(SpeedProfile, SolvesForTwoRates) {
  const Pair p = solve_rates(10, 1, 10 * 2 + 1 * 3, 100, 40, 100 * 2 + 40 * 3);
  EXPECT_NEAR(p.x, 2, 1e-12);
  EXPECT_NEAR(p.y, 3, 1e-12);
  // Noise: no negative rates, and the second sample is explained.
  const Pair q = solve_rates(10, 1, 30, 100, 40, 200);
  EXPECT_EQ(q.y, 0);
  EXPECT_DOUBLE_EQ(q.x * 100 + q.y * 40, 200);
  const Pair r = solve_rates(10, 1, 1, 100, 40, 400);
  EXPECT_EQ(r.x, 0);
  EXPECT_DOUBLE_EQ(r.y * 40, 400);
  EXPECT_DOUBLE_EQ(solve_rates(10, 1, 20, 20, 2, 40).x, 2);  // the same mixture twice
  EXPECT_THROW(solve_rates(0, 1, 1, 1, 1, 1), Error);
  EXPECT_THROW(solve_rates(1, 1, 0, 1, 1, 1), Error);
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
  EXPECT_GT(p.vision_linear_s + p.vision_attention_s, 0);
  EXPECT_GT(p.prefill_linear_s + p.prefill_weight_s, 0);
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

}  // namespace
}  // namespace qvl::generate
