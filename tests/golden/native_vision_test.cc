// What holds for the native vision stage beyond the shared table of vision_test.cc: exactness to the bit,
// errors.
#include <algorithm>
#include <map>

#include "qvl/base/error.h"

#include "golden.h"

namespace qvl::golden {
namespace {

// Images encoded together or alone have the same features, bit for bit: that is what makes caching them
// exact.
TEST(NativeVisionStage, ImagesDoNotInfluenceEachOther) {
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("vision/multi.safetensors"));
  const std::vector<float> pixels = f32(file, "pixel_values");
  const std::vector<image::Grid> grid = grids(file, "grid_thw");
  for (const Variant& variant : variants()) {
    const auto engine = tiny_engine(variant);
    const Tensor together = engine->vision().encode(pixels, grid).merged.to(DType::kF32);
    size_t row = 0;
    int64_t merged_row = 0;
    for (const image::Grid& g : grid) {
      const size_t n = static_cast<size_t>(g.patches());
      const Tensor alone = engine->vision()
                               .encode(std::span(pixels).subspan(row * 1536, n * 1536), {&g, 1})
                               .merged.to(DType::kF32);
      const auto part = together.as<float>().subspan(static_cast<size_t>(merged_row * 64),
                                                     static_cast<size_t>(alone.size()));
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
  refuse({1, 2, 2});  // fewer patches than rows
  refuse({1, 4, 4});  // more
  refuse({1, 1, 8});  // odd side
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
