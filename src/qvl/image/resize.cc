// Filter taps and the two passes; see resize.h. Spec 3.3.
//
// Both passes are one operation, a weighted sum of rows (resize_kernels.h): the height pass applies it to
// rows of pixels, the width pass to tiles of 64 rows turned into columns. The picture is cut into bands of
// output rows; each band keeps its width-pass result in the cache until the height pass has used it.
#include "qvl/image/resize.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "qvl/base/error.h"
#include "qvl/image/resize_kernels.h"

namespace qvl::image {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kChannels = 3;
// Target for the width-pass result of one band; half of a common second-level cache.
constexpr int64_t kBandBytes = int64_t{1} << 19;
constexpr int kMaxPrecisionBits = 22;

double cubic(double x) {
  constexpr double kA = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * kA;
  return 0.0;
}

void check_sides(int64_t height, int64_t width) {
  constexpr int64_t kMaxSide = int64_t{1} << 30;
  if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide) {
    fail(ErrorCode::kInvalidArgument, "resize", "size", "sides of 1 to 2^30 pixels",
         std::to_string(width) + "x" + std::to_string(height));
  }
}

// Input samples needed for outputs [begin, end).
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};
Range input_range(const ResizeTaps& taps, int64_t begin, int64_t end) {
  return {taps.first[begin], int64_t{taps.first[end - 1]} + taps.count[end - 1]};
}

// Scratch memory of one thread.
struct Scratch {
  std::vector<uint8_t> columns_in;
  std::vector<uint8_t> columns_out;
  std::vector<uint8_t> band;
};

// Resamples `rows` (any number) rows of [in_width, 3] to [out_width, 3].
void resize_width(const uint8_t* src, int64_t rows, int64_t in_width, const ResizeTaps& taps, uint8_t* dst,
                  WeightedRowsKernel kernel, Scratch& scratch) {
  const int64_t out_width = static_cast<int64_t>(taps.first.size());
  const double scale = static_cast<double>(in_width) / static_cast<double>(out_width);
  // About 512 input columns a tile (96 KiB): long enough runs for the prefetcher, and never so few outputs
  // that the overlap of tiles dominates.
  const int64_t tile_columns = std::clamp<int64_t>(static_cast<int64_t>(512.0 / scale), 16, 512);
  const int64_t column_bytes = kChannels * kTileRows;
  for (int64_t y = 0; y < rows; y += kTileRows) {
    const int64_t tile_rows = std::min(kTileRows, rows - y);
    for (int64_t x = 0; x < out_width; x += tile_columns) {
      const int64_t x_end = std::min(x + tile_columns, out_width);
      const Range in = input_range(taps, x, x_end);
      scratch.columns_in.resize(std::max<size_t>(scratch.columns_in.size(),
                                                 static_cast<size_t>((in.end - in.begin) * column_bytes)));
      scratch.columns_out.resize(
          std::max<size_t>(scratch.columns_out.size(), static_cast<size_t>((x_end - x) * column_bytes)));
      transpose_to_columns(src + (y * in_width + in.begin) * kChannels, in_width * kChannels, tile_rows,
                           (in.end - in.begin) * kChannels, scratch.columns_in.data());
      for (int64_t i = x; i < x_end; ++i) {
        kernel(scratch.columns_in.data() + (taps.first[i] - in.begin) * column_bytes, column_bytes,
               taps.count[i], taps.weight.data() + i * taps.stride, taps.precision_bits,
               scratch.columns_out.data() + (i - x) * column_bytes, column_bytes);
      }
      transpose_to_rows(scratch.columns_out.data(), tile_rows, (x_end - x) * kChannels,
                        dst + (y * out_width + x) * kChannels, out_width * kChannels);
    }
  }
}

// Makes output rows [begin, end) of [*, row_bytes] from the rows at `src`, the first of which is `src_begin`.
void resize_height(const uint8_t* src, int64_t src_begin, int64_t row_bytes, const ResizeTaps& taps,
                   int64_t begin, int64_t end, uint8_t* dst, WeightedRowsKernel kernel) {
  for (int64_t i = begin; i < end; ++i) {
    kernel(src + (taps.first[i] - src_begin) * row_bytes, row_bytes, taps.count[i],
           taps.weight.data() + i * taps.stride, taps.precision_bits, dst + i * row_bytes, row_bytes);
  }
}

// Output rows of a band: as many whole tiles of input rows as fit the cache, less the overlap with the next
// band.
int64_t band_rows(int64_t in_height, int64_t out_height, int64_t row_bytes, bool resample) {
  if (!resample) return std::clamp<int64_t>(kBandBytes / row_bytes / kTileRows, 1, 16) * kTileRows;
  const double scale = static_cast<double>(in_height) / static_cast<double>(out_height);
  const double overlap = 4.0 * std::max(scale, 1.0) + 1.0;
  double input_rows =
      static_cast<double>(std::max<int64_t>(1, kBandBytes / row_bytes / kTileRows) * kTileRows);
  input_rows = std::max(input_rows, std::ceil(4.0 * overlap / kTileRows) * kTileRows);
  return std::max<int64_t>(1, static_cast<int64_t>((input_rows - overlap) / scale));
}

}  // namespace

