// What preprocessor_config.json and video_preprocessor_config.json say: the pixel budget, the patch geometry
// and the normalisation. First step of the image path; everything after it is told by these structs. Spec 3
// and 4.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

#include "qvl/base/json.h"

namespace qvl::image {

// Part common to both processors. The defaults are the released Qwen3-VL values.
struct PatchConfig {
  int64_t patch_size_px = 16;
  int64_t temporal_patch_size = 2;
  int64_t merge_size = 2;
  // One 8-bit sample u becomes (u - mean/rescale) / (std/rescale), both constants rounded to float32.
  double rescale_factor = 1.0 / 255.0;
  std::array<double, 3> mean = {0.5, 0.5, 0.5};
  std::array<double, 3> std = {0.5, 0.5, 0.5};

  // Sides of a resized image are multiples of this (32).
  int64_t resize_factor_px() const { return patch_size_px * merge_size; }
  // Values in one row of pixel_values (1536).
  int64_t patch_values() const { return 3 * temporal_patch_size * patch_size_px * patch_size_px; }
};

struct ImageProcessorConfig : PatchConfig {
  // Bounds on the height x width of a resized image ("shortest_edge" / "longest_edge" are pixel counts).
  int64_t min_pixels = 65536;
  int64_t max_pixels = 16777216;

  // Reads preprocessor_config.json, or the "image_processor" object of processor_config.json. If neither
  // exists the released Qwen3-VL values are used and the log says so. Throws kFormat, kUnsupported (a
  // resampling other than bicubic, a step switched off), kInvalidArgument (values that cannot be meant).
  static ImageProcessorConfig load(const std::filesystem::path& checkpoint_dir);
  static ImageProcessorConfig from_json(const Json& json, std::string_view where);
  // Throws kInvalidArgument; called by both loaders.
  void validate(std::string_view where) const;
};

struct VideoProcessorConfig : PatchConfig {
  // Bounds on frames x height x width of the resized video.
  int64_t min_pixels = 4096;
  int64_t max_pixels = 25165824;
  // Frames taken per second of video, and the bounds on their number.
  double sample_fps = 2.0;
  int64_t min_frames = 4;
  int64_t max_frames = 768;

  // As above with video_preprocessor_config.json and "video_processor".
  static VideoProcessorConfig load(const std::filesystem::path& checkpoint_dir);
  static VideoProcessorConfig from_json(const Json& json, std::string_view where);
  void validate(std::string_view where) const;
};

// What the user asked for with --min-pixels / --max-pixels. Each may be given alone; the other bound then
// stays as the checkpoint says. (The reference drops a bound given alone without a word; with both given the
// two agree.)
struct PixelOverrides {
  std::optional<int64_t> min_pixels;
  std::optional<int64_t> max_pixels;
};

// The config with the overrides applied; throws kInvalidArgument if the bounds then contradict each other.
ImageProcessorConfig with_overrides(ImageProcessorConfig config, const PixelOverrides& overrides);
VideoProcessorConfig with_overrides(VideoProcessorConfig config, const PixelOverrides& overrides);

}  // namespace qvl::image
