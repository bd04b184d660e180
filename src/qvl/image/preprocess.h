// Decoded image or sampled video frames to pixel_values and grid: the whole image path after decoding. Spec 3
// and 4.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/image/decode.h"
#include "qvl/image/grid.h"
#include "qvl/image/processor_config.h"

namespace qvl::image {

struct PreprocessedImage {
  Tensor pixel_values;  // F32 [grid.patches(), 1536]
  Grid grid;
  int64_t width = 0;  // of the upright original
  int64_t height = 0;
  int64_t resized_width = 0;
  int64_t resized_height = 0;
};

// `pool` may be null. Throws kLimit (aspect ratio), kInvalidArgument (contradictory overrides).
PreprocessedImage preprocess_image(const RgbImage& image, const ImageProcessorConfig& config,
                                   const PixelOverrides& overrides = {}, ThreadPool* pool = nullptr);

struct PreprocessedVideo {
  Tensor pixel_values;                 // F32 [grid.patches(), 1536]
  Grid grid;                           // t = frame pairs
  int64_t total_frames = 0;            // of the folder; from frames in memory: the last index + 1
  std::vector<int64_t> frame_indexes;  // of the frames taken, before the last is repeated
  std::vector<double> timestamps_s;    // one per frame pair
  int64_t width = 0;
  int64_t height = 0;
  int64_t resized_width = 0;
  int64_t resized_height = 0;
};

// The native rate assumed when nobody knows it (spec 4).
inline constexpr double kDefaultNativeFps = 24.0;

// Which of `total_frames` frames recorded at `native_fps` the model sees; ascending. Throws kInvalidArgument.
std::vector<int64_t> sample_frames(int64_t total_frames, double native_fps,
                                   const VideoProcessorConfig& config);

// Mean time in seconds of each group of `temporal_patch_size` frames; the last index is repeated to fill a
// group.
std::vector<double> frame_timestamps(std::span<const int64_t> frame_indexes, double native_fps,
                                     int64_t temporal_patch_size = 2);

// Image files of a folder in natural order (frame2 before frame10). Hidden files are skipped; anything else
// that is not named like an image is skipped and logged. Throws kNotFound (no such folder, no image in it),
// kIo.
std::vector<std::filesystem::path> list_frames(const std::filesystem::path& folder);

// Frames that were already chosen: all of one size, frame_indexes[i] is the place of frames[i] in the video.
// Throws kMismatch for differing sizes, kLimit, kInvalidArgument.
PreprocessedVideo preprocess_video(std::span<const RgbImage> frames, std::span<const int64_t> frame_indexes,
                                   double native_fps, const VideoProcessorConfig& config,
                                   const PixelOverrides& overrides = {}, ThreadPool* pool = nullptr);

// A folder of frames recorded at `native_fps` (24 assumed and logged if absent). Frames are sampled by name
// and only those are decoded, one at a time, so a folder may be larger than memory.
PreprocessedVideo load_video(const std::filesystem::path& folder, std::optional<double> native_fps,
                             const VideoProcessorConfig& config, const PixelOverrides& overrides = {},
                             const DecodeLimits& limits = {}, ThreadPool* pool = nullptr);

// The same of image files in memory, in the order of the video; `name` stands before "[i]" in messages.
PreprocessedVideo load_video(std::span<const std::string> frame_files, std::optional<double> native_fps,
                             const VideoProcessorConfig& config, const PixelOverrides& overrides,
                             const DecodeLimits& limits, ThreadPool* pool, const std::string& name);

}  // namespace qvl::image
