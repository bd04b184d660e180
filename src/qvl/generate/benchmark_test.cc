#include "qvl/generate/benchmark.h"

#include <gtest/gtest.h>

#include <limits>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"

namespace qvl::generate {
namespace {

using testing::FakeEngine;

std::string fault(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& e) {
    return std::string(error_code_name(e.code())) + ": " + e.what();
  }
  return "";
}

// Like the fake, with one thing wrong.
struct Flaws {
  bool nan_logits = false;        // somewhere in the prompt's
  bool deaf = false;              // logits do not depend on the prompt
  float decode_error = 0;         // added to every logit of a decode step
  int64_t chunk_error_above = 0;  // prompts computed in a chunk of more rows differ
  bool lonely_pictures = false;   // features depend on what else is in the call
  bool zero_features = false;
};

class FlawedDecoder final : public engine::DecoderStage {
 public:
  FlawedDecoder(const FakeEngine& fake, Flaws flaws) : fake_(fake), flaws_(flaws) {}
  std::unique_ptr<engine::KvCache> new_cache() const override { return fake_.decoder().new_cache(); }
  Tensor forward(const engine::DecoderInput& input, engine::KvCache& cache, engine::LogitsMode mode,
                 const engine::StageHooks& hooks) const override {
    Tensor out = fake_.decoder().forward(input, cache, mode, hooks);
    if (out.empty()) return out;
    auto v = out.as<float>();
    if (flaws_.deaf) std::ranges::fill(v, 1.0F);
    if (flaws_.nan_logits) v[3] = std::numeric_limits<float>::quiet_NaN();
    if (input.decode) {
      for (float& x : v) x += flaws_.decode_error;
    } else if (flaws_.chunk_error_above > 0 && input.embeds->dim(0) > flaws_.chunk_error_above) {
      v[0] += 1e-3F;
    }
    return out;
  }

 private:
  const FakeEngine& fake_;
  Flaws flaws_;
};

class FlawedVision final : public engine::VisionStage {
 public:
  FlawedVision(const FakeEngine& fake, Flaws flaws) : fake_(fake), flaws_(flaws) {}
  engine::VisionFeatures encode(std::span<const float> pixels, std::span<const image::Grid> grids,
                                const engine::StageHooks& hooks) const override {
    engine::VisionFeatures out = fake_.vision().encode(pixels, grids, hooks);
    if (flaws_.lonely_pictures && grids.size() > 1) out.deepstack[1].as<float>()[0] += 1;
    if (flaws_.zero_features) std::ranges::fill(out.merged.as<float>(), 0.0F);
    return out;
  }

