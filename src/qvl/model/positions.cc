#include "qvl/model/positions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "qvl/base/error.h"

namespace qvl::model {
namespace {

std::string grid_string(const image::Grid& g) {
  return "(" + std::to_string(g.t) + ", " + std::to_string(g.h) + ", " + std::to_string(g.w) + ")";
}

void check_grid(const image::Grid& g, int64_t merge) {
  constexpr int64_t kMaxSide = int64_t{1} << 24;
  const bool sane = g.t >= 1 && g.h >= 1 && g.w >= 1 && g.t <= kMaxSide && g.h <= kMaxSide && g.w <= kMaxSide;
  if (merge < 1) {
    fail(ErrorCode::kInvalidArgument, "positions", "spatial merge size", "at least 1", std::to_string(merge));
  }
  if (!sane || g.h % merge != 0 || g.w % merge != 0) {
    fail(ErrorCode::kInvalidArgument, "positions", "grid_thw",
         "positive numbers, h and w multiples of " + std::to_string(merge), grid_string(g));
  }
  if (g.h * g.w > (int64_t{1} << 40) / g.t) {
    fail(ErrorCode::kLimit, "positions", "grid_thw " + grid_string(g) + " is impossibly large");
  }
}

// Tables are made for these patches: a bound on memory, about 100 GB of pixels.
int64_t patch_total(std::span<const image::Grid> grids, int64_t merge) {
  constexpr int64_t kMaxPatches = int64_t{1} << 26;
  int64_t total = 0;
  for (const image::Grid& g : grids) {
    check_grid(g, merge);
    total += g.patches();
    if (total > kMaxPatches) {
      fail(ErrorCode::kLimit, "positions", "patches in one call", "at most " + std::to_string(kMaxPatches),
           std::to_string(total));
    }
  }
  return total;
}

// Calls fn(row, col) for each patch of one frame in sequence order.
template <typename Fn>
void for_each_patch(const image::Grid& g, int64_t merge, const Fn& fn) {
  for (int64_t by = 0; by < g.h; by += merge) {
    for (int64_t bx = 0; bx < g.w; bx += merge) {
      for (int64_t iy = 0; iy < merge; ++iy) {
        for (int64_t ix = 0; ix < merge; ++ix) fn(by + iy, bx + ix);
      }
    }
  }
}

// The reference's float32 linspace(0, top, n): grows from 0 in the first half and from `top` in the second.
std::vector<float> linspace_f32(int64_t n, float top) {
  std::vector<float> values(static_cast<size_t>(n), 0.0f);
  if (n == 1) return values;
  const float step = top / static_cast<float>(n - 1);
  for (int64_t i = 0; i < n; ++i) {
    values[static_cast<size_t>(i)] =
        i < n / 2 ? step * static_cast<float>(i) : top - step * static_cast<float>(n - 1 - i);
  }
  return values;
}

// The cosine and sine of a float32 angle, rounded once: the same on every machine to the quality of libm's
// double routines, where float32 routines differ in the last bit.
void cos_sin(float angle, float* cos, float* sin) {
  *cos = static_cast<float>(std::cos(static_cast<double>(angle)));
  *sin = static_cast<float>(std::sin(static_cast<double>(angle)));
}

enum class Kind { kText, kImage, kVideo };

struct GridQueue {
  std::span<const image::Grid> grids;
  bool by_frame = false;  // each run takes one (1, h, w) instead of the whole grid
  size_t next = 0;
  int64_t frame = 0;

