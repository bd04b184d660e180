// The vision stage against the reference implementation, stage by stage (spec 5): one table for every engine.
#include <algorithm>
#include <map>

#include "golden.h"

namespace qvl::golden {
namespace {

using Param = std::tuple<std::string, Variant>;

class GoldenVision : public testing::TestWithParam<Param> {};

TEST_P(GoldenVision, EveryStageMatchesTheReference) {
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
    if (!traces(variant, trace)) return;
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
    check((std::string("deepstack") + i).c_str(), (std::string("vision.deepstack") + i).c_str(),
          feature_limit);
  }
  check("merged", "vision.merged", feature_limit);

  // What the stage returns is what it traced, and tracing changes nothing.
  const engine::VisionFeatures again = engine->vision().encode(pixels, grid);
  const Tensor a = features.merged.to(DType::kF32);
  const Tensor b = again.merged.to(DType::kF32);
  if (traces(variant, "exactly")) {
    EXPECT_TRUE(std::ranges::equal(a.as<float>(), b.as<float>()));
  } else {
    expect_close(b.as<float>(), f32(file, "merged"), feature_limit, variant,
                 name + " merged without a trace");
  }
  EXPECT_TRUE(std::ranges::equal(a.as<float>(), traced["vision.merged"]));
  ASSERT_EQ(again.deepstack.size(), 3u);
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenVision,
                         testing::Combine(testing::Values("one", "multi", "video", "tall", "side48", "mixed"),
                                          testing::ValuesIn(variants())),
                         [](const testing::TestParamInfo<Param>& p) {
                           return std::get<0>(p.param) + "_" + variant_name(std::get<1>(p.param));
                         });

}  // namespace
}  // namespace qvl::golden
