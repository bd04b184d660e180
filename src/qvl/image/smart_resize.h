// The size an image or video frame is resized to: sides are multiples of `factor`, the number of pixels lies
// in the budget, the aspect ratio is kept as far as that allows. Double arithmetic in the reference's order.
// Spec 3.2, 4.
#pragma once

#include <cstdint>

namespace qvl::image {

struct ImageSize {
  int64_t height = 0;
  int64_t width = 0;
  bool operator==(const ImageSize&) const = default;
};

inline constexpr int64_t kMaxAspectRatio = 200;

// Still image. Throws kInvalidArgument for sides below 1 or contradictory bounds, kLimit for an aspect ratio
// above 200 or a result above 2^28 pixels.
ImageSize smart_resize(int64_t height, int64_t width, int64_t factor, int64_t min_pixels, int64_t max_pixels);

// Frames of a video: the bounds hold for frames x height x width. The padded frame count is compared with
// them, the real one sets the scale. Throws also for a side shorter than `factor`.
ImageSize smart_resize_video(int64_t frames, int64_t height, int64_t width, int64_t temporal_factor,
                             int64_t factor, int64_t min_pixels, int64_t max_pixels);

}  // namespace qvl::image
