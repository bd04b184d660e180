#include "qvl/generate/trace.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"
#include "qvl/generate/session.h"

namespace qvl::generate {
namespace {

using testing::FakeEngine;

Tensor pixels(int64_t rows, float base) {
  Tensor t(DType::kF32, {rows, 1536});
  for (float& v : t.as<float>()) v = base += 0.001F;
  return t;
}

const Tensor& find(const std::vector<TracedTensor>& all, std::string_view name) {
  for (const auto& t : all)
    if (t.name == name) return t.value;
  ADD_FAILURE() << name;
  static const Tensor none;
  return none;
}

// Images and videos interleaved: their features must go to their own placeholders, in both paths.
TEST(Trace, AgreesWithTheSession) {
  auto engine = std::make_shared<FakeEngine>();
  TraceInput input;
  input.ids = {1, 62, 61, 61, 63, 2, 62, 60, 60, 60, 60, 63, 3, 62, 61, 61, 63, 4, 62, 60, 60, 63, 5};
  input.image_grids = {{1, 4, 4}, {1, 2, 4}};
  input.video_grids = {{2, 2, 4}};
  input.pixel_values = pixels(24, 1);
  input.pixel_values_videos = pixels(16, 100);
  const auto traced = trace_prefill(*engine, input, {.greedy_tokens = 9});

  EXPECT_EQ(find(traced, "input_ids").shape(), (Shape{23}));
  EXPECT_EQ(find(traced, "input_ids").dtype(), DType::kI64);
  EXPECT_EQ(find(traced, "pixel_values").shape(), (Shape{24, 1536}));
  EXPECT_EQ(find(traced, "image_grid_thw").shape(), (Shape{2, 3}));
  EXPECT_EQ(find(traced, "video_grid_thw").shape(), (Shape{1, 3}));
  EXPECT_EQ(find(traced, "vision.merged").shape(), (Shape{10, 8}));
  EXPECT_EQ(find(traced, "vision.deepstack1").shape(), (Shape{10, 8}));
  EXPECT_EQ(find(traced, "position_ids").shape(), (Shape{3, 23}));
  EXPECT_EQ(find(traced, "inputs_embeds").shape(), (Shape{23, 8}));
  EXPECT_EQ(find(traced, "logits").shape(), (Shape{23, 64}));
  EXPECT_EQ(find(traced, "greedy_tokens").shape(), (Shape{9}));

  Prompt prompt{.ids = input.ids, .visuals = {}};
  auto visual = [&](bool video, image::Grid grid, std::span<const float> values) {
    prompt.visuals.push_back({.is_video = video,
                              .grid = grid,
                              .key = std::to_string(prompt.visuals.size()),
                              .features = std::make_shared<engine::VisionFeatures>(
                                  engine->vision().encode(values, std::span(&grid, 1), {}))});
  };
  visual(true, {2, 2, 4}, input.pixel_values_videos.as<float>());
  visual(false, {1, 4, 4}, input.pixel_values.as<float>().first(16 * 1536));
  visual(false, {1, 2, 4}, input.pixel_values.as<float>().subspan(16 * 1536));
  Session session(engine, 5);
  session.prefill(prompt);
  const auto said =
      session.generate({.sampling = {.greedy = true}, .max_tokens = 9}, [](int32_t) { return true; }).ids;
  const auto tokens = find(traced, "greedy_tokens").as<int64_t>();
  EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), said.begin(), said.end()));
}

TEST(Trace, StepsFollowTheTokensOfAnother) {
  const FakeEngine engine;
  const std::vector<int32_t> prompt = {1, 2, 3};
  const auto own = trace_prefill(engine, {.ids = prompt}, {.greedy_tokens = 3, .decode_logits = true});
  ASSERT_EQ(find(own, "decode_logits").shape(), (Shape{2, 64}));
  const auto tokens = find(own, "greedy_tokens").as<int64_t>();
  const std::vector<int64_t> other = {(tokens[0] + 1) % 50, (tokens[1] + 2) % 50, 9};
  const auto traced =
      trace_prefill(engine, {.ids = prompt}, {.greedy_tokens = 3, .decode_logits = true, .follow = other});
  EXPECT_EQ(find(traced, "greedy_tokens").as<int64_t>()[0], tokens[0]);  // still its own choice
  // A step's logits are those of the prompt with these tokens behind it.
  std::vector<int32_t> longer = prompt;
  for (size_t i = 0; i < 2; ++i) {
    longer.push_back(static_cast<int32_t>(other[i]));
    const auto whole = trace_prefill(engine, {.ids = longer}, {});
    const auto want = find(whole, "logits").as<float>().last(64);
    const auto got = find(traced, "decode_logits").as<float>().subspan(i * 64, 64);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), got.begin())) << i;
  }
}

TEST(Trace, TextAloneHasNoVisionTensors) {
  const FakeEngine engine;
  const auto traced = trace_prefill(engine, {.ids = {1, 2, 3}}, {.greedy_tokens = 0});
  for (const auto& t : traced) {
    EXPECT_EQ(t.name.find("vision"), std::string::npos);
    EXPECT_EQ(t.name.find("pixel"), std::string::npos);
  }
  EXPECT_EQ(find(traced, "greedy_tokens").shape(), (Shape{0}));
}

TEST(Trace, WhatDoesNotFitIsRefused) {
  FakeEngine engine;
  EXPECT_THROW(trace_prefill(engine, {}, {.greedy_tokens = 1}), Error);
  EXPECT_THROW(trace_prefill(engine, {.ids = {1, 60, 2}}, {.greedy_tokens = 1}), Error);  // a placeholder without picture
  TraceInput input;
  input.ids = {1, 62, 60, 63};
  input.image_grids = {{1, 2, 2}};
  EXPECT_THROW(trace_prefill(engine, input, {.greedy_tokens = 1}), Error);  // a grid without pixels
  input.pixel_values = pixels(8, 0);
  EXPECT_THROW(trace_prefill(engine, input, {.greedy_tokens = 1}), Error);  // twice the rows
  input.pixel_values = pixels(4, 0);
  EXPECT_NO_THROW(trace_prefill(engine, input, {.greedy_tokens = 1}));
  input.image_grids = {{1, 3, 2}};
  EXPECT_THROW(trace_prefill(engine, input, {.greedy_tokens = 1}), Error);
  input.image_grids = {{-1, -2, 2}};
  EXPECT_THROW(trace_prefill(engine, input, {.greedy_tokens = 1}), Error);
  engine.config_.text.max_positions = 3;
  EXPECT_THROW(trace_prefill(engine, {.ids = {1, 2, 3, 4}}, {.greedy_tokens = 1}), Error);
  EXPECT_EQ(find(trace_prefill(engine, {.ids = {1, 2}}, {.greedy_tokens = 9}), "greedy_tokens").dim(0),
            2);  // the context ends it
}

}  // namespace
}  // namespace qvl::generate
