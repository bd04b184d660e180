#include "qvl/quant/shortlist.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/greatest.h"
#include "qvl/base/tensor.h"

namespace qvl::quant {
namespace {

constexpr std::string_view kShortlistWhere = "head's shortlist";
constexpr int64_t kRowsOfATask = 2 * kShortlistGroup;
// Of a normal distribution: half the step of the best four evenly spaced values, from which the search begins.
constexpr float kHalfStep = 0.4979f;
constexpr int kRounds = 4;
// Of the largest magnitude of a block, and of a scale in steps.
constexpr float kMostSteps = 5, kLeastScale = 0.9f;
constexpr auto kScaleBytes = static_cast<int64_t>(sizeof(BFloat16));
constexpr size_t kLanes = 16;

using Block = std::array<float, kShortlistBlock>;

uint64_t product(int64_t rows, int64_t bytes) {
  int64_t all = 0;
  if (__builtin_mul_overflow(rows, bytes, &all) || all > (int64_t{1} << 62)) {
    fail(ErrorCode::kLimit, kShortlistWhere, "size", "at most 2^62 bytes", std::to_string(rows) + " rows of " + std::to_string(bytes) + " bytes");
  }
  return static_cast<uint64_t>(all);
}

template <typename Byte>
void check_sizes(int64_t rows, int64_t columns, const ShortlistParts<Byte>& parts) {
  const ShortlistBytes wanted = shortlist_bytes(rows, columns);
  const auto check = [](std::string_view what, uint64_t expected, size_t got) {
    if (expected != got) fail(ErrorCode::kMismatch, kShortlistWhere, what, std::to_string(expected) + " bytes", std::to_string(got) + " bytes");
  };
  check("coarse codes", wanted.coarse, parts.coarse.size());
  check("fine codes", wanted.fine, parts.fine.size());
  check("scales", wanted.scales, parts.scales.size());
}

float sum(const std::array<float, kLanes>& lanes) {
  float all = 0;
  for (const float v : lanes) all += v;
  return all;
}

// Whether |v| is nearer to 3 steps than to one.
bool outer(float v, float step) {
  return std::fabs(v) > 2 * step;
}

// The s for which (1 or 3) * s comes nearest to the magnitudes of the first n values, as `step` divides them. The others are 0.
float scale_for(const Block& w, int64_t n, float step) {
  std::array<float, kLanes> products{}, codes{};
  for (size_t i = 0; i < w.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float code = i + lane >= static_cast<size_t>(n) ? 0.0f : outer(w[i + lane], step) ? 3.0f : 1.0f;
      products[lane] += code * std::fabs(w[i + lane]);
      codes[lane] += code * code;
    }
  }
  return sum(products) / sum(codes);
}

// By which magnitudes are divided, and the scale.
struct Steps {
  float step = 0;
  float scale = 0;
};

// The best scale divides as it says itself: sought by turns. Where the greatest value is too far from that, a larger step, and
// of the scales near to it the best.
Steps steps_of(const Block& w, int64_t n) {
  std::array<float, kLanes> squares{};
  float largest = 0;
  for (size_t i = 0; i < w.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) squares[lane] += w[i + lane] * w[i + lane];
  }
  for (const float v : w) largest = std::max(largest, std::fabs(v));
  Steps out;
  out.step = kHalfStep * std::sqrt(sum(squares) / static_cast<float>(n));
  for (int round = 0; round < kRounds && out.step > 0; ++round) out.step = scale_for(w, n, out.step);
  out.step = std::max(out.step, largest / kMostSteps);
  out.scale = out.step > 0 ? std::clamp(scale_for(w, n, out.step), kLeastScale * out.step, out.step) : 0.0f;
  return out;
}

float value_of(int code, float s, bool fine) {
  const float about = static_cast<float>(2 * (code >> 2) - 3) * s;
  return fine ? about + (static_cast<float>(code & 3) - 1.5f) * (kShortlistFineStep * s) : about;
}

// 4 h + v of each value.
std::array<uint8_t, kShortlistBlock> codes_of(const Block& w, float step, float s) {
  std::array<uint8_t, kShortlistBlock> codes{};
  if (s == 0) return codes;
  const float per_step = 1 / (kShortlistFineStep * s);
  for (size_t i = 0; i < w.size(); ++i) {
    const int high = w[i] < 0 ? (outer(w[i], step) ? 0 : 1) : (outer(w[i], step) ? 3 : 2);
    const float off = w[i] - static_cast<float>(2 * high - 3) * s;
    const int low = off < 0 ? (off * per_step < -1 ? 0 : 1) : (off * per_step < 1 ? 2 : 3);
    codes[i] = static_cast<uint8_t>(4 * high + low);
  }
  return codes;
}

void write_block(const std::array<uint8_t, kShortlistBlock>& codes, int64_t row, std::byte* coarse, std::byte* fine) {
  for (int64_t i = 0; i < kShortlistApart; ++i) {
    int high = 0, low = 0;
    for (int64_t k = 0; k < kShortlistParts; ++k) {
      const int code = codes[static_cast<size_t>(i + k * kShortlistApart)];
      high |= code >> 2 << (2 * k);
      low |= (code & 3) << (2 * k);
    }
    coarse[shortlist_coarse_byte(row, i)] = static_cast<std::byte>(high);
    fine[i] = static_cast<std::byte>(low);
  }
}

