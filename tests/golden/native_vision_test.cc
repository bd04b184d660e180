// The native vision stage against the reference implementation, stage by stage (spec 5).
#include <algorithm>
#include <map>

#include "qvl/base/error.h"

#include "golden.h"

namespace qvl::golden {
namespace {

using Param = std::tuple<std::string, Variant>;

class NativeVision : public testing::TestWithParam<Param> {};

TEST_P(NativeVision, EveryStageMatchesTheReference) {
  const auto& [name, variant] = GetParam();
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("vision/" + name + ".safetensors"));
  const auto engine = tiny_engine(variant);
  std::map<std::string, std::vector<float>, std::less<>> traced;
  engine::StageHooks hooks;
  hooks.trace = [&](std::string_view tensor, Tensor value) {
    const auto v = value.as<float>();
    traced[std::string(tensor)].assign(v.begin(), v.end());
  };
  const std::vector<float> pixels = f32(file, "pixel_values");
  const std::vector<image::Grid> grid = grids(file, "grid_thw");
  const engine::VisionFeatures features = engine->vision().encode(pixels, grid, hooks);

  const auto check = [&](const char* golden, const char* trace, const Limit& limit) {
    ASSERT_TRUE(traced.contains(trace)) << trace;
    expect_close(traced.find(trace)->second, f32(file, golden), limit, variant, name + " " + golden);
  };
  check("patch_embed", "vision.patch_embed", {3e-5f, 0.02f});
  check("pos_embed", "vision.pos_embed", {5e-6f, 0.02f});
  for (const char* i : {"0", "1", "2", "3"}) {
    check((std::string("block") + i).c_str(), (std::string("vision.block") + i).c_str(), {1e-4f, 0.03f});
  }
  // Tight on purpose: a wrong GELU gives 8e-4, a wrong LayerNorm eps 8e-5.
  const Limit feature_limit{3e-5f, 0.025f};
  for (const char* i : {"0", "1", "2"}) {
    check((std::string("deepstack") + i).c_str(), (std::string("vision.deepstack") + i).c_str(), feature_limit);
  }
  check("merged", "vision.merged", feature_limit);

  // What the stage returns is what it traced, and tracing changes nothing.
  const engine::VisionFeatures again = engine->vision().encode(pixels, grid);
  const Tensor a = features.merged.to(DType::kF32);
  const Tensor b = again.merged.to(DType::kF32);
  EXPECT_TRUE(std::ranges::equal(a.as<float>(), b.as<float>()));
  EXPECT_TRUE(std::ranges::equal(a.as<float>(), traced["vision.merged"]));
  ASSERT_EQ(again.deepstack.size(), 3u);
}

INSTANTIATE_TEST_SUITE_P(Golden, NativeVision,
                         testing::Combine(testing::Values("one", "multi", "video", "tall", "side48", "mixed"),
                                          testing::ValuesIn(native_variants())),
                         [](const testing::TestParamInfo<Param>& p) {
                           return std::get<0>(p.param) + "_" + variant_name(std::get<1>(p.param));
                         });

// Images encoded together or alone have the same features, bit for bit: that is what makes caching them exact.
TEST(NativeVisionStage, ImagesDoNotInfluenceEachOther) {
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("vision/multi.safetensors"));
  const std::vector<float> pixels = f32(file, "pixel_values");
  const std::vector<image::Grid> grid = grids(file, "grid_thw");
  for (const Variant& variant : native_variants()) {
    const auto engine = tiny_engine(variant);
    const Tensor together = engine->vision().encode(pixels, grid).merged.to(DType::kF32);
    size_t row = 0;
    int64_t merged_row = 0;
    for (const image::Grid& g : grid) {
      const size_t n = static_cast<size_t>(g.patches());
      const Tensor alone =
          engine->vision().encode(std::span(pixels).subspan(row * 1536, n * 1536), {&g, 1}).merged.to(DType::kF32);
      const auto part = together.as<float>().subspan(static_cast<size_t>(merged_row * 64), static_cast<size_t>(alone.size()));
      EXPECT_TRUE(std::ranges::equal(alone.as<float>(), part)) << variant_name(variant);
      row += n;
      merged_row += g.merged_tokens();
    }
  }
}

TEST(NativeVisionStage, RefusesInputThatDoesNotFit) {
  const auto engine = tiny_engine({engine::Precision::kF32, "scalar"});
  const std::vector<float> pixels(8 * 1536);
  const auto refuse = [&](image::Grid g) {
    EXPECT_THROW(engine->vision().encode(pixels, {&g, 1}), Error) << g.t << " " << g.h << " " << g.w;
  };
  refuse({1, 2, 2});   // fewer patches than rows
  refuse({1, 4, 4});   // more
  refuse({1, 1, 8});   // odd side
  refuse({-1, 2, 4});
  refuse({0, 0, 0});
  EXPECT_THROW(engine->vision().encode({}, {}), Error);
}

TEST(NativeVisionStage, CanBeCancelled) {
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("vision/one.safetensors"));
  const auto engine = tiny_engine({engine::Precision::kF32, "scalar"});
  engine::StageHooks hooks;
  hooks.progress = [](int64_t done, int64_t) { return done < 2; };
  try {
    engine->vision().encode(f32(file, "pixel_values"), grids(file, "grid_thw"), hooks);
    FAIL() << "ran to the end";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kCancelled);
  }
}

}  // namespace
}  // namespace qvl::golden
