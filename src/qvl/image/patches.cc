// Rows of pixel_values; see patches.h. Spec 3.4.
#include "qvl/image/patches.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "qvl/base/error.h"

namespace qvl::image {
namespace {

// The 256 values a channel can take. Rescaling and normalising are fused as the reference fuses them.
using ChannelTable = std::array<float, 256>;

std::array<ChannelTable, 3> channel_tables(const PatchConfig& config) {
  std::array<ChannelTable, 3> tables;
  const float scale = static_cast<float>(1.0 / config.rescale_factor);
  for (size_t c = 0; c < 3; ++c) {
    const float mean = static_cast<float>(config.mean[c]) * scale;
    const float std = static_cast<float>(config.std[c]) * scale;
    for (size_t u = 0; u < 256; ++u) tables[c][u] = (static_cast<float>(u) - mean) / std;
  }
  return tables;
}

}  // namespace

Tensor patchify(std::span<const std::span<const uint8_t>> frames, int64_t height, int64_t width,
                const PatchConfig& config, ThreadPool* pool, Grid* grid) {
  const int64_t patch = config.patch_size_px;
  const int64_t merge = config.merge_size;
  const int64_t group = config.temporal_patch_size;
  const int64_t factor = config.resize_factor_px();
  if (patch < 1 || merge < 1 || group < 1 || factor < 1) {
    fail(ErrorCode::kInvalidArgument, "patchify", "patch geometry is not positive");
  }
  if (frames.empty() || height < 1 || width < 1 || height % factor != 0 || width % factor != 0) {
    fail(ErrorCode::kInvalidArgument, "patchify", "frames",
         "at least one, sides multiples of " + std::to_string(factor),
         std::to_string(frames.size()) + " of " + std::to_string(width) + "x" + std::to_string(height));
  }
  for (const std::span<const uint8_t> frame : frames) {
    if (static_cast<int64_t>(frame.size()) != height * width * 3) {
      fail(ErrorCode::kInvalidArgument, "patchify", "bytes of a frame", std::to_string(height * width * 3),
           std::to_string(frame.size()));
    }
  }

  const int64_t frame_count = static_cast<int64_t>(frames.size());
  const Grid shape = {(frame_count + group - 1) / group, height / patch, width / patch};
  const int64_t row_values = config.patch_values();
  const int64_t plane_values = patch * patch;           // one channel of one frame of a patch
  const int64_t channel_values = group * plane_values;  // its frames lie one after the other
  Tensor pixel_values(DType::kF32, {shape.patches(), row_values});
  float* const out = pixel_values.as<float>().data();
  const std::array<ChannelTable, 3> tables = channel_tables(config);
  const float* const red = tables[0].data();
  const float* const green = tables[1].data();
  const float* const blue = tables[2].data();

  // One task is one row of merge blocks: (width / factor) * merge * merge patches, contiguous in the output.
  const int64_t block_rows = shape.h / merge;
  const int64_t block_columns = shape.w / merge;
  const auto run_block_row = [&](int64_t task, int) {
    const int64_t t = task / block_rows;
    float* row = out + task * block_columns * merge * merge * row_values;
    for (int64_t bx = 0; bx < block_columns; ++bx) {
      for (int64_t iy = 0; iy < merge; ++iy) {
        for (int64_t ix = 0; ix < merge; ++ix, row += row_values) {
          const int64_t y = ((task % block_rows) * merge + iy) * patch;
          const int64_t x = (bx * merge + ix) * patch;
          for (int64_t dt = 0; dt < group; ++dt) {
            const int64_t frame = t * group + dt;
            float* const r = row + dt * plane_values;
            if (dt > 0 && frame >= frame_count) {
              for (int64_t c = 0; c < 3; ++c) {
                float* const values = r + c * channel_values;
                std::memcpy(values, values - plane_values, static_cast<size_t>(plane_values) * sizeof(float));
              }
              continue;
            }
            const uint8_t* src = frames[static_cast<size_t>(frame)].data() + (y * width + x) * 3;
            for (int64_t dy = 0; dy < patch; ++dy, src += width * 3) {
              float* const r0 = r + dy * patch;
              float* const g0 = r0 + channel_values;
              float* const b0 = g0 + channel_values;
              for (int64_t dx = 0; dx < patch; ++dx) {
                r0[dx] = red[src[3 * dx]];
                g0[dx] = green[src[3 * dx + 1]];
                b0[dx] = blue[src[3 * dx + 2]];
              }
            }
          }
        }
      }
    }
  };
  const int64_t tasks = shape.t * block_rows;
  if (pool != nullptr) {
    pool->parallel_for(tasks, run_block_row);
  } else {
    for (int64_t task = 0; task < tasks; ++task) run_block_row(task, 0);
  }
  *grid = shape;
  return pixel_values;
}

}  // namespace qvl::image
