#include "qvl/generate/assets.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "qvl/base/error.h"

namespace qvl::generate {
namespace {

const std::filesystem::path kSmall = std::filesystem::path(QVL_SOURCE_DIR) / "models/small";

TEST(Sampling, TheCheckpointDecidesUnlessTheUserDoes) {
  model::GenerationConfig published;
  published.do_sample = true;
  published.temperature = 0.7;
  published.top_p = 0.8;
  published.top_k = 20;
  published.presence_penalty = 1.5;
  SamplingParams p = resolve_sampling(published, {});
  EXPECT_FALSE(p.greedy);
  EXPECT_EQ(p.temperature, 0.7);
  EXPECT_EQ(p.top_k, 20);
  EXPECT_EQ(p.top_p, 0.8);
  EXPECT_EQ(p.presence_penalty, 1.5);
  p = resolve_sampling(published, {.greedy = true});
  EXPECT_TRUE(p.greedy);
  p = resolve_sampling(published, {.temperature = 0.2, .top_k = 0, .min_p = 0.1});
  EXPECT_EQ(p.temperature, 0.2);
  EXPECT_EQ(p.top_k, 0);
  EXPECT_EQ(p.min_p, 0.1);
  EXPECT_EQ(p.top_p, 0.8);
}

TEST(Sampling, AGreedyCheckpointSamplesWhenAskedTo) {
  const model::GenerationConfig quiet;
  EXPECT_TRUE(resolve_sampling(quiet, {}).greedy);
  EXPECT_TRUE(resolve_sampling(quiet, {.repetition_penalty = 1.1}).greedy);
  EXPECT_FALSE(resolve_sampling(quiet, {.temperature = 0.5}).greedy);
  EXPECT_FALSE(resolve_sampling(quiet, {.top_p = 0.5}).greedy);
  EXPECT_TRUE(resolve_sampling(quiet, {.temperature = 0.0}).greedy);
  EXPECT_THROW(resolve_sampling(quiet, {.greedy = true, .temperature = 0.5}), Error);
  EXPECT_THROW(resolve_sampling(quiet, {.top_p = 1.5}), Error);
}

TEST(Assets, TheSmallModelFitsTogether) {
  const model::ModelConfig config = model::ModelConfig::load(kSmall);
  const Assets assets = Assets::load(kSmall, config);
  EXPECT_EQ(assets.end_ids, assets.generation.eos_token_ids);
  EXPECT_NE(
      std::find(assets.end_ids.begin(), assets.end_ids.end(), assets.tokenizer.require_token("<|im_end|>")),
      assets.end_ids.end());
  EXPECT_NE(std::find(assets.end_ids.begin(), assets.end_ids.end(),
                      assets.tokenizer.require_token("<|endoftext|>")),
            assets.end_ids.end());
}

TEST(Assets, AForeignTokenizerOrGeometryIsRefused) {
  const model::ModelConfig good = model::ModelConfig::load(kSmall);
  model::ModelConfig config = good;
  config.image_token_id = 151655;
  EXPECT_THROW(Assets::load(kSmall, config), Error);
  config = good;
  config.text.vocab_size = 100;
  EXPECT_THROW(Assets::load(kSmall, config), Error);
  config = good;
  config.vision.patch_size = 14;
  EXPECT_THROW(Assets::load(kSmall, config), Error);
}

}  // namespace
}  // namespace qvl::generate
