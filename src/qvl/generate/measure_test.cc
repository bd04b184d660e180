#include "qvl/generate/measure.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"

namespace qvl::generate {
namespace {

TraceInput picture_prompt() {
  TraceInput input;
  input.ids = {1, 62, 60, 60, 63, 2, 3};
  input.image_grids = {{1, 2, 4}};
  input.pixel_values = Tensor::zeros(DType::kF32, {8, 1536});
  return input;
}

TEST(Measure, VisionRunsAtLeastThreeTimesAndCountsPatches) {
  const testing::FakeEngine engine;
  const VisionSpeed speed = measure_vision(engine.vision(), picture_prompt(), 0);
  EXPECT_EQ(engine.calls_.encodes, 3);
  EXPECT_EQ(engine.calls_.encoded_patches, 3 * 8);
  EXPECT_EQ(speed.patches, 8);
  EXPECT_GT(speed.seconds, 0);
  EXPECT_DOUBLE_EQ(speed.patches_per_s(), 8 / speed.seconds);
  EXPECT_THROW(measure_vision(engine.vision(), {.ids = {1}}, 0), Error);
}

TEST(Measure, TextPrefillsThePromptAndDecodesTheRest) {
  testing::FakeEngine engine;
  const TextSpeed speed =
      measure_text(engine.embed(), engine.decoder(), engine.config(), picture_prompt(), 5);
  EXPECT_EQ(speed.prompt_tokens, 7);
  EXPECT_EQ(speed.decoded_tokens, 4);  // the first one is the prefill's
  // One token and then the prompt; the fake starts counting steps anew with each prefill.
  EXPECT_EQ(engine.calls_.prefill_chunks, (std::vector<int64_t>{1, 7}));
  EXPECT_EQ(engine.calls_.decode_steps, 4);
  EXPECT_GT(speed.prefill_tokens_per_s(), 0);
  EXPECT_GT(speed.decode_tokens_per_s(), 0);
  engine.config_.text.max_positions = 11;
  EXPECT_THROW(measure_text(engine.embed(), engine.decoder(), engine.config(), picture_prompt(), 5), Error);
  EXPECT_NO_THROW(measure_text(engine.embed(), engine.decoder(), engine.config(), picture_prompt(), 4));
}

}  // namespace
}  // namespace qvl::generate