  bool empty() const { return next == grids.size(); }
  image::Grid take() {
    image::Grid g = grids[next];
    if (!by_frame) {
      ++next;
      return g;
    }
    if (++frame == g.t) {
      ++next;
      frame = 0;
    }
    g.t = 1;
    return g;
  }
};

}  // namespace

Positions Positions::slice(int64_t begin, int64_t count) const {
  if (begin < 0 || count < 0 || begin > size() || count > size() - begin) {
    fail(ErrorCode::kInvalidArgument, "positions", "slice", "a range inside 0.." + std::to_string(size()),
         std::to_string(begin) + " + " + std::to_string(count));
  }
  Positions result;
  result.delta = delta;
  for (int a = 0; a < 3; ++a) result.axis[a].assign(axis[a].begin() + begin, axis[a].begin() + begin + count);
  return result;
}

Positions mrope_positions(std::span<const int32_t> ids, int32_t image_token_id, int32_t video_token_id,
                          std::span<const image::Grid> image_grids, std::span<const image::Grid> video_grids,
                          int64_t spatial_merge_size) {
  const int64_t merge = spatial_merge_size;
  for (const image::Grid& g : image_grids) check_grid(g, merge);
  for (const image::Grid& g : video_grids) check_grid(g, merge);
  const auto kind_of = [&](int32_t id) {
    return id == image_token_id ? Kind::kImage : id == video_token_id ? Kind::kVideo : Kind::kText;
  };

  Positions result;
  for (auto& axis : result.axis) axis.resize(ids.size());
  GridQueue images{image_grids, false};
  GridQueue videos{video_grids, true};
  int64_t current = 0;  // also one more than the largest position so far
  for (size_t begin = 0; begin < ids.size();) {
    const Kind kind = kind_of(ids[begin]);
    size_t end = begin + 1;
    while (end < ids.size() && kind_of(ids[end]) == kind) ++end;
    const auto length = static_cast<int64_t>(end - begin);
    if (kind == Kind::kText) {
      for (int64_t j = 0; j < length; ++j) {
        for (auto& axis : result.axis) axis[begin + static_cast<size_t>(j)] = current + j;
      }
      current += length;
    } else {
      const std::string name = kind == Kind::kImage ? "image" : "video frame";
      GridQueue& queue = kind == Kind::kImage ? images : videos;
      if (queue.empty()) {
        fail(ErrorCode::kMismatch, "positions", name + " grids",
             "one for the run of pads at token " + std::to_string(begin),
             "none left of " + std::to_string(queue.grids.size()));
      }
      const image::Grid g = queue.take();
      const int64_t rows = g.h / merge;
      const int64_t columns = g.w / merge;
      if (length != g.t * rows * columns) {
        fail(ErrorCode::kMismatch, "positions", name + " pads at token " + std::to_string(begin),
             std::to_string(g.t * rows * columns) + " for grid " + grid_string(g), std::to_string(length),
             "two images or frames must be separated by a token");
      }
      for (int64_t j = 0; j < length; ++j) {
        const size_t at = begin + static_cast<size_t>(j);
        result.axis[0][at] = current;
        result.axis[1][at] = current + j / columns % rows;
        result.axis[2][at] = current + j % columns;
      }
      current += std::max(rows, columns);
    }
    begin = end;
  }
  if (!images.empty()) {
    fail(ErrorCode::kMismatch, "positions", "image grids",
         "as many as runs of image pads, " + std::to_string(images.next), std::to_string(image_grids.size()));
  }
  if (!videos.empty()) {
    fail(
        ErrorCode::kMismatch, "positions", "video grids", "a run of video pads for each frame pair",
        "no run for frame pair " + std::to_string(videos.frame) + " of video " + std::to_string(videos.next));
  }
  result.delta = current - static_cast<int64_t>(ids.size());
  return result;
}

Positions mrope_positions(const ModelConfig& config, std::span<const int32_t> ids,
                          std::span<const image::Grid> image_grids,
                          std::span<const image::Grid> video_grids) {
  return mrope_positions(ids, config.image_token_id, config.video_token_id, image_grids, video_grids,
                         config.vision.spatial_merge_size);
}

Positions decode_positions(int64_t length, int64_t delta, int64_t count) {
  if (length < 0 || count < 0 || length + delta < 0) {
    fail(ErrorCode::kInvalidArgument, "positions", "decode position", "not negative",
         std::to_string(length + delta));
  }
  Positions result;
  result.delta = delta;
  for (auto& axis : result.axis) {
    for (int64_t j = 0; j < count; ++j) axis.push_back(length + delta + j);
  }
  return result;
}

PatchCoords patch_coords(std::span<const image::Grid> grids, int64_t merge) {
  PatchCoords result;
  const auto total = static_cast<size_t>(patch_total(grids, merge));
  result.row.reserve(total);
  result.col.reserve(total);
  for (const image::Grid& g : grids) {
    for (int64_t f = 0; f < g.t; ++f) {
      for_each_patch(g, merge, [&](int64_t r, int64_t c) {
        result.row.push_back(r);
        result.col.push_back(c);
      });
    }
  }
  return result;
}

VisionTaps vision_taps(std::span<const image::Grid> grids, int64_t side, int64_t merge) {
  if (side < 1 || side > (int64_t{1} << 20)) {
    fail(ErrorCode::kInvalidArgument, "positions", "side of the position table", "at least 1",
         std::to_string(side));
  }
  VisionTaps result;
  result.patches = patch_total(grids, merge);
  const auto total = static_cast<size_t>(result.patches);
  result.index.resize(4 * total);
  result.weight.resize(4 * total);
  const auto top = static_cast<float>(side - 1);
  size_t p = 0;
  for (const image::Grid& g : grids) {
    const std::vector<float> y = linspace_f32(g.h, top);
    const std::vector<float> x = linspace_f32(g.w, top);
    const size_t first = p;
    for_each_patch(g, merge, [&](int64_t r, int64_t c) {
      const float fy = y[static_cast<size_t>(r)];
      const float fx = x[static_cast<size_t>(c)];
      const auto y0 = static_cast<int64_t>(fy);
      const auto x0 = static_cast<int64_t>(fx);
      const int64_t y1 = std::min(y0 + 1, side - 1);
      const int64_t x1 = std::min(x0 + 1, side - 1);
      const float dy = fy - static_cast<float>(y0);
      const float dx = fx - static_cast<float>(x0);
      const int64_t index[4] = {y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1};
      const float weight[4] = {(1.0f - dy) * (1.0f - dx), (1.0f - dy) * dx, dy * (1.0f - dx), dy * dx};
      for (size_t k = 0; k < 4; ++k) {
        result.index[k * total + p] = index[k];
        result.weight[k * total + p] = weight[k];
      }
      ++p;
    });
    // Every frame of a video has the same taps.
    const size_t frame = p - first;
    for (int64_t f = 1; f < g.t; ++f, p += frame) {
      for (size_t k = 0; k < 4; ++k) {
        std::copy_n(result.index.begin() + static_cast<ptrdiff_t>(k * total + first), frame,
                    result.index.begin() + static_cast<ptrdiff_t>(k * total + p));
        std::copy_n(result.weight.begin() + static_cast<ptrdiff_t>(k * total + first), frame,
                    result.weight.begin() + static_cast<ptrdiff_t>(k * total + p));
      }
    }
  }
  return result;
}

CosSin CosSin::widened() const {
  CosSin result;
  result.rows = rows;
  result.width = 2 * width;
  for (const bool is_cos : {true, false}) {
    const std::vector<float>& from = is_cos ? cos : sin;
    std::vector<float>& to = is_cos ? result.cos : result.sin;
    to.reserve(2 * from.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int half = 0; half < 2; ++half)
        to.insert(to.end(), from.begin() + r * width, from.begin() + (r + 1) * width);
    }
  }
  return result;
}

