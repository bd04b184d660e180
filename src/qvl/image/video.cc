// Videos: a folder of frames, which of them the model sees, when they were recorded. Declared in
// preprocess.h. Spec 4.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <system_error>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/image/patches.h"
#include "qvl/image/preprocess.h"
#include "qvl/image/resize.h"
#include "qvl/image/smart_resize.h"

namespace qvl::image {
namespace {

constexpr int64_t kMaxTotalFrames = int64_t{1} << 40;

void check_fps(double native_fps) {
  if (!std::isfinite(native_fps) || native_fps <= 0.0) {
    fail(ErrorCode::kInvalidArgument, "video", "frames per second", "a positive number",
         std::to_string(native_fps));
  }
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// "frame2" before "frame10": runs of digits compare as numbers, everything else byte by byte.
bool natural_less(const std::string& a, const std::string& b) {
  size_t i = 0;
  size_t j = 0;
  while (i < a.size() && j < b.size()) {
    if (is_digit(a[i]) && is_digit(b[j])) {
      const auto digits = [](const std::string& s, size_t& k) {
        while (k < s.size() && s[k] == '0') ++k;
        const size_t begin = k;
        while (k < s.size() && is_digit(s[k])) ++k;
        return std::string_view(s).substr(begin, k - begin);
      };
      const std::string_view x = digits(a, i);
      const std::string_view y = digits(b, j);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
    } else {
      if (a[i] != b[j]) return static_cast<unsigned char>(a[i]) < static_cast<unsigned char>(b[j]);
      ++i;
      ++j;
    }
  }
  if (i < a.size() || j < b.size()) return i >= a.size();
  return a < b;  // "frame01" and "frame1": any fixed order
}

bool has_image_extension(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  constexpr std::array<std::string_view, 7> kKnown = {".jpg", ".jpeg", ".png", ".webp",
                                                      ".gif", ".bmp",  ".dib"};
  return std::find(kKnown.begin(), kKnown.end(), extension) != kKnown.end();
}

// The part common to frames in memory and frames in files: fetch(i) gives frame i, one at a time.
PreprocessedVideo preprocess_frames(int64_t frame_count, const std::function<const RgbImage&(int64_t)>& fetch,
                                    const VideoProcessorConfig& config, ThreadPool* pool) {
  PreprocessedVideo result;
  ImageSize size;
  std::vector<std::vector<uint8_t>> resized(static_cast<size_t>(frame_count));
  for (int64_t i = 0; i < frame_count; ++i) {
    const RgbImage& frame = fetch(i);
    if (i == 0) {
      result.width = frame.width;
      result.height = frame.height;
      size = smart_resize_video(frame_count, frame.height, frame.width, config.temporal_patch_size,
                                config.resize_factor_px(), config.min_pixels, config.max_pixels);
    } else if (frame.width != result.width || frame.height != result.height) {
      fail(ErrorCode::kMismatch, "video", "size of taken frame " + std::to_string(i),
           std::to_string(result.width) + "x" + std::to_string(result.height) + " as the first",
           std::to_string(frame.width) + "x" + std::to_string(frame.height));
    }
    resized[static_cast<size_t>(i)] =
        resize_bicubic_u8(frame.rgb, frame.height, frame.width, size.height, size.width, pool);
  }
  result.resized_width = size.width;
  result.resized_height = size.height;
  const std::vector<std::span<const uint8_t>> frames(resized.begin(), resized.end());
  result.pixel_values = patchify(frames, size.height, size.width, config, pool, &result.grid);
  return result;
}

}  // namespace

std::vector<int64_t> sample_frames(int64_t total_frames, double native_fps,
                                   const VideoProcessorConfig& config) {
  config.validate("video sampling");
  check_fps(native_fps);
  if (total_frames < 1 || total_frames > kMaxTotalFrames) {
    fail(ErrorCode::kInvalidArgument, "video", "number of frames", "1 to 2^40", std::to_string(total_frames));
  }
  const double wanted = static_cast<double>(total_frames) / native_fps * config.sample_fps;
  // Compared before the conversion: a tiny native rate would overflow int64.
  int64_t count =
      wanted >= static_cast<double>(config.max_frames) ? config.max_frames : static_cast<int64_t>(wanted);
  count = std::min({std::max(count, config.min_frames), config.max_frames, total_frames});
  std::vector<int64_t> indexes(static_cast<size_t>(count), 0);
  if (count == 1) return indexes;
  const double step = static_cast<double>(total_frames - 1) / static_cast<double>(count - 1);
  for (int64_t i = 0; i < count - 1; ++i) {
    const double x = static_cast<double>(i) * step;
    const double below = std::floor(x);
    const double rest = x - below;
    const bool up = rest > 0.5 || (rest == 0.5 && std::fmod(below, 2.0) != 0.0);
    indexes[static_cast<size_t>(i)] = static_cast<int64_t>(below) + (up ? 1 : 0);
  }
  indexes.back() = total_frames - 1;
  return indexes;
}

std::vector<double> frame_timestamps(std::span<const int64_t> frame_indexes, double native_fps,
                                     int64_t temporal_patch_size) {
  check_fps(native_fps);
  if (frame_indexes.empty() || temporal_patch_size < 1) {
    fail(ErrorCode::kInvalidArgument, "video",
         "time stamps need at least one frame and a positive group size");
  }
  const int64_t count = static_cast<int64_t>(frame_indexes.size());
  const auto time_s = [&](int64_t i) {
    return static_cast<double>(frame_indexes[static_cast<size_t>(std::min(i, count - 1))]) / native_fps;
  };
  std::vector<double> stamps_s;
  for (int64_t i = 0; i < count; i += temporal_patch_size) {
    stamps_s.push_back((time_s(i) + time_s(i + temporal_patch_size - 1)) / 2.0);
  }
  return stamps_s;
}

std::vector<std::filesystem::path> list_frames(const std::filesystem::path& folder) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(folder, error);
  if (!std::filesystem::exists(status)) fail(ErrorCode::kNotFound, folder.string(), "no such video folder");
  if (!std::filesystem::is_directory(status)) {
    fail(ErrorCode::kUnsupported, folder.string(), "video", "a folder of frames", "a file",
         "unpack the frames with: ffmpeg -i VIDEO FOLDER/%06d.png");
  }
  std::filesystem::directory_iterator entries(folder, error);
  if (error) fail(ErrorCode::kIo, folder.string(), "cannot list the folder: " + error.message());
  std::vector<std::filesystem::path> frames;
  int64_t skipped = 0;
  std::string first_skipped;
  for (; entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::filesystem::path& path = entries->path();
    if (path.filename().string().starts_with('.')) continue;
    if (entries->is_regular_file(error) && has_image_extension(path)) {
      frames.push_back(path);
    } else if (++skipped == 1) {
      first_skipped = path.filename().string();
    }
  }
  if (error) fail(ErrorCode::kIo, folder.string(), "cannot list the folder: " + error.message());
  if (skipped > 0) {
    log_message(LogLevel::kWarning, "[" + folder.string() + "] " + std::to_string(skipped) +
                                        " entries are not image files and were skipped, \"" + first_skipped +
                                        "\" among them");
  }
  if (frames.empty()) {
    fail(ErrorCode::kNotFound, folder.string(), "video frames", "image files (jpg, png, webp, gif, bmp)",
         "none");
  }
  std::sort(frames.begin(), frames.end(), [](const auto& a, const auto& b) {
    return natural_less(a.filename().string(), b.filename().string());
  });
  return frames;
}

PreprocessedVideo preprocess_video(std::span<const RgbImage> frames, std::span<const int64_t> frame_indexes,
                                   double native_fps, const VideoProcessorConfig& config,
                                   const PixelOverrides& overrides, ThreadPool* pool) {
  const VideoProcessorConfig effective = with_overrides(config, overrides);
  if (frames.empty() || frames.size() != frame_indexes.size()) {
    fail(ErrorCode::kInvalidArgument, "video", "frames", "at least one, each with its index",
         std::to_string(frames.size()) + " frames, " + std::to_string(frame_indexes.size()) + " indexes");
  }
  for (size_t i = 0; i < frame_indexes.size(); ++i) {
    if (frame_indexes[i] < (i == 0 ? 0 : frame_indexes[i - 1])) {
      fail(ErrorCode::kInvalidArgument, "video", "frame indexes must be ascending from 0 or more");
    }
  }
  const std::vector<double> stamps_s =
      frame_timestamps(frame_indexes, native_fps, effective.temporal_patch_size);
  const auto fetch = [&](int64_t i) -> const RgbImage& { return frames[static_cast<size_t>(i)]; };
  PreprocessedVideo result = preprocess_frames(static_cast<int64_t>(frames.size()), fetch, effective, pool);
  result.total_frames = frame_indexes.back() + 1;
  result.frame_indexes.assign(frame_indexes.begin(), frame_indexes.end());
  result.timestamps_s = stamps_s;
  return result;
}

namespace {

double assumed_fps(std::optional<double> native_fps, const std::string& name) {
  if (!native_fps) log_message(LogLevel::kWarning, "[" + name + "] frame rate unknown: 24 frames a second assumed");
  return native_fps.value_or(kDefaultNativeFps);
}

// Frames are sampled by number, and only those are decoded, one at a time: decode(i) gives frame i of `total`.
PreprocessedVideo sample_video(int64_t total, double fps, const VideoProcessorConfig& effective,
                               const std::function<RgbImage(int64_t)>& decode,
                               const std::function<std::string(int64_t)>& name_of, ThreadPool* pool) {
  const std::vector<int64_t> indexes = sample_frames(total, fps, effective);
  RgbImage current;
  const auto fetch = [&](int64_t i) -> const RgbImage& {
    const int64_t frame = indexes[static_cast<size_t>(i)];
    RgbImage next = decode(frame);
    if (i > 0 && (next.width != current.width || next.height != current.height)) {
      fail(ErrorCode::kMismatch, name_of(frame), "size of a video frame",
           std::to_string(current.width) + "x" + std::to_string(current.height) + " as the first frame",
           std::to_string(next.width) + "x" + std::to_string(next.height));
    }
    current = std::move(next);
    return current;
  };
  PreprocessedVideo result = preprocess_frames(static_cast<int64_t>(indexes.size()), fetch, effective, pool);
  result.total_frames = total;
  result.frame_indexes = indexes;
  result.timestamps_s = frame_timestamps(indexes, fps, effective.temporal_patch_size);
  return result;
}

}  // namespace

PreprocessedVideo load_video(const std::filesystem::path& folder, std::optional<double> native_fps,
                             const VideoProcessorConfig& config, const PixelOverrides& overrides,
                             const DecodeLimits& limits, ThreadPool* pool) {
  const VideoProcessorConfig effective = with_overrides(config, overrides);
  const std::vector<std::filesystem::path> paths = list_frames(folder);
  const auto path = [&](int64_t i) -> const std::filesystem::path& { return paths[static_cast<size_t>(i)]; };
  return sample_video(
      static_cast<int64_t>(paths.size()), assumed_fps(native_fps, folder.string()), effective,
      [&](int64_t i) { return load_image(path(i), limits); }, [&](int64_t i) { return path(i).string(); }, pool);
}

PreprocessedVideo load_video(std::span<const std::string> frame_files, std::optional<double> native_fps,
                             const VideoProcessorConfig& config, const PixelOverrides& overrides,
                             const DecodeLimits& limits, ThreadPool* pool, const std::string& name) {
  const VideoProcessorConfig effective = with_overrides(config, overrides);
  const auto name_of = [&](int64_t i) { return name + "[" + std::to_string(i) + "]"; };
  return sample_video(
      static_cast<int64_t>(frame_files.size()), assumed_fps(native_fps, name), effective,
      [&](int64_t i) { return decode_image(std::as_bytes(std::span(frame_files[static_cast<size_t>(i)])), limits, name_of(i)); },
      name_of, pool);
}

}  // namespace qvl::image
