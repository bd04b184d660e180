// Integer linear kernels in plain C++: the oracle of int8_kernels.h, and what runs on processors without a table of
// their own.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"
#include "qvl/kernels/widen.h"

namespace qvl::kernels {
namespace {

constexpr int kTileRows = 4;
constexpr int kPanelCols = 8;

template <typename X>
void quantize(const void* x, int64_t k, int64_t group, int bits, int8_t* q, float* scales) {
  const X* src = static_cast<const X*>(x);
  const int64_t padded = int8_padded(k);
  for (int64_t g = 0; g < padded; g += group) {
    // As integers, so that a NaN is the largest value.
    uint32_t absmax = 0;
    float least = 0, greatest = 0;
    for (int64_t i = g; i < std::min(k, g + group); ++i) {
      const float v = widen(src[i]);
      absmax = std::max(absmax, std::bit_cast<uint32_t>(v) & 0x7fffffffu);
      least = std::min(least, v);
      greatest = std::max(greatest, v);
    }
    const float inverse = bits == 8 ? int8_inverse_scale(absmax, group, scales[g / group])
                                    : int7_inverse_scale(absmax, least, greatest, scales[g / group]);
    for (int64_t i = g; i < g + group; ++i) {
      const float v = i < k && inverse > 0 ? widen(src[i]) * inverse : 0.0f;
      q[i] = static_cast<int8_t>(std::clamp(std::nearbyint(v), -127.0f, 127.0f));
    }
  }
}

// Prepared: [padded k] q, then the scales.
size_t prepared_bytes(const Int8Weight& w) {
  const int64_t padded = int8_padded(w.k);
  return static_cast<size_t>(padded) + sizeof(float) * static_cast<size_t>(padded / w.group());
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const int64_t padded = int8_padded(w.k);
  std::memcpy(dst, q, static_cast<size_t>(padded));
  std::memcpy(dst + padded, scales, sizeof(float) * static_cast<size_t>(padded / w.group()));
}

void gemv(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  const int64_t padded = int8_padded(w.k);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t r = 0; r < m; ++r) {
      const int8_t* q = reinterpret_cast<const int8_t*>(x + r * x_stride);
      const float* scales = reinterpret_cast<const float*>(x + r * x_stride + padded);
      float sum = 0;
      for (int64_t g = 0; g < w.k; g += w.group()) {
        int32_t dot = 0;
        for (int64_t i = g; i < std::min(w.k, g + w.group()); ++i) dot += q[i] * int8_value(w, j, i);
        sum += static_cast<float>(dot) * (scales[g / w.group()] * int8_scale(w, j, g / w.block));
      }
      c[r * ldc + j] = sum;
    }
  }
}

// Panel: for each group [kPanelCols] scales, then [group][kPanelCols] values.
size_t panel_bytes(int64_t depth, int64_t group) {
  return static_cast<size_t>(depth / group) * kPanelCols * (sizeof(float) + static_cast<size_t>(group));
}

void pack(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  for (int64_t g = begin; g < begin + depth; g += w.group()) {
    float scales[kPanelCols];
    for (int64_t n = 0; n < kPanelCols; ++n) {
      scales[n] = n < cols && g < w.k ? int8_scale(w, n, g / w.block) : 0.0f;
    }
    std::memcpy(packed, scales, sizeof(scales));
    packed += sizeof(scales);
    for (int64_t i = g; i < g + w.group(); ++i) {
      for (int64_t n = 0; n < kPanelCols; ++n) {
        *packed++ = static_cast<std::byte>(n < cols && i < w.k ? int8_value(w, n, i) : 0);
      }
    }
  }
}

void tile(const Int8TileArgs& t) {
  for (int r = 0; r < t.rows; ++r) {
    const uint8_t* x = t.x + r * t.x_stride;
    const std::byte* p = t.packed;
    float sum[kPanelCols] = {};
    if (t.accumulate) std::memcpy(sum, t.c + r * kPanelCols, sizeof(sum));
    for (int64_t g = 0; g < t.groups; ++g) {
      float scales[kPanelCols];
      std::memcpy(scales, p, sizeof(scales));
      p += sizeof(scales);
      int32_t dot[kPanelCols] = {};
      for (int64_t i = 0; i < t.group; ++i, p += kPanelCols) {
        const int32_t v = static_cast<int32_t>(*x++) - 128;
        for (int n = 0; n < kPanelCols; ++n) dot[n] += v * static_cast<int8_t>(p[n]);
      }
      const float x_scale = t.x_scales[r * t.x_scale_stride + g];
      for (int n = 0; n < kPanelCols; ++n) sum[n] += static_cast<float>(dot[n]) * (x_scale * scales[n]);
    }
    std::memcpy(t.c + r * kPanelCols, sum, sizeof(sum));
  }
}

}  // namespace

const Int8Kernels& int8_kernels_scalar() {
  static const Int8Kernels kernels = {
      quantize<float>, quantize<BFloat16>, {prepared_bytes, prepare, gemv}, {kTileRows, kPanelCols, false, panel_bytes, pack, tile}};
  return kernels;
}

}  // namespace qvl::kernels
