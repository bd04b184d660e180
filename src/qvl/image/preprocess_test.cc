#include "qvl/image/preprocess.h"

#include <gtest/gtest.h>

#include <cstring>

#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/image/patches.h"
#include "qvl/image/resize.h"
#include "qvl/image/test_util.h"

namespace qvl::image {
namespace {

using checkpoint::SafetensorsFile;
using checkpoint::TensorView;

ImageProcessorConfig config_with(int64_t min_pixels, int64_t max_pixels) {
  ImageProcessorConfig config;
  config.min_pixels = min_pixels;
  config.max_pixels = max_pixels;
  return config;
}

std::vector<uint8_t> bytes_of(const TensorView& tensor) {
  std::vector<uint8_t> bytes(tensor.bytes.size());
  std::memcpy(bytes.data(), tensor.bytes.data(), bytes.size());
  return bytes;
}

RgbImage image_of(const TensorView& tensor) {
  RgbImage image;
  image.height = tensor.shape.at(0);
  image.width = tensor.shape.at(1);
  image.rgb = bytes_of(tensor);
  return image;
}

// Bit equality, so that -0 and 0 differ and NaN would be seen.
void expect_same_bits(const Tensor& got, const TensorView& expected, const std::string& name) {
  ASSERT_EQ(got.dtype(), DType::kF32) << name;
  ASSERT_EQ(got.shape(), expected.shape) << name;
  EXPECT_EQ(std::memcmp(got.data(), expected.bytes.data(), expected.bytes.size()), 0) << name;
}

std::string hash_of(const Tensor& tensor) {
  return sha256_of(tensor.as<float>());
}

TEST(Preprocess, GoldenImages) {
  const Json meta = parse_json_file(fixture("golden/preprocess/images.json"));
  const SafetensorsFile file = SafetensorsFile::open(fixture("golden/preprocess/images.safetensors"));
  int with_pixels = 0;
  for (const Json& c : meta["images"]) {
    const std::string name = c["name"];
    const int64_t low = c.contains("min") ? c["min"].get<int64_t>() : meta["limits_small"][0].get<int64_t>();
    const int64_t high = c.contains("max") ? c["max"].get<int64_t>() : meta["limits_small"][1].get<int64_t>();
    const RgbImage image = image_of(file.get(name + ".rgb_hwc"));
    const PreprocessedImage result = preprocess_image(image, config_with(low, high));
    EXPECT_EQ(result.height, c["h"]);
    EXPECT_EQ(result.width, c["w"]);
    EXPECT_EQ(result.resized_height, c["resized"][0]);
    EXPECT_EQ(result.resized_width, c["resized"][1]);
    EXPECT_EQ(result.grid, (Grid{c["grid_thw"][0], c["grid_thw"][1], c["grid_thw"][2]}));
    EXPECT_EQ(result.grid.patches(), c["rows"]);
    EXPECT_EQ(result.grid.merged_tokens() * 4, c["rows"]);
    EXPECT_EQ(hash_of(result.pixel_values), c["pixel_values_sha256"]) << name;
    if (const TensorView* resized = file.find(name + ".resized_chw")) {
      const int64_t h = c["resized"][0], w = c["resized"][1];
      const std::vector<uint8_t> hwc = resize_bicubic_u8(image.rgb, image.height, image.width, h, w, nullptr);
      const std::vector<uint8_t> chw = bytes_of(*resized);
      for (int64_t k = 0; k < 3; ++k) {
        for (int64_t i = 0; i < h * w; ++i) ASSERT_EQ(hwc[i * 3 + k], chw[k * h * w + i]) << name << " " << i;
      }
    }
    if (const TensorView* pixels = file.find(name + ".pixel_values")) {
      expect_same_bits(result.pixel_values, *pixels, name);
      ++with_pixels;
    }
  }
  EXPECT_EQ(meta["images"].size(), 11u);
  EXPECT_EQ(with_pixels, 5);
}

TEST(Preprocess, GoldenColourModes) {
  const SafetensorsFile file = SafetensorsFile::open(fixture("golden/preprocess/images.safetensors"));
  const std::vector<uint8_t> rgba = bytes_of(file.get("rgba.hwc4"));
  const std::vector<uint8_t> grey = bytes_of(file.get("grey.hw"));
  RgbImage dropped_alpha = generated_image(64, 64, 0, 0);
  RgbImage replicated = dropped_alpha;
  for (size_t i = 0; i < 64 * 64; ++i) {
    for (size_t c = 0; c < 3; ++c) {
      dropped_alpha.rgb[3 * i + c] = rgba[4 * i + c];
      replicated.rgb[3 * i + c] = grey[i];
    }
  }
  const ImageProcessorConfig config = config_with(4096, 65536);
  expect_same_bits(preprocess_image(dropped_alpha, config).pixel_values, file.get("rgba.pixel_values"),
                   "rgba");
  expect_same_bits(preprocess_image(replicated, config).pixel_values, file.get("grey.pixel_values"), "grey");
}

// Whole images through the reference processor, also with another mean and deviation.
TEST(Preprocess, WideImages) {
  const Json wide = parse_json_file(fixture("golden/preprocess/wide.json"));
  ASSERT_GE(wide["images"].size(), 50u);
  ThreadPool pool(2);
  for (const Json& c : wide["images"]) {
    ImageProcessorConfig config = config_with(c["min"], c["max"]);
    if (c["norm"] == "clip") {
      config.mean = {0.48145466, 0.4578275, 0.40821073};
      config.std = {0.26862954, 0.26130258, 0.27577711};
    }
    const RgbImage image = generated_image(c["h"], c["w"], c["kind"], c["seed"]);
    for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
      const PreprocessedImage result = preprocess_image(image, config, {}, threads);
      EXPECT_EQ(result.grid, (Grid{c["grid"][0], c["grid"][1], c["grid"][2]})) << c.dump();
      EXPECT_EQ(hash_of(result.pixel_values).substr(0, 16), c["sha"]) << c.dump();
    }
  }
}

TEST(Preprocess, OverridesChangeTheBudget) {
  const RgbImage image = generated_image(480, 640, 2, 3);
  const ImageProcessorConfig config;
  EXPECT_EQ(preprocess_image(image, config).grid, (Grid{1, 30, 40}));
  EXPECT_EQ(preprocess_image(image, config, {.max_pixels = 100000}).grid.patches() * 256 <= 100000, true);
  EXPECT_EQ(preprocess_image(image, config, {.min_pixels = 1000000, .max_pixels = 2000000}).grid,
            (Grid{1, 56, 74}));
  const Caught error = catch_error([&] { preprocess_image(image, config, {.max_pixels = 1000}); });
  EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
  EXPECT_NE(error.message.find("give both --min-pixels and --max-pixels"), std::string::npos)
      << error.message;
}

// The order of spec 3.4 restated index by index, with a geometry in which no two extents are equal.
TEST(Patches, OrderIsBlocksThenChannelTimeRowColumn) {
  PatchConfig config;
  config.patch_size_px = 3;
  config.temporal_patch_size = 2;
  config.merge_size = 2;
  const int64_t height = 12, width = 18;
  std::vector<std::vector<uint8_t>> frames;
  for (uint64_t i = 0; i < 3; ++i) frames.push_back(generated_image(height, width, 0, 50 + i).rgb);
  const std::vector<std::span<const uint8_t>> views(frames.begin(), frames.end());
  Grid grid;
  const Tensor out = patchify(views, height, width, config, nullptr, &grid);
  ASSERT_EQ(grid, (Grid{2, 4, 6}));
  ASSERT_EQ(out.shape(), (Shape{48, 54}));
  const float* next = out.as<float>().data();
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t by = 0; by < 2; ++by) {
      for (int64_t bx = 0; bx < 3; ++bx) {
        for (int64_t iy = 0; iy < 2; ++iy) {
          for (int64_t ix = 0; ix < 2; ++ix) {
            for (int64_t c = 0; c < 3; ++c) {
              for (int64_t dt = 0; dt < 2; ++dt) {
                for (int64_t dy = 0; dy < 3; ++dy) {
                  for (int64_t dx = 0; dx < 3; ++dx) {
                    const size_t frame = static_cast<size_t>(std::min<int64_t>(2 * t + dt, 2));
                    const int64_t y = (2 * by + iy) * 3 + dy, x = (2 * bx + ix) * 3 + dx;
                    const float u = frames[frame][static_cast<size_t>((y * width + x) * 3 + c)];
                    ASSERT_EQ(*next++, (u - 127.5f) / 127.5f);
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(Patches, RejectsWrongArguments) {
  Grid grid;
  const std::vector<uint8_t> pixels(32 * 32 * 3);
  const std::vector<std::span<const uint8_t>> one = {pixels};
  const PatchConfig config;
  EXPECT_EQ(catch_error([&] { patchify({}, 32, 32, config, nullptr, &grid); }).code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(catch_error([&] { patchify(one, 32, 16, config, nullptr, &grid); }).code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(catch_error([&] { patchify(one, 32, 64, config, nullptr, &grid); }).code,
            ErrorCode::kInvalidArgument);
  EXPECT_FALSE(catch_error([&] { patchify(one, 32, 32, config, nullptr, &grid); }).thrown);
}

TEST(Grid, Counts) {
  EXPECT_EQ((Grid{3, 4, 6}).patches(), 72);
  EXPECT_EQ((Grid{3, 4, 6}).merged_tokens(), 18);
}

}  // namespace
}  // namespace qvl::image
