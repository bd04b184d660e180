// Normalises 8-bit RGB frames and lays them out as rows of pixel_values: the last step before the vision
// encoder. Row order is 2x2 merge blocks, order inside a row is channel, time, y, x. Spec 3.4.
#pragma once

#include <cstdint>
#include <span>

#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/image/grid.h"
#include "qvl/image/processor_config.h"

namespace qvl::image {

// frames[i] is [height, width, 3]; the last one is repeated to fill temporal_patch_size (a still image is one
// frame). Sides must be multiples of resize_factor_px(). Returns F32 [grid.patches(), config.patch_values()]
// and sets `grid`. `pool` may be null. Throws kInvalidArgument.
Tensor patchify(std::span<const std::span<const uint8_t>> frames, int64_t height, int64_t width,
                const PatchConfig& config, ThreadPool* pool, Grid* grid);

}  // namespace qvl::image