std::vector<float> rope_inv_freq(int64_t dim, double theta) {
  if (dim < 2 || dim % 2 != 0) {
    fail(ErrorCode::kInvalidArgument, "positions", "rotary width", "an even number", std::to_string(dim));
  }
  std::vector<float> inv;
  inv.reserve(static_cast<size_t>(dim / 2));
  for (int64_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    const auto power = static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
    inv.push_back(1.0f / power);
  }
  return inv;
}

CosSin vision_cos_sin(std::span<const image::Grid> grids, int64_t head_dim, int64_t merge) {
  constexpr double kVisionTheta = 10000.0;
  if (head_dim < 4 || head_dim % 4 != 0) {
    fail(ErrorCode::kInvalidArgument, "positions", "vision head size", "a multiple of 4",
         std::to_string(head_dim));
  }
  CosSin result;
  result.rows = patch_total(grids, merge);
  result.width = head_dim / 2;
  const std::vector<float> inv = rope_inv_freq(head_dim / 2, kVisionTheta);
  const size_t quarter = inv.size();

  // Row and column angles come from one table of coordinate * frequency.
  int64_t longest = 0;
  for (const image::Grid& g : grids) longest = std::max({longest, g.h, g.w});
  std::vector<float> cos_table(static_cast<size_t>(longest) * quarter);
  std::vector<float> sin_table(cos_table.size());
  for (int64_t v = 0; v < longest; ++v) {
    for (size_t i = 0; i < quarter; ++i) {
      const size_t at = static_cast<size_t>(v) * quarter + i;
      cos_sin(static_cast<float>(v) * inv[i], &cos_table[at], &sin_table[at]);
    }
  }
  result.cos.resize(static_cast<size_t>(result.rows * result.width));
  result.sin.resize(result.cos.size());
  size_t out = 0;
  for (const image::Grid& g : grids) {
    for (int64_t f = 0; f < g.t; ++f) {
      for_each_patch(g, merge, [&](int64_t r, int64_t c) {
        for (const int64_t v : {r, c}) {
          std::memcpy(&result.cos[out], &cos_table[static_cast<size_t>(v) * quarter],
                      quarter * sizeof(float));
          std::memcpy(&result.sin[out], &sin_table[static_cast<size_t>(v) * quarter],
                      quarter * sizeof(float));
          out += quarter;
        }
      });
    }
  }
  return result;
}

