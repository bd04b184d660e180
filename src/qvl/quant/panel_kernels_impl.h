// The quantiser of sixteen rows, written once over a vector type V (private to this room; each panel_*.cc
// includes it below its own target options and gives it a V). Pipeline: a block of 16 rows is transposed to
// [k][16] floats, scaled by a power of two so that its largest value lies in [1, 2), searched, rounded,
// packed, and its error summed.
//
// Search. With codes c = clamp(round(x * r), low, high), the scale of least squared error is sum(w x c) /
// sum(w c c) and the error left is sum(w x x) - sum(w x c)^2 / sum(w c c). A grid of r is tried, then codes
// and scale are improved in turn (each step can only lower the error). With 8 bits the error is five digits
// below the weights, so that the difference above would drown in float32: there the error is summed itself,
// together with what the best scale would take off it.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "qvl/quant/panel_kernels.h"

namespace qvl::quant {
namespace {

// Codes that the largest value of a block may be mapped to. Below 8 (or 7, on the short side) precision is
// given up, above it values are clipped: far, where importance says that the largest values hardly count.
// Found by comparing with 1400 candidates a side on Gaussian, heavy-tailed and outlier-ridden blocks with
// even and uneven importance: with 28 and one refinement the squared error is 0.1 % above theirs on average
// and 0.3 % at worst. Multiples of 4: as many candidates share a pass over the block.
constexpr std::array<float, 16> kLongSide4 = {6.400f,  6.857f,  7.346f,  7.870f,  8.432f,  9.034f,
                                              9.679f,  10.369f, 11.110f, 11.902f, 12.752f, 13.662f,
                                              14.637f, 15.682f, 16.801f, 18.000f};
constexpr std::array<float, 8> kShortSide4 = {6.200f,  7.099f,  8.129f,  9.308f,
                                              10.658f, 12.203f, 13.973f, 16.000f};
constexpr std::array<float, 4> kNear4 = {0.97f, 0.985f, 1.015f, 1.03f};

// With zero points: steps between the smallest and the largest value, each with none, half and all of the
// clipped steps below; then neighbours in scale and zero point. 1 % above the best of 1900 pairs on average.
constexpr std::array<float, 8> kRange4 = {13.500f, 15.271f, 17.275f, 19.542f,
                                          22.106f, 25.007f, 28.288f, 32.000f};
constexpr std::array<float, 3> kShareBelow = {0.0f, 0.5f, 1.0f};
struct Neighbour {
  float factor;
  float zero;
};
constexpr std::array<Neighbour, 8> kNearRange4 = {
    {{0.975f, 0}, {1.025f, 0}, {1, 1}, {1, -1}, {0.99f, 0}, {1.01f, 0}, {1.05f, 0}, {0.95f, 0}}};

constexpr std::array<float, 8> kLongSide8 = {127.5f, 128.0f, 128.5f, 130.0f, 134.0f, 142.0f, 155.0f, 175.0f};
constexpr std::array<float, 8> kRow8 = {126.5f, 127.0f, 127.5f, 129.0f, 133.0f, 141.0f, 154.0f, 174.0f};
constexpr std::array<float, 8> kRange8 = {254.5f, 255.0f, 255.5f, 258.0f, 266.0f, 282.0f, 310.0f, 350.0f};
constexpr std::array<float, 4> kNear8 = {0.995f, 0.998f, 1.002f, 1.005f};

constexpr float kRoundMagic =
    12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds |v| < 2^22 to nearest even
constexpr int64_t kStatsColumns = 256;  // float32 sums no longer than this, then float64
constexpr int64_t kPrefetchBytes = 512;

inline float load_weight(const std::byte* p, DType type) {
  if (type == DType::kF32) {
    float v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return type == DType::kBF16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}

// Codes of a scale in units of its row's factor: the nearest, and the next one on the other side of it. The smallest one
// stands for scales that are smaller still: the weights are rounded to the nearest of what it gives, 0 among them.
inline std::array<float, 2> scale_codes(float scale, float factor) {
  const float exact = std::fabs(scale) / factor, nearest = scale == 0 ? 0.0f : std::max(1.0f, std::nearbyint(exact));
  const float other = std::clamp(nearest + (exact > nearest ? 1.0f : -1.0f), std::min(nearest, 1.0f), 127.0f);
  return {std::copysign(nearest, scale), std::copysign(other, scale)};
}

inline float round_scale(float scale, DType type) {
  switch (type) {
    case DType::kBF16:
      return to_float(to_bfloat16(scale));
    case DType::kF16:
      return to_float(to_float16(scale));
    default:
      return scale;
  }
}

// panel[k][lane] of columns [first, first + n); lanes without a row are zero.
template <class V>
void load_panel(const PanelTask& task, int64_t first, int64_t n, float* panel) {
  const int64_t size = task.type == DType::kF32 ? 4 : 2;
  const std::byte* from = task.source + first * size;
  int64_t k = 0;
  if (task.rows == kPanelRows) {
    for (int r = 0; r < kPanelRows; ++r) {
      __builtin_prefetch(from + r * task.source_stride_bytes + n * size + kPrefetchBytes, 0, 2);
    }
    for (; k + V::kTile <= n; k += V::kTile) {
      V::load_tile(from + k * size, task.source_stride_bytes, task.type, panel + k * kPanelRows);
    }
  }
  for (; k < n; ++k) {
    for (int r = 0; r < kPanelRows; ++r) {
      panel[k * kPanelRows + r] =
          r < task.rows ? load_weight(from + r * task.source_stride_bytes + k * size, task.type) : 0.0f;
    }
  }
}

// V::kWidth lanes of one block.
struct LaneBlock {
  const float* x;  // x[k * kPanelRows], already at the first lane
  const float* w;  // w[k]
  int64_t n;
};

template <class V>
struct Candidate {
  typename V::F inverse, low, high;
};

template <class V>
struct Best {
  Candidate<V> candidate;
  typename V::F score, scale;
};

template <class V>
typename V::F round_code(typename V::F x, const Candidate<V>& c) {
  const auto magic = V::set1(kRoundMagic);
  const auto v = V::min(V::max(V::mul(x, c.inverse), c.low), c.high);
  return V::sub(V::add(v, magic), magic);
}

template <class V>
void keep_better(const Candidate<V>& c, typename V::F score, typename V::F scale, Best<V>& best) {
  const auto better = V::gt(score, best.score);
  best.score = V::select(better, score, best.score);
  best.scale = V::select(better, scale, best.scale);
  best.candidate.inverse = V::select(better, c.inverse, best.candidate.inverse);
  best.candidate.low = V::select(better, c.low, best.candidate.low);
  best.candidate.high = V::select(better, c.high, best.candidate.high);
}

// Score: how much of sum(w x x) the codes explain with their best scale.
template <class V, bool kWeighted, int kTogether>
void try_coarse(const LaneBlock& b, const std::array<Candidate<V>, kTogether>& c, Best<V>& best) {
  typename V::F product[kTogether], square[kTogether];
  for (int i = 0; i < kTogether; ++i) product[i] = square[i] = V::set1(0);
  for (int64_t k = 0; k < b.n; ++k) {
    const auto x = V::load(b.x + k * kPanelRows);
    for (int i = 0; i < kTogether; ++i) {
      const auto q = round_code<V>(x, c[i]);
      const auto wq = kWeighted ? V::mul(q, V::set1(b.w[k])) : q;
      product[i] = V::add(product[i], V::mul(wq, x));
      square[i] = V::add(square[i], V::mul(wq, q));
    }
  }
  for (int i = 0; i < kTogether; ++i) {
    // All codes zero explains nothing; the maximum keeps 0/0 out of it.
    const auto scale = V::div(product[i], V::max(square[i], V::set1(1e-30f)));
    keep_better<V>(c[i], V::mul(product[i], scale), scale, best);
  }
}

// Score: minus the error that is left with the best scale for the codes.
template <class V, bool kWeighted>
void try_fine(const LaneBlock& b, const Candidate<V>& c, Best<V>& best) {
  const auto scale = V::div(V::set1(1), c.inverse);
  auto error = V::set1(0), product = V::set1(0), square = V::set1(0);
  for (int64_t k = 0; k < b.n; ++k) {
    const auto x = V::load(b.x + k * kPanelRows);
    const auto q = round_code<V>(x, c);
    const auto d = V::sub(x, V::mul(q, scale));
    const auto wd = kWeighted ? V::mul(d, V::set1(b.w[k])) : d;
    const auto wq = kWeighted ? V::mul(q, V::set1(b.w[k])) : q;
    error = V::add(error, V::mul(wd, d));
    product = V::add(product, V::mul(wd, q));
    square = V::add(square, V::mul(wq, q));
  }
  const auto change = V::div(product, V::max(square, V::set1(1e-30f)));
  keep_better<V>(c, V::sub(V::mul(product, change), error), V::add(scale, change), best);
}

// What is known of V::kWidth lanes after the first pass, in units of the block's power of two; `largest` is
// the value of largest magnitude. Lanes of zeros have largest = 1 so that nothing divides by zero.
template <class V>
struct Range {
  typename V::F smallest, greatest, largest, magnitude;
};

// The stored form: w = (q - zero) * scale, q = trunc(clamp(x * inverse + zero, low, high) + 0.5), ONNX
// Runtime's rounding.
template <class V>
struct Grid {
  typename V::F scale, zero;
};

template <class V>
typename V::F truncate(typename V::F v) {  // 0 <= v < 2^31
  return V::to_float(V::truncate(v));
}

// round half up, as roundf does for values from 0
template <class V>
typename V::F clamp_round(typename V::F v, float high) {
  return truncate<V>(V::add(V::min(V::max(v, V::set1(0)), V::set1(high)), V::set1(0.5f)));
}

template <class V>
Grid<V> plain_grid(const PanelTask& task, const Range<V>& range) {
  const float codes = static_cast<float>((1 << task.bits) - 1);
  if (task.row8) return {V::div(range.magnitude, V::set1(127)), V::set1(128)};
  if (!task.zero_points) {
    const float half = task.bits == 4 ? 8.0f : 128.0f;
    return {V::div(range.largest, V::set1(-half)), V::set1(half)};
  }
  const auto low = V::min(range.smallest, V::set1(0)), high = V::max(range.greatest, V::set1(0));
  const auto scale = V::div(V::sub(high, low), V::set1(codes));
  return {scale, clamp_round<V>(V::sub(V::set1(0), V::div(low, scale)), codes)};
}

// Tries candidates make(i), 0 <= i < count; count is a multiple of kTogether.
template <class V, bool kWeighted, typename Make>
void try_all(const LaneBlock& b, bool fine, size_t count, const Make& make, Best<V>& best) {
  if (fine) {
    for (size_t i = 0; i < count; ++i) try_fine<V, kWeighted>(b, make(i), best);
    return;
  }
  for (size_t i = 0; i < count; i += V::kTogether) {
    std::array<Candidate<V>, V::kTogether> c;
    for (size_t j = 0; j < c.size(); ++j) c[j] = make(i + j);
    try_coarse<V, kWeighted, V::kTogether>(b, c, best);
  }
}

// The best candidate so far with other scales, then with the scale that is best for its codes.
template <class V, bool kWeighted>
void refine(const LaneBlock& b, bool fine, Best<V>& best) {
  const Candidate<V> base = best.candidate;
  const auto near = [&](size_t i) {
    return Candidate<V>{V::mul(base.inverse, V::set1(fine ? kNear8[i] : kNear4[i])), base.low, base.high};
  };
  try_all<V, kWeighted>(b, fine, kNear4.size(), near, best);
  const Candidate<V> again{V::div(V::set1(1), best.scale), best.candidate.low, best.candidate.high};
  if (fine) {
    try_fine<V, kWeighted>(b, again, best);
  } else {
    try_coarse<V, kWeighted, 1>(b, {again}, best);
  }
}

template <class V, bool kWeighted>
Grid<V> search_zero_point(const PanelTask& task, const LaneBlock& b, const Range<V>& range, Best<V>& best) {
  const auto zero = V::set1(0);
  const auto low_end = V::min(range.smallest, zero), high_end = V::max(range.greatest, zero);
  const auto width = V::sub(high_end, low_end);
  const float codes = static_cast<float>((1 << task.bits) - 1);
  const auto with_zero = [&](typename V::F inverse, typename V::F z) {
    return Candidate<V>{inverse, V::sub(zero, z), V::sub(V::set1(codes), z)};
  };
  const auto candidate = [&](float steps, float below) {
    const auto inverse = V::div(V::set1(steps), width);
    const auto left = V::sub(zero, V::mul(low_end, inverse));
    return with_zero(inverse, clamp_round<V>(V::sub(left, V::set1(below * (steps - codes))), codes));
  };
  if (task.bits == 8) {
    try_all<V, kWeighted>(
        b, true, kRange8.size(), [&](size_t i) { return candidate(kRange8[i], 0.5f); }, best);
    refine<V, kWeighted>(b, true, best);
  } else {
    try_all<V, kWeighted>(
        b, false, kRange4.size() * kShareBelow.size(),
        [&](size_t i) { return candidate(kRange4[i % kRange4.size()], kShareBelow[i / kRange4.size()]); },
        best);
    const Candidate<V> base = best.candidate;
    const auto z = V::sub(zero, base.low);
    const auto near = [&](size_t i) {
      const Neighbour& n = kNearRange4[i];
      return with_zero(V::mul(base.inverse, V::set1(n.factor)),
                       clamp_round<V>(V::add(z, V::set1(n.zero)), codes));
    };
    try_all<V, kWeighted>(b, false, kNearRange4.size(), near, best);
    const Candidate<V> again{V::div(V::set1(1), best.scale), best.candidate.low, best.candidate.high};
    try_coarse<V, kWeighted, 1>(b, {again}, best);
  }
  return {best.scale, V::sub(zero, best.candidate.low)};
}

template <class V, bool kWeighted>
Grid<V> search_grid(const PanelTask& task, const LaneBlock& b, const Range<V>& range) {
  const bool fine = task.bits == 8;
  const auto zero = V::set1(0);
  // Beats nothing: the first candidate with any explanation replaces it.
  Best<V> best{
      {V::div(V::set1(1), range.magnitude), V::set1(-1), V::set1(1)}, V::set1(-3e38f), range.magnitude};
  if (task.zero_points) return search_zero_point<V, kWeighted>(task, b, range, best);
  if (task.row8) {
    const auto row = [&](size_t i) {
      return Candidate<V>{V::div(V::set1(kRow8[i]), range.magnitude), V::set1(-127), V::set1(127)};
    };
    try_all<V, kWeighted>(b, true, kRow8.size(), row, best);
    refine<V, kWeighted>(b, true, best);
    return {best.scale, V::set1(128)};
  }
  // Codes -half to half - 1, or mirrored with a negative scale. The search keeps the scale positive.
  const float half = task.bits == 4 ? 8.0f : 128.0f;
  const auto negative = V::gt(zero, range.largest);
  const auto candidate = [&](float code, bool long_side) {
    const auto a = V::set1(long_side ? half : half - 1), z = V::set1(long_side ? half - 1 : half);
    return Candidate<V>{V::div(V::set1(code), range.magnitude), V::sub(zero, V::select(negative, a, z)),
                        V::select(negative, z, a)};
  };
  if (fine) {
    try_all<V, kWeighted>(
        b, true, kLongSide8.size(), [&](size_t i) { return candidate(kLongSide8[i], true); }, best);
  } else {
    try_all<V, kWeighted>(
        b, false, kLongSide4.size(), [&](size_t i) { return candidate(kLongSide4[i], true); }, best);
    try_all<V, kWeighted>(
        b, false, kShortSide4.size(), [&](size_t i) { return candidate(kShortSide4[i], false); }, best);
  }
  refine<V, kWeighted>(b, fine, best);
  // high == half: the mirrored codes.
  const auto mirrored = V::gt(best.candidate.high, V::set1(half - 0.5f));
  return {V::select(mirrored, V::sub(zero, best.scale), best.scale), V::set1(half)};
}

// What is stored for x.
template <class V>
auto code_of(const PanelTask& task, typename V::F x, const Grid<V>& grid, typename V::F inverse) {
  const auto low = V::set1(task.row8 ? 1.0f : 0.0f), high = V::set1(static_cast<float>((1 << task.bits) - 1));
  const auto t = V::min(V::max(V::add(V::mul(x, inverse), grid.zero), low), high);
  return V::truncate(V::add(t, V::set1(0.5f)));
}

// x less what its code stands for.
template <class V, typename Code>
typename V::F difference(typename V::F x, Code code, const Grid<V>& grid) {
  return V::sub(x, V::mul(V::sub(V::to_float(code), grid.zero), grid.scale));
}

// Rounds, packs to words[word][lane], sums errors of V::kWidth lanes. `unit` of a lane turns its scaled
// values back.
template <class V, bool kWeighted>
void finish(const PanelTask& task, const LaneBlock& b, const Grid<V>& grid, typename V::F inverse,
            uint32_t* words, int lane, const float* unit) {
  const auto zero = V::set1(0);
  const int per_word = 32 / task.bits;
  const int64_t word_count = (task.block + per_word - 1) / per_word;
  const auto padding = V::truncate(grid.zero);
  for (int64_t k0 = 0, word = 0; word < word_count;) {
    auto max_error = zero, sum_error = zero, squared_error = zero, squared = zero, cross = zero,
         weighted_error = zero, weighted = zero;
    const int64_t end = std::min(word_count, (k0 + kStatsColumns) / per_word);
    for (; word < end; ++word) {
      auto packed = V::zero_int();
      for (int j = 0; j < per_word; ++j, ++k0) {
        auto code = padding;
        if (k0 < b.n) {
          const auto x = V::load(b.x + k0 * kPanelRows);
          code = code_of<V>(task, x, grid, inverse);
          const auto d = difference<V>(x, code, grid);
          const auto magnitude = V::abs(d);
          max_error = V::max(max_error, magnitude);
          sum_error = V::add(sum_error, magnitude);
          const auto dd = V::mul(d, d), xx = V::mul(x, x);
          squared_error = V::add(squared_error, dd);
          squared = V::add(squared, xx);
          cross = V::add(cross, V::mul(x, d));
          if (kWeighted) {
            const auto w = V::set1(b.w[k0]);
            weighted_error = V::add(weighted_error, V::mul(dd, w));
            weighted = V::add(weighted, V::mul(xx, w));
          }
        }
        packed = V::bit_or(packed, V::shift_left(code, task.bits * j));
      }
      V::store_int(words + word * kPanelRows, packed);
    }
    if (!kWeighted) {
      weighted_error = squared_error;
      weighted = squared;
    }
    const auto add = [&](PanelStats::Lanes& sums, typename V::F values, bool square) {
      alignas(64) float lanes[V::kWidth];
      V::store(lanes, values);
      for (int i = 0; i < V::kWidth; ++i) {
        const double u = unit[i];
        sums[static_cast<size_t>(lane + i)] += static_cast<double>(lanes[i]) * (square ? u * u : u);
      }
    };
    PanelStats& stats = *task.stats;
    add(stats.sum_error, sum_error, false);
    add(stats.squared_error, squared_error, true);
    add(stats.squared, squared, true);
    add(stats.cross, cross, true);
    add(stats.weighted_squared_error, weighted_error, true);
    add(stats.weighted_squared, weighted, true);
    alignas(64) float lanes[V::kWidth];
    V::store(lanes, max_error);
    for (int i = 0; i < V::kWidth; ++i) {
      double& largest = stats.max_error[static_cast<size_t>(lane + i)];
      largest = std::max(largest, static_cast<double>(lanes[i]) * static_cast<double>(unit[i]));
    }
  }
}

// The weighted squared error of the codes of a scale and a zero point.
template <class V, bool kWeighted>
typename V::F error_of(const PanelTask& task, const LaneBlock& b, const Grid<V>& grid, typename V::F inverse) {
  auto error = V::set1(0);
  for (int64_t k = 0; k < b.n; ++k) {
    const auto x = V::load(b.x + k * kPanelRows);
    const auto d = difference<V>(x, code_of<V>(task, x, grid, inverse), grid);
    error = V::add(error, kWeighted ? V::mul(V::mul(d, d), V::set1(b.w[k])) : V::mul(d, d));
  }
  return error;
}

// Writes codes, scales and zero points of block number `index`, columns [index * block, + n).
inline void write_block(const PanelTask& task, int64_t index, int64_t n, const uint32_t* words,
                        const float* scales, const float* zeros, const float* row_factors) {
  const int64_t first_byte = index * task.block * task.bits / 8;
  const int64_t size_bytes = task.row8 ? n : task.block * task.bits / 8;
  for (int r = 0; r < task.rows; ++r) {
    std::byte* to = task.data + r * task.data_stride_bytes + first_byte;
    int64_t at = 0;
    for (; at + 4 <= size_bytes; at += 4) std::memcpy(to + at, words + at / 4 * kPanelRows + r, 4);
    if (at < size_bytes) {
      std::memcpy(to + at, words + at / 4 * kPanelRows + r, static_cast<size_t>(size_bytes - at));
    }
  }
  for (int r = 0; r < task.rows; ++r) {
    std::byte* row = task.scales + r * task.scale_stride_bytes;
    if (task.scale_type == DType::kF32) {
      std::memcpy(row + index * 4, scales + r, 4);
    } else if (task.scale_type == DType::kI8) {
      row[1 + index] = static_cast<std::byte>(static_cast<int8_t>(scales[r] / row_factors[r]));
    } else {
      const uint16_t bits =
          task.scale_type == DType::kBF16 ? to_bfloat16(scales[r]).bits : to_float16(scales[r]).bits;
      std::memcpy(row + index * 2, &bits, 2);
    }
  }
  if (task.zeros == nullptr) return;
  for (int r = 0; r < task.rows; ++r) {
    std::byte* row = task.zeros + r * task.zero_stride_bytes;
    const int zero = static_cast<int>(zeros[r]);
    if (task.bits == 8) {
      row[index] = static_cast<std::byte>(zero);
    } else if (index % 2 == 0) {
      row[index / 2] = static_cast<std::byte>(zero);
    } else {
      row[index / 2] |= static_cast<std::byte>(zero << 4);
    }
  }
}

// What turns the values of a block into multiples of its power of two, and back, by row.
struct Units {
  alignas(64) float down[kPanelRows];  // 0 where there is nothing but zeros
  alignas(64) float up[kPanelRows];
};

// Lanes with nothing but zeros, whose `down` is below the least power of two.
template <class V>
auto all_zeros(typename V::F down) {
  return V::gt(V::set1(std::numeric_limits<float>::min()), down);
}

// Turns `n` columns of a panel, lanes from `lane` on; false if some weight is not finite.
template <class V>
bool scale_panel(int64_t n, int lane, float* panel, Units& units, Range<V>& range) {
  using F = typename V::F;
  float* x = panel + lane;
  auto magnitude_bits = V::zero_int();
  F smallest = V::load(x), greatest = smallest;
  for (int64_t k = 0; k < n; ++k) {
    const F v = V::load(x + k * kPanelRows);
    magnitude_bits = V::max_int(magnitude_bits, V::bits(V::abs(v)));
    smallest = V::min(smallest, v);
    greatest = V::max(greatest, v);
  }
  alignas(64) int32_t magnitude[V::kWidth];
  V::store_int(reinterpret_cast<uint32_t*>(magnitude), magnitude_bits);
  for (int i = 0; i < V::kWidth; ++i) {
    if (magnitude[i] >= 0x7f800000) return false;
    // Powers of two that bring the largest value into [1, 2) and back. Subnormal blocks count as zero.
    const int32_t exponent = magnitude[i] >> 23;
    const int32_t biased = std::max(1, 254 - exponent);
    units.down[lane + i] = exponent == 0 ? 0.0f : std::bit_cast<float>(biased << 23);
    units.up[lane + i] = exponent == 0 ? 1.0f : std::bit_cast<float>((254 - biased) << 23);
  }
  const F factor = V::load(units.down + lane), one = V::set1(1);
  for (int64_t k = 0; k < n; ++k) V::store(x + k * kPanelRows, V::mul(V::load(x + k * kPanelRows), factor));
  range = {V::mul(smallest, factor), V::mul(greatest, factor), one, one};
  const auto dead = all_zeros<V>(factor);
  const auto up = V::gt(V::abs(range.greatest), V::abs(range.smallest));
  range.largest = V::select(dead, one, V::select(up, range.greatest, range.smallest));
  range.magnitude = V::abs(range.largest);
  range.greatest = V::select(dead, one, range.greatest);
  return true;
}

// Scale and zero point of a block, lanes from `lane` on: the scale as a weight's, 0 for a block of zeros, not yet as it is
// stored.
template <class V, bool kWeighted>
void find_grid(const PanelTask& task, const LaneBlock& b, const Range<V>& range, const Units& units, int lane, float* scales,
               float* zeros) {
  const Grid<V> grid = task.rule == Rule::kPlain ? plain_grid<V>(task, range) : search_grid<V, kWeighted>(task, b, range);
  const auto dead = all_zeros<V>(V::load(units.down + lane));
  V::store(scales + lane, V::select(dead, V::set1(0), V::mul(grid.scale, V::load(units.up + lane))));
  // As ONNX Runtime's quantiser: zero point 0 where one is stored.
  const float dead_zero = task.zero_points ? 0.0f : task.bits == 4 ? 8.0f : 128.0f;
  V::store(zeros + lane, V::select(dead, V::set1(dead_zero), grid.zero));
}

template <class V, bool kWeighted>
PanelResult quantize_panel(const PanelTask& task) {
  const int64_t blocks = task.row8 ? 1 : (task.columns + task.block - 1) / task.block;
  float* const panel = task.scratch;
  uint32_t* const words = reinterpret_cast<uint32_t*>(panel + task.block * kPanelRows);
  float* const found = panel + panel_scratch_floats(task.block, 0, task.scale_type);  // of each block scales, then zero points

  Units units;
  Range<V> range;
  // Calls `each(first lane, LaneBlock)` for the lanes of block number `index`.
  const auto with_block = [&](int64_t index, const auto& each) {
    const int64_t first = index * task.block, n = std::min(task.block, task.columns - first);
    load_panel<V>(task, first, n, panel);
    for (int lane = 0; lane < kPanelRows; lane += V::kWidth) {
      if (!scale_panel<V>(n, lane, panel, units, range)) return false;
      each(lane, LaneBlock{panel + lane, kWeighted ? task.importance + first : nullptr, n});
    }
    return true;
  };

  // A row's exponent follows from the greatest of its scales, so all of them are found before any is stored.
  const bool codes = task.scale_type == DType::kI8;
  float row_factors[kPanelRows];
  if (codes) {
    float greatest[kPanelRows] = {};
    for (int64_t index = 0; index < blocks; ++index) {
      float* const scales = found + index * 2 * kPanelRows;
      const bool finite = with_block(index, [&](int lane, const LaneBlock& b) {
        find_grid<V, kWeighted>(task, b, range, units, lane, scales, scales + kPanelRows);
      });
      if (!finite) return PanelResult::kNotFinite;
      for (int r = 0; r < kPanelRows; ++r) greatest[r] = std::max(greatest[r], std::fabs(scales[r]));
    }
    for (int r = 0; r < kPanelRows; ++r) {
      if (!std::isfinite(greatest[r])) return PanelResult::kScaleOverflow;
      const int exponent = scale_exponent(greatest[r]);
      row_factors[r] = std::ldexp(1.0f, exponent);
      if (task.data != nullptr && r < task.rows) task.scales[r * task.scale_stride_bytes] = static_cast<std::byte>(exponent);
    }
  }

  for (int64_t index = 0; index < blocks; ++index) {
    alignas(64) float scales[kPanelRows], zeros[kPanelRows], inverse[kPanelRows];
    if (codes) {
      std::memcpy(scales, found + index * 2 * kPanelRows, sizeof(scales));
      std::memcpy(zeros, found + (index * 2 + 1) * kPanelRows, sizeof(zeros));
    }
    bool fit = true;
    const bool finite = with_block(index, [&](int lane, const LaneBlock& b) {
      if (!codes) find_grid<V, kWeighted>(task, b, range, units, lane, scales, zeros);
      // Scales as they are stored, then back into the block's units.
      const auto in_units = [&](float* stored) {
        for (int i = lane; i < lane + V::kWidth; ++i) {
          fit &= std::isfinite(stored[i]);
          const float scale = stored[i] * units.down[i];
          inverse[i] = scale == 0 ? 0.0f : 1.0f / scale;
        }
        return Grid<V>{V::mul(V::load(stored + lane), V::load(units.down + lane)), V::load(zeros + lane)};
      };
      if (codes) {
        alignas(64) float other[kPanelRows], errors[2][kPanelRows] = {};
        for (int i = lane; i < lane + V::kWidth; ++i) {
          const std::array<float, 2> near = scale_codes(scales[i], row_factors[i]);
          scales[i] = near[0] * row_factors[i];
          other[i] = near[1] * row_factors[i];
        }
        if (task.rule == Rule::kSearch) {
          for (int which = 0; which < 2; ++which) {
            const Grid<V> grid = in_units(which == 0 ? scales : other);
            V::store(errors[which] + lane, error_of<V, kWeighted>(task, b, grid, V::load(inverse + lane)));
          }
          for (int i = lane; i < lane + V::kWidth; ++i) scales[i] = errors[1][i] < errors[0][i] ? other[i] : scales[i];
        }
      } else {
        for (int i = lane; i < lane + V::kWidth; ++i) scales[i] = round_scale(scales[i], task.scale_type);
      }
      const Grid<V> grid = in_units(scales);
      if (fit) finish<V, kWeighted>(task, b, grid, V::load(inverse + lane), words + lane, lane, units.up + lane);
    });
    if (!finite) return PanelResult::kNotFinite;
    if (!fit) return PanelResult::kScaleOverflow;
    if (task.data != nullptr) write_block(task, index, std::min(task.block, task.columns - index * task.block), words, scales, zeros, row_factors);
  }
  return PanelResult::kOk;
}

template <class V>
PanelResult quantize_panel(const PanelTask& task) {
  return task.importance != nullptr ? quantize_panel<V, true>(task) : quantize_panel<V, false>(task);
}

}  // namespace
}  // namespace qvl::quant
