// Target sizes; see smart_resize.h. Spec 3.2 and 4.
#include "qvl/image/smart_resize.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "qvl/base/error.h"

namespace qvl::image {
namespace {

// Keeps every product below exact in double and in int64.
constexpr int64_t kMaxSide = int64_t{1} << 31;
constexpr int64_t kMaxResizedPixels = int64_t{1} << 28;

std::string size_text(int64_t height, int64_t width) {
  return std::to_string(width) + "x" + std::to_string(height);
}

// Nearest integer to n / d, ties to the even one.
int64_t divide_half_even(int64_t n, int64_t d) {
  const int64_t q = n / d;
  const int64_t r = n % d;
  return q + ((2 * r > d || (2 * r == d && (q & 1) != 0)) ? 1 : 0);
}

void check_arguments(std::string_view where, int64_t height, int64_t width, int64_t factor,
                     int64_t min_pixels, int64_t max_pixels) {
  if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide) {
    fail(ErrorCode::kInvalidArgument, where, "size", "sides of 1 to 2^31 pixels", size_text(height, width));
  }
  if (factor < 1 || factor > 65536) {
    fail(ErrorCode::kInvalidArgument, where, "resize factor", "1 to 65536", std::to_string(factor));
  }
  // A lower bound of 0 could round a thin image to a side of 0.
  if (min_pixels < 1 || max_pixels < min_pixels) {
    fail(ErrorCode::kInvalidArgument, where, "pixel budget", "1 <= min_pixels <= max_pixels",
         "min_pixels " + std::to_string(min_pixels) + ", max_pixels " + std::to_string(max_pixels));
  }
  const int64_t longer = std::max(height, width);
  const int64_t shorter = std::min(height, width);
  if (static_cast<double>(longer) / static_cast<double>(shorter) > static_cast<double>(kMaxAspectRatio)) {
    fail(ErrorCode::kLimit, where, "aspect ratio", "at most " + std::to_string(kMaxAspectRatio) + ":1",
         size_text(height, width), "crop or pad the image");
  }
}

ImageSize shrunk(int64_t height, int64_t width, int64_t factor, double ratio) {
  const auto side = [&](int64_t n) {
    const double units = std::floor(static_cast<double>(n) / ratio / static_cast<double>(factor));
    return std::max(factor, static_cast<int64_t>(units) * factor);
  };
  return {side(height), side(width)};
}

ImageSize enlarged(int64_t height, int64_t width, int64_t factor, double ratio) {
  const auto side = [&](int64_t n) {
    const double units = std::ceil(static_cast<double>(n) * ratio / static_cast<double>(factor));
    return static_cast<int64_t>(units) * factor;
  };
  return {side(height), side(width)};
}

ImageSize checked(std::string_view where, int64_t frames, ImageSize size) {
  const double pixels =
      static_cast<double>(frames) * static_cast<double>(size.height) * static_cast<double>(size.width);
  if (pixels > static_cast<double>(kMaxResizedPixels)) {
    fail(ErrorCode::kLimit, where, "resized pixels", "at most 2^28",
         std::to_string(frames) + " x " + size_text(size.height, size.width),
         "lower min_pixels and max_pixels");
  }
  return size;
}

}  // namespace

ImageSize smart_resize(int64_t height, int64_t width, int64_t factor, int64_t min_pixels,
                       int64_t max_pixels) {
  constexpr std::string_view kWhere = "smart_resize";
  check_arguments(kWhere, height, width, factor, min_pixels, max_pixels);
  ImageSize size = {divide_half_even(height, factor) * factor, divide_half_even(width, factor) * factor};
  const double pixels = static_cast<double>(height) * static_cast<double>(width);
  const double resized_pixels = static_cast<double>(size.height) * static_cast<double>(size.width);
  if (resized_pixels > static_cast<double>(max_pixels)) {
    size = shrunk(height, width, factor, std::sqrt(pixels / static_cast<double>(max_pixels)));
  } else if (resized_pixels < static_cast<double>(min_pixels)) {
    size = enlarged(height, width, factor, std::sqrt(static_cast<double>(min_pixels) / pixels));
  }
  return checked(kWhere, 1, size);
}

ImageSize smart_resize_video(int64_t frames, int64_t height, int64_t width, int64_t temporal_factor,
                             int64_t factor, int64_t min_pixels, int64_t max_pixels) {
  constexpr std::string_view kWhere = "smart_resize_video";
  check_arguments(kWhere, height, width, factor, min_pixels, max_pixels);
  if (frames < 1 || frames > (int64_t{1} << 24) || temporal_factor < 1 || temporal_factor > 1024) {
    fail(ErrorCode::kInvalidArgument, kWhere, "frame count", "1 to 2^24 frames in groups of 1 to 1024",
         std::to_string(frames) + " frames in groups of " + std::to_string(temporal_factor));
  }
  if (height < factor || width < factor) {
    fail(ErrorCode::kInvalidArgument, kWhere, "video frame",
         "sides of at least " + std::to_string(factor) + " pixels", size_text(height, width),
         "enlarge the frames");
  }
  ImageSize size = {divide_half_even(height, factor) * factor, divide_half_even(width, factor) * factor};
  const int64_t padded_frames = (frames + temporal_factor - 1) / temporal_factor * temporal_factor;
  const double pixels =
      static_cast<double>(frames) * static_cast<double>(height) * static_cast<double>(width);
  const double resized_pixels =
      static_cast<double>(padded_frames) * static_cast<double>(size.height) * static_cast<double>(size.width);
  if (resized_pixels > static_cast<double>(max_pixels)) {
    size = shrunk(height, width, factor, std::sqrt(pixels / static_cast<double>(max_pixels)));
  } else if (resized_pixels < static_cast<double>(min_pixels)) {
    size = enlarged(height, width, factor, std::sqrt(static_cast<double>(min_pixels) / pixels));
  }
  return checked(kWhere, padded_frames, size);
}

}  // namespace qvl::image