 private:
  const FakeEngine& fake_;
  Flaws flaws_;
};

std::string text_fault(const Flaws& flaws, const ValidationLimits& limits = {}) {
  const FakeEngine fake;
  const FlawedDecoder decoder(fake, flaws);
  return fault([&] { validate_text(fake.embed(), decoder, fake.config(), limits); });
}

TraceInput picture() {
  TraceInput input;
  input.ids = {1, 62, 60, 60, 60, 60, 63, 2, 3};
  input.image_grids = {{1, 4, 4}};
  input.pixel_values = Tensor(DType::kF32, {16, 1536});
  float v = 0;
  for (float& x : input.pixel_values.as<float>()) x = v = v > 2 ? -1 : v + 0.01F;
  return input;
}

std::string vision_fault(const Flaws& flaws) {
  const FakeEngine fake;
  const FlawedVision vision(fake, flaws);
  return fault([&] { validate_vision(vision, fake.config().vision, picture(), {}); });
}

TEST(Validation, AcceptsAnEngineThatKeepsItsPromises) {
  EXPECT_EQ(text_fault({}), "");
  EXPECT_EQ(text_fault({}, {.chunk_error = 0, .decode_error = 0}), "");
  EXPECT_EQ(vision_fault({}), "");
}

TEST(Validation, NamesWhatIsWrong) {
  EXPECT_NE(text_fault({.nan_logits = true}).find("mismatch: [decoder] logits: expected finite"), std::string::npos)
      << text_fault({.nan_logits = true});
  EXPECT_NE(text_fault({.deaf = true}).find("two prompts"), std::string::npos);
  EXPECT_NE(text_fault({.chunk_error_above = 39}).find("whole and in chunks: expected the same bits"), std::string::npos)
      << text_fault({.chunk_error_above = 39});
  EXPECT_NE(text_fault({.decode_error = 10}).find("decoded and as part of the prompt"), std::string::npos)
      << text_fault({.decode_error = 10});
  EXPECT_NE(vision_fault({.lonely_pictures = true}).find("deepstack features 1 of a picture alone and beside another"),
            std::string::npos)
      << vision_fault({.lonely_pictures = true});
  EXPECT_NE(vision_fault({.zero_features = true}).find("expected features, got zeros"), std::string::npos);
  const FakeEngine fake;
  EXPECT_NE(fault([&] { validate_vision(fake.vision(), fake.config().vision, {.ids = {1}}, {}); }), "");
}

// The largest logit of the fake, in magnitude, is 100.
TEST(Validation, LimitsAreInUnitsOfTheLargestValue) {
  EXPECT_EQ(text_fault({.chunk_error_above = 39}, {.chunk_error = 0.01}), "");
  EXPECT_EQ(text_fault({.decode_error = 0.1F}, {.decode_error = 0.05}), "");
  EXPECT_NE(text_fault({.decode_error = 0.1F}, {.decode_error = 0.0005}), "");
}

TEST(Bench, SeriesTellMedianAndSpread) {
  const Series odd{{3, 1, 2}}, even{{4, 1, 2, 9}};
  EXPECT_EQ(odd.median(), 2);
  EXPECT_EQ(odd.fastest(), 1);
  EXPECT_EQ(odd.slowest(), 3);
  EXPECT_EQ(even.median(), 3);
}

TEST(Bench, VisionRunsOnceMoreThanItCounts) {
  const FakeEngine fake;
  std::vector<int64_t> told;
  const Series s = time_vision(fake.vision(), picture(), 4, [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 5);
    told.push_back(done);
    return true;
  });
  EXPECT_EQ(s.seconds.size(), 4u);
  EXPECT_EQ(fake.calls_.encodes, 5);
  EXPECT_EQ(told, (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_GT(s.fastest(), 0);
}

TEST(Bench, TextComputesTheLongestContextOnce) {
  const FakeEngine fake;
  const TextSeries s = time_text(fake.embed(), fake.decoder(), fake.config(),
                                 {.prompt_tokens = {20}, .contexts = {8, 50}, .decode_tokens = 3, .chunk_tokens = 16,
                                  .repeats = 2});
  // Warm-up of 32, twice 20, the context of 50: nothing for the context of 8.
  EXPECT_EQ(fake.calls_.prefill_chunks, (std::vector<int64_t>{16, 16, 16, 4, 16, 4, 16, 16, 16, 2}));
  EXPECT_EQ(fake.calls_.decode_steps, 2 * 2 * 3);  // counted anew since the last prefill
  ASSERT_EQ(s.prefill.size(), 1u);
  EXPECT_EQ(s.prefill[0].tokens, 20);
  EXPECT_EQ(s.prefill[0].seconds.seconds.size(), 2u);
  ASSERT_EQ(s.decode.size(), 2u);
  EXPECT_EQ(s.decode[0].context, 8);  // in the order asked for
  EXPECT_EQ(s.decode[1].context, 50);
  EXPECT_EQ(s.decode[0].tokens, 3);
  EXPECT_EQ(s.decode[1].seconds.seconds.size(), 2u);
  EXPECT_TRUE(s.decode[0].read_bytes_per_second.empty());
}

TEST(Bench, MemoryIsReadAroundEveryRunOfDecoding) {
  const FakeEngine fake;
  double rate = 0;
  const TextSeries s = time_text(fake.embed(), fake.decoder(), fake.config(),
                                 {.prompt_tokens = {20}, .contexts = {8, 50}, .decode_tokens = 3, .repeats = 2}, {},
                                 [&rate] { return rate += 1; });
  // From long to short: before, between and after two runs each.
  EXPECT_EQ(s.decode[1].read_bytes_per_second, (std::vector<double>{1.5, 2.5}));
  EXPECT_EQ(s.decode[0].read_bytes_per_second, (std::vector<double>{4.5, 5.5}));
}

TEST(Bench, RefusesWhatDoesNotFit) {
  FakeEngine fake;
  fake.config_.text.max_positions = 60;
  const auto run = [&](const TextBenchOptions& o) {
    return fault([&] { time_text(fake.embed(), fake.decoder(), fake.config(), o); });
  };
  EXPECT_EQ(run({.prompt_tokens = {60}, .contexts = {44}, .repeats = 1}), "");
  EXPECT_NE(run({.prompt_tokens = {61}, .contexts = {}}).find("limit: [bench] prompt: expected at most 60"),
            std::string::npos);
  EXPECT_NE(run({.prompt_tokens = {}, .contexts = {45}}).find("limit: [bench] context: expected at most 44"),
            std::string::npos);
  EXPECT_NE(run({.prompt_tokens = {0}}).find("invalid_argument"), std::string::npos);
  EXPECT_NE(run({.prompt_tokens = {8}, .contexts = {8}, .repeats = 0}).find("invalid_argument"), std::string::npos);
  EXPECT_NE(fault([&] {
              time_text(fake.embed(), fake.decoder(), fake.config(), {.prompt_tokens = {8}, .contexts = {8}},
                        [](int64_t done, int64_t) { return done < 2; });
            }).find("cancelled"),
            std::string::npos);
}

TEST(Bench, FirstTokenTakesTheWholeWay) {
  const auto fake = std::make_shared<FakeEngine>();
  image::RgbImage image{.width = 64, .height = 64, .rgb = std::vector<uint8_t>(64 * 64 * 3, 90)};
  image::ImageProcessorConfig processor;
  processor.min_pixels = 64 * 64;
  const Series s = time_to_first_token(fake, image, processor, picture(), 512, 2);
  EXPECT_EQ(s.seconds.size(), 2u);
  EXPECT_EQ(fake->calls_.encodes, 3);
  EXPECT_EQ(fake->calls_.encoded_patches, 3 * 16);
  EXPECT_EQ(fake->calls_.prefill_chunks, (std::vector<int64_t>{9, 9, 9}));
}

}  // namespace
}  // namespace qvl::generate
