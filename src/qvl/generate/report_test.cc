// The contract of `qvl run --json`, key by key and in order.
#include "qvl/generate/report.h"

#include <gtest/gtest.h>

namespace qvl::generate {
namespace {

std::vector<std::string> keys(const Json& object) {
  std::vector<std::string> out;
  for (const auto& [key, value] : object.items()) out.push_back(key);
  return out;
}

using Keys = std::vector<std::string>;

TEST(Report, HasExactlyTheKeysOfTheContract) {
  Answer a;
  a.text = "Rot \"und\" grün\n";
  a.token_ids = {5, 6, 7};
  a.reason = FinishReason::kLength;
  a.prompt_tokens = 100;
  a.image_tokens = 70;
  a.cached_tokens = 20;
  a.visuals.push_back(
      {.info = {.grid = {1, 14, 20}, .width = 96, .height = 64, .resized_width = 320, .resized_height = 224},
       .tokens = 70,
       .encode_ms = 12.34567,
       .cached = false});
  a.preprocess_ms = 1;
  a.vision_ms = 20;
  a.vision_patches = 280;
  a.prefill_ms = 40;
  a.ttft_ms = 65;
  a.decode_ms = 100;
  a.kv_bytes = 4096;
  a.decode = {.steps = 2, .drafted_tokens = 9, .accepted_tokens = 4};
  const Json j = answer_json(a, {.vision = "native bf16", .text = "native fp32", .isa = "avx2", .threads = 2, .kv_dtype = DType::kI8},
                             {.load_ms = 3.5, .peak_rss_mb = 99.5});
  EXPECT_EQ(keys(j), (Keys{"text", "token_ids", "finish_reason", "usage", "images", "timings", "decode",
                           "kv_cache", "peak_rss_mb", "engine", "grounding"}));
  EXPECT_EQ(keys(j["decode"]), (Keys{"steps", "drafted_tokens", "accepted_tokens"}));
  EXPECT_EQ(keys(j["usage"]), (Keys{"prompt_tokens", "completion_tokens", "image_tokens", "cached_tokens"}));
  ASSERT_EQ(j["images"].size(), 1U);
  EXPECT_EQ(keys(j["images"][0]), (Keys{"width", "height", "resized_width", "resized_height", "grid_thw",
                                        "patches", "tokens", "encode_ms", "cached"}));
  EXPECT_EQ(keys(j["timings"]),
            (Keys{"load_ms", "preprocess_ms", "vision_ms", "vision_patches_per_s", "prefill_ms",
                  "prefill_tokens_per_s", "ttft_ms", "decode_tokens_per_s"}));
  EXPECT_EQ(keys(j["engine"]), (Keys{"vision", "text", "isa", "threads"}));

  EXPECT_EQ(j["kv_cache"], Json({{"dtype", "int8"}, {"bytes", 4096}}));
  EXPECT_EQ(j["text"], "Rot \"und\" grün\n");
  EXPECT_EQ(j["token_ids"], Json({5, 6, 7}));
  EXPECT_EQ(j["finish_reason"], "length");
  EXPECT_EQ(j["usage"]["completion_tokens"], 3);
  EXPECT_EQ(j["usage"]["cached_tokens"], 20);
  EXPECT_EQ(j["images"][0]["grid_thw"], Json({1, 14, 20}));
  EXPECT_EQ(j["images"][0]["patches"], 280);
  EXPECT_EQ(j["images"][0]["tokens"], 70);
  EXPECT_EQ(j["images"][0]["encode_ms"], 12.346);
  EXPECT_EQ(j["images"][0]["cached"], false);
  EXPECT_EQ(j["timings"]["vision_patches_per_s"], 14000.0);
  EXPECT_EQ(j["timings"]["prefill_tokens_per_s"], 2000.0);  // the 80 that were not cached
  EXPECT_EQ(j["timings"]["decode_tokens_per_s"], 20.0);     // the two after the first
  EXPECT_EQ(j["timings"]["load_ms"], 3.5);
  EXPECT_EQ(j["decode"]["steps"], 2);
  EXPECT_EQ(j["decode"]["drafted_tokens"], 9);
  EXPECT_EQ(j["decode"]["accepted_tokens"], 4);
  EXPECT_EQ(j["peak_rss_mb"], 99.5);
  EXPECT_EQ(j["engine"]["threads"], 2);
}

TEST(Report, BoxesAreInPixelsOfTheOriginal) {
  Answer a;
  a.text = R"([{"bbox_2d": [250, 500, 750, 1000], "label": "cat"}, {"point_2d": [100, 200], "label": "eye"}])";
  a.visuals.push_back({.info = {.width = 1200, .height = 800, .resized_width = 640, .resized_height = 416}});
  const Json items = answer_json(a, {}, {})["grounding"]["items"];
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0]["label"], "cat");
  EXPECT_EQ(items[0]["pixels"], Json({300.0, 400.0, 900.0, 800.0}));
  EXPECT_EQ(items[1]["kind"], "point");
  EXPECT_EQ(items[1]["pixels"], Json({120.0, 160.0}));
}

TEST(Report, NothingComputedMeansZeroRatesAndStillNumbers) {
  const Json j = answer_json({}, {}, {});
  EXPECT_TRUE(j["token_ids"].is_array());
  EXPECT_TRUE(j["images"].is_array());
  for (const auto& [key, value] : j["timings"].items()) EXPECT_EQ(value.get<double>(), 0.0) << key;
  EXPECT_EQ(j["finish_reason"], "stop");
}

}  // namespace
}  // namespace qvl::generate