ResizeTaps make_resize_taps(int64_t in_size, int64_t out_size) {
  check_sides(in_size, out_size);
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale;
  const double inverse_scale = 1.0 / filter_scale;
  const int64_t max_count = 2 * static_cast<int64_t>(std::ceil(support)) + 1;

  ResizeTaps taps;
  taps.stride = max_count + (max_count & 1);
  taps.first.resize(static_cast<size_t>(out_size));
  taps.count.resize(static_cast<size_t>(out_size));
  std::vector<double> weights(static_cast<size_t>(out_size * taps.stride), 0.0);
  double largest = 0.0;
  for (int64_t i = 0; i < out_size; ++i) {
    const double center = scale * (static_cast<double>(i) + 0.5);
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t last = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), in_size);
    const int64_t count = std::clamp<int64_t>(last - first, 0, max_count);
    double* w = weights.data() + i * taps.stride;
    double sum = 0.0;
    for (int64_t j = 0; j < count; ++j) {
      w[j] = cubic((static_cast<double>(j + first) - center + 0.5) * inverse_scale);
      sum += w[j];
    }
    for (int64_t j = 0; j < count; ++j) {
      w[j] /= sum;
      largest = std::max(largest, w[j]);
    }
    taps.first[i] = static_cast<int32_t>(first);
    taps.count[i] = static_cast<int32_t>(count);
  }

  // The largest scale at which every tap still fits int16.
  const auto scaled_largest = [&](int bits) {
    return static_cast<int64_t>(0.5 + largest * static_cast<double>(int64_t{1} << bits));
  };
  while (taps.precision_bits < kMaxPrecisionBits && scaled_largest(taps.precision_bits + 1) < (1 << 15)) {
    ++taps.precision_bits;
  }
  const double unit = static_cast<double>(int64_t{1} << taps.precision_bits);
  taps.weight.resize(weights.size());
  for (size_t k = 0; k < weights.size(); ++k) {
    taps.weight[k] = static_cast<int16_t>(weights[k] * unit + (weights[k] < 0.0 ? -0.5 : 0.5));
  }
  return taps;
}

std::vector<uint8_t> resize_bicubic_u8(std::span<const uint8_t> src, int64_t height, int64_t width,
                                       int64_t out_height, int64_t out_width, ThreadPool* pool) {
  return resize_bicubic_u8(src, height, width, out_height, out_width, pool, available_resize_isas().back());
}

std::vector<uint8_t> resize_bicubic_u8(std::span<const uint8_t> src, int64_t height, int64_t width,
                                       int64_t out_height, int64_t out_width, ThreadPool* pool,
                                       ResizeIsa isa) {
  check_sides(height, width);
  check_sides(out_height, out_width);
  if (static_cast<int64_t>(src.size()) != height * width * kChannels) {
    fail(ErrorCode::kInvalidArgument, "resize", "source bytes", std::to_string(height * width * kChannels),
         std::to_string(src.size()));
  }
  const WeightedRowsKernel kernel = weighted_rows_kernel(isa);
  const bool change_width = out_width != width;
  const bool change_height = out_height != height;
  if (!change_width && !change_height) return {src.begin(), src.end()};

  const ResizeTaps column_taps = change_width ? make_resize_taps(width, out_width) : ResizeTaps{};
  const ResizeTaps row_taps = change_height ? make_resize_taps(height, out_height) : ResizeTaps{};
  const int64_t row_bytes = out_width * kChannels;
  std::vector<uint8_t> out(static_cast<size_t>(out_height * row_bytes));

  const int threads = pool != nullptr ? pool->threads() : 1;
  int64_t rows = band_rows(height, out_height, row_bytes, change_height);
  // Enough bands to keep all threads busy, as long as the overlap stays small.
  if (threads > 1)
    rows = std::min(rows, std::max<int64_t>(32, (out_height + 2 * threads - 1) / (2 * threads)));
  const int64_t bands = (out_height + rows - 1) / rows;
  std::vector<Scratch> scratch(static_cast<size_t>(threads));
  const auto run_band = [&](int64_t band, int thread) {
    const int64_t begin = band * rows;
    const int64_t end = std::min(begin + rows, out_height);
    Scratch& mine = scratch[static_cast<size_t>(thread)];
    if (!change_height) {
      resize_width(src.data() + begin * width * kChannels, end - begin, width, column_taps,
                   out.data() + begin * row_bytes, kernel, mine);
    } else if (!change_width) {
      resize_height(src.data(), 0, row_bytes, row_taps, begin, end, out.data(), kernel);
    } else {
      const Range in = input_range(row_taps, begin, end);
      mine.band.resize(
          std::max<size_t>(mine.band.size(), static_cast<size_t>((in.end - in.begin) * row_bytes)));
      resize_width(src.data() + in.begin * width * kChannels, in.end - in.begin, width, column_taps,
                   mine.band.data(), kernel, mine);
      resize_height(mine.band.data(), in.begin, row_bytes, row_taps, begin, end, out.data(), kernel);
    }
  };
  if (pool != nullptr) {
    pool->parallel_for(bands, run_band);
  } else {
    for (int64_t band = 0; band < bands; ++band) run_band(band, 0);
  }
  return out;
}

}  // namespace qvl::image
