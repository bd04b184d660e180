// The patch grid of one image or video (a row of image_grid_thw / video_grid_thw). Spec 3.4 and 4.
#pragma once

#include <cstdint>

namespace qvl::image {

struct Grid {
  int64_t t = 0;  // frame pairs; 1 for a still image
  int64_t h = 0;  // patch rows
  int64_t w = 0;  // patch columns

  // Rows of pixel_values.
  int64_t patches() const { return t * h * w; }
  // Visual tokens in the prompt: one for each block of merge_size x merge_size patches.
  int64_t merged_tokens(int64_t merge_size = 2) const { return t * h * w / (merge_size * merge_size); }

  bool operator==(const Grid&) const = default;
};

}  // namespace qvl::image