int read_code(const std::byte* coarse, const std::byte* fine, int64_t row, int64_t column) {
  const int64_t byte = column % kShortlistApart;
  return 4 * shortlist_code(coarse[shortlist_coarse_byte(row, byte)], column) + shortlist_code(fine[byte], column);
}

}  // namespace

ShortlistBytes shortlist_bytes(int64_t rows, int64_t columns) {
  const int64_t blocks = shortlist_blocks(columns), groups = rows / kShortlistGroup + (rows % kShortlistGroup != 0 ? 1 : 0);
  return {product(groups, blocks * kShortlistCoarseBytes), product(rows, shortlist_fine_bytes(columns)),
          product(groups, blocks * kShortlistScaleBytes)};
}

ErrorStats encode_shortlist(const void* rows, DType type, int64_t row_count, int64_t columns, const ShortlistSpan& out,
                            ThreadPool& pool, std::string_view where, int64_t first_row) {
  if (type != DType::kF32 && type != DType::kBF16 && type != DType::kF16)
    fail(ErrorCode::kUnsupported, where, "element type", "F32, BF16 or F16", dtype_name(type));
  check_sizes(row_count, columns, out);
  const int64_t blocks = shortlist_blocks(columns), tasks = (row_count + kRowsOfATask - 1) / kRowsOfATask;
  const size_t source_bytes = static_cast<size_t>(columns) * dtype_size_bytes(type);
  std::vector<ErrorStats> stats_of_task(static_cast<size_t>(tasks));
  pool.parallel_for(tasks, [&](int64_t task, int) {
    const int64_t first = task * kRowsOfATask, count = std::min(kRowsOfATask, row_count - first);
    const ShortlistSpan part = shortlist_rows(out, columns, first, count);
    std::ranges::fill(part.coarse, std::byte{0});
    std::ranges::fill(part.fine, std::byte{0});
    std::ranges::fill(part.scales, std::byte{0});
    AlignedBuffer aligned(source_bytes);
    std::vector<float> x(static_cast<size_t>(columns)), y(x.size());
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(aligned.data(), static_cast<const std::byte*>(rows) + static_cast<size_t>(first + r) * source_bytes, source_bytes);
      convert_elements(aligned.data(), type, x.data(), DType::kF32, columns);
      const auto refuse = [&](ErrorCode code, std::string_view what) {
        fail(code, where, what, "finite values", "row " + std::to_string(first_row + first + r));
      };
      if (!all_finite(x)) refuse(ErrorCode::kFormat, "weights");
      const int64_t group = r / kShortlistGroup * blocks, in_group = r % kShortlistGroup;
      std::byte* const fine = part.fine.data() + r * shortlist_fine_bytes(columns);
      std::byte* const fine_scales = fine + blocks * kShortlistFineCodeBytes;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = b * kShortlistBlock, n = std::min(kShortlistBlock, columns - begin);
        Block w{};
        std::copy_n(x.begin() + begin, n, w.begin());
        const Steps steps = steps_of(w, n);
        const BFloat16 scale = to_bfloat16(steps.scale);
        const float s = to_float(scale);
        if (!std::isfinite(s)) refuse(ErrorCode::kLimit, "scales in bfloat16");
        std::array<uint8_t, kShortlistBlock> codes = codes_of(w, steps.step, s);
        std::fill(codes.begin() + n, codes.end(), uint8_t{0});
        for (int64_t i = 0; i < n; ++i) y[static_cast<size_t>(begin + i)] = value_of(codes[static_cast<size_t>(i)], s, true);
        write_block(codes, in_group, part.coarse.data() + (group + b) * kShortlistCoarseBytes,
                    fine + b * kShortlistFineCodeBytes);
        std::memcpy(part.scales.data() + (group + b) * kShortlistScaleBytes + in_group * kScaleBytes, &scale, sizeof(scale));
        std::memcpy(fine_scales + b * kScaleBytes, &scale, sizeof(scale));
      }
      stats_of_task[static_cast<size_t>(task)].add(x, y, columns);
    }
  });
  ErrorStats stats;
  for (const ErrorStats& of_task : stats_of_task) stats.merge(of_task);
  stats.stored_bytes = out.bytes();
  return stats;
}

void decode_shortlist(int64_t rows, int64_t columns, const ConstShortlistSpan& in, bool fine, std::span<float> out) {
  check_sizes(rows, columns, in);
  if (static_cast<int64_t>(out.size()) != rows * columns)
    fail(ErrorCode::kMismatch, kShortlistWhere, "room for values", std::to_string(rows * columns), std::to_string(out.size()));
  const int64_t blocks = shortlist_blocks(columns);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t in_group = r % kShortlistGroup;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t block = r / kShortlistGroup * blocks + b, begin = b * kShortlistBlock;
      BFloat16 scale;
      const std::byte* of_row = in.fine.data() + r * shortlist_fine_bytes(columns);
      std::memcpy(&scale,
                  fine ? of_row + blocks * kShortlistFineCodeBytes + b * kScaleBytes
                       : in.scales.data() + block * kShortlistScaleBytes + in_group * kScaleBytes,
                  sizeof(scale));
      const float s = to_float(scale);
      for (int64_t i = 0; i < std::min(kShortlistBlock, columns - begin); ++i) {
        const int code = read_code(in.coarse.data() + block * kShortlistCoarseBytes, of_row + b * kShortlistFineCodeBytes, in_group, i);
        out[static_cast<size_t>(r * columns + begin + i)] = value_of(code, s, fine);
      }
    }
  }
}

}  // namespace qvl::quant
