// What holds for the native vision stage beyond the shared table of vision_test.cc: exactness to the bit,
// errors.
#include <algorithm>
#include <cstring>
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

// Layers take many patches piece by piece: a picture that lies across the pieces (2,048 rows) has the bits of one alone.
TEST(NativeVisionStage, PiecesOfManyPatchesDoNotMatter) {
  const image::Grid grid{1, 14, 18};
  constexpr size_t kPictures = 18;  // 252 patches each: the 17th ends behind two pieces
  const auto patches = static_cast<size_t>(grid.patches());
  std::vector<float> pixels(kPictures * patches * 1536);
  uint32_t state = 1;
  for (float& v : pixels) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  const std::vector<image::Grid> all(kPictures, grid);
  for (const Variant& variant : variants()) {
    const auto engine = tiny_engine(variant);
    const engine::VisionFeatures together = engine->vision().encode(pixels, all);
    for (const size_t i : {size_t{0}, size_t{16}, size_t{17}}) {
      const engine::VisionFeatures alone =
          engine->vision().encode(std::span(pixels).subspan(i * patches * 1536, patches * 1536), {&grid, 1});
      const auto expect_part = [&](const Tensor& one, const Tensor& many) {
        const Tensor a = one.to(DType::kF32), b = many.to(DType::kF32);
        EXPECT_TRUE(std::ranges::equal(a.as<float>(), b.as<float>().subspan(i * a.as<float>().size(), a.as<float>().size())))
            << variant_name(variant) << " picture " << i;
      };
      expect_part(alone.merged, together.merged);
      for (size_t j = 0; j < alone.deepstack.size(); ++j) expect_part(alone.deepstack[j], together.deepstack[j]);
    }
  }
}

// A frame's features are the same bits whatever stands before and behind it: frames that repeat are encoded once.
TEST(NativeVisionStage, FramesDoNotInfluenceEachOther) {
  const auto file = checkpoint::SafetensorsFile::open(fixture_path("vision/video.safetensors"));
  const std::vector<float> pixels = f32(file, "pixel_values");
  const image::Grid grid = grids(file, "grid_thw").at(0);
  ASSERT_GT(grid.t, 1);
  const auto frame_pixels = static_cast<size_t>(grid.h * grid.w) * 1536;
  for (const Variant& variant : variants()) {
    const auto engine = tiny_engine(variant);
    ASSERT_TRUE(engine->vision().frames_are_independent());
    const engine::VisionFeatures video = engine->vision().encode(std::span(pixels).first(grid.t * frame_pixels), {&grid, 1});
    for (int64_t t = 0; t < grid.t; ++t) {
      const image::Grid one{1, grid.h, grid.w};
      const engine::VisionFeatures alone = engine->vision().encode(
          std::span(pixels).subspan(static_cast<size_t>(t) * frame_pixels, frame_pixels), {&one, 1});
      const auto expect_part = [&](const Tensor& part, const Tensor& whole) {
        const auto* rows = static_cast<const std::byte*>(whole.data()) + static_cast<size_t>(t) * part.size_bytes();
        EXPECT_EQ(std::memcmp(part.data(), rows, part.size_bytes()), 0) << variant_name(variant) << " frame " << t;
      };
      expect_part(alone.merged, video.merged);
      for (size_t j = 0; j < alone.deepstack.size(); ++j) expect_part(alone.deepstack[j], video.deepstack[j]);
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