std::vector<float> mrope_inv_freq(const TextConfig& config) {
  const RopeConfig& rope = config.rope;
  std::vector<float> inv = rope_inv_freq(config.head_dim, rope.theta);
  if (rope.type == RopeType::kDefault) return inv;

  // YaRN: high frequencies stay, low ones are divided by the factor, a ramp in between. Bounds in double, the
  // blend in float32, as the reference does.
  const auto dim = static_cast<double>(config.head_dim);
  const auto correction = [&](double rotations) {
    return dim * std::log(static_cast<double>(rope.original_max_positions) / (rotations * 2.0 * M_PI)) /
           (2.0 * std::log(rope.theta));
  };
  double low = correction(rope.beta_fast);
  double high = correction(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;  // as the reference, against division by zero
  for (size_t i = 0; i < inv.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    const auto power = static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
    const float interpolated = 1.0f / (static_cast<float>(rope.factor) * power);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float keep = 1.0f - ramp;
    inv[i] = interpolated * (1.0f - keep) + inv[i] * keep;
  }
  return inv;
}

double mrope_attention_factor(const TextConfig& config) {
  const RopeConfig& rope = config.rope;
  if (rope.type == RopeType::kDefault) return 1.0;
  if (rope.attention_factor) return *rope.attention_factor;
  const auto scale = [&](double mscale) {
    return rope.factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(rope.factor) + 1.0;
  };
  if (rope.mscale != 0.0 && rope.mscale_all_dim != 0.0)
    return scale(rope.mscale) / scale(rope.mscale_all_dim);
  return scale(1.0);
}

std::vector<int64_t> mrope_axis(const TextConfig& config) {
  std::vector<int64_t> axis(static_cast<size_t>(config.head_dim / 2), 0);
  for (size_t a = 1; a < 3; ++a) {
    const auto end = std::min(axis.size(), static_cast<size_t>(3 * config.rope.mrope_section[a]));
    for (size_t i = a; i < end; i += 3) axis[i] = static_cast<int64_t>(a);
  }
  return axis;
}

MropeTable::MropeTable(const TextConfig& config)
    : inv_freq_(mrope_inv_freq(config)),
      axis_(mrope_axis(config)),
      attention_factor_(static_cast<float>(mrope_attention_factor(config))) {}

void MropeTable::fill(const std::span<const int64_t> (&positions)[3], std::span<float> cos,
                      std::span<float> sin) const {
  const size_t rows = positions[0].size();
  const size_t columns = inv_freq_.size();
  for (int a = 1; a < 3; ++a) {
    if (positions[a].size() != rows) {
      fail(ErrorCode::kMismatch, "positions", "length of the three axes", std::to_string(rows),
           std::to_string(positions[a].size()));
    }
  }
  if (cos.size() != rows * columns || sin.size() != rows * columns) {
    fail(ErrorCode::kMismatch, "positions", "size of the rotary tables", std::to_string(rows * columns),
         std::to_string(std::min(cos.size(), sin.size())));
  }
  for (size_t r = 0; r < rows; ++r) {
    const float value[3] = {static_cast<float>(positions[0][r]), static_cast<float>(positions[1][r]),
                            static_cast<float>(positions[2][r])};
    for (size_t i = 0; i < columns; ++i) {
      float c;
      float s;
      cos_sin(value[axis_[i]] * inv_freq_[i], &c, &s);
      cos[r * columns + i] = c * attention_factor_;
      sin[r * columns + i] = s * attention_factor_;
    }
  }
}

CosSin mrope_cos_sin(const Positions& positions, const TextConfig& config) {
  const MropeTable table(config);
  CosSin result;
  result.rows = positions.size();
  result.width = table.width();
  result.cos.resize(static_cast<size_t>(result.rows * result.width));
  result.sin.resize(result.cos.size());
  table.fill({positions.axis[0], positions.axis[1], positions.axis[2]}, result.cos, result.sin);
  return result;
}

}  // namespace qvl::model
