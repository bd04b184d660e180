#include "qvl/kernels/shortlist.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/op_check.h"
#include "qvl/kernels/shortlist_kernels.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

using quant::kShortlistBlock;

using quant::kShortlistGroup;

// Groups of a task at least, and tasks a thread: memory is fastest where a thread reads one run.
constexpr int64_t kFewestGroups = 4, kTasksOfAThread = 8;
constexpr int64_t kIdsOfATask = 128;
constexpr int64_t kLineBytes = 64;

// Rows of x as the kernels want them.
class PreparedRows {
 public:
  explicit PreparedRows(const ConstMatrix& x) : blocks_(quant::shortlist_blocks(x.cols)) {
    const int64_t codes_bytes = blocks_ * kShortlistBlock, row_floats = 4 * blocks_;
    codes_ = AlignedBuffer(static_cast<size_t>(x.rows * codes_bytes));
    factors_ = AlignedBuffer(static_cast<size_t>(x.rows * row_floats) * sizeof(float));
    std::vector<float> values(static_cast<size_t>(codes_bytes));  // padded with zeros
    for (int64_t r = 0; r < x.rows; ++r) {
      const std::byte* from = static_cast<const std::byte*>(x.data) + static_cast<size_t>(r * x.stride) * dtype_size_bytes(x.dtype);
      convert_elements(from, x.dtype, values.data(), DType::kF32, x.cols);
      int8_t* q = reinterpret_cast<int8_t*>(codes_.data()) + r * codes_bytes;
      float* factors = reinterpret_cast<float*>(factors_.data()) + r * row_floats;
      const ShortlistRow row{q, factors, factors + blocks_, factors + 2 * blocks_, factors + 3 * blocks_};
      for (int64_t b = 0; b < blocks_; ++b) {
        int sum = 0;
        const float scale = round_block(values.data() + b * kShortlistBlock, q + b * kShortlistBlock, sum);
        const float scaled_sum = scale * static_cast<float>(sum);
        factors[b] = 2 * scale;
        factors[blocks_ + b] = 3 * scaled_sum;
        factors[2 * blocks_ + b] = quant::kShortlistFineStep * scale;
        factors[3 * blocks_ + b] = 1.5f * quant::kShortlistFineStep * scaled_sum;
      }
      rows_.push_back(row);
    }
  }

  int64_t blocks() const { return blocks_; }
  const std::vector<ShortlistRow>& rows() const { return rows_; }

 private:
  static float round_block(const float* x, int8_t* q, int& sum) {
    float absmax = 0;
    bool finite = true;
    for (int64_t i = 0; i < kShortlistBlock; ++i) {
      finite &= std::isfinite(x[i]);
      absmax = std::max(absmax, std::fabs(x[i]));
    }
    sum = 0;
    if (!finite) {
      std::fill_n(q, kShortlistBlock, int8_t{0});
      return std::numeric_limits<float>::quiet_NaN();
    }
    // Divided by, smaller ones are too large for a float.
    constexpr float kSmallest = 1e-36f;
    const float inverse = absmax < kSmallest ? 0.0f : 127.0f / absmax;
    // Added to a value of a byte's size and taken off again, rounds it to the nearest integer, half to even.
    constexpr float kRound = 0x1.8p23f;
    for (int64_t i = 0; i < kShortlistBlock; ++i) {
      q[i] = static_cast<int8_t>(x[i] * inverse + kRound - kRound);
      sum += q[i];
    }
    return absmax < kSmallest ? 0.0f : absmax / 127.0f;
  }

  int64_t blocks_;
  AlignedBuffer codes_, factors_;
  std::vector<ShortlistRow> rows_;
};

void check(std::string_view where, const ConstMatrix& x, const Shortlist& list) {
  check_matrix(where, "x", x);
  check_size(where, "x columns", list.columns, x.cols);
  const quant::ShortlistBytes bytes = quant::shortlist_bytes(list.rows, list.columns);
  check_size(where, "bytes of coarse codes", static_cast<int64_t>(bytes.coarse), static_cast<int64_t>(list.parts.coarse.size()));
  check_size(where, "bytes of fine codes", static_cast<int64_t>(bytes.fine), static_cast<int64_t>(list.parts.fine.size()));
  check_size(where, "bytes of scales", static_cast<int64_t>(bytes.scales), static_cast<int64_t>(list.parts.scales.size()));
}

}  // namespace

void shortlist_logits(const Context& context, const ConstMatrix& x, const Shortlist& list, const Matrix& logits) {
  constexpr std::string_view kWhere = "shortlist_logits";
  check(kWhere, x, list);
  check_size(kWhere, "logits rows", x.rows, logits.rows);
  check_size(kWhere, "logits columns", list.rows, logits.cols);
  check_dtype(kWhere, "logits", DType::kF32, logits.dtype);
  if (x.rows == 0 || list.rows == 0) return;
  const PreparedRows prepared(x);
  const ShortlistKernels& kernels = *context.table->shortlist;
  const int64_t blocks = quant::shortlist_blocks(list.columns), groups = (list.rows + kShortlistGroup - 1) / kShortlistGroup;
  const int64_t task_groups = std::max(kFewestGroups, groups / (kTasksOfAThread * context.pool->threads()));
  context.pool->parallel_for((groups + task_groups - 1) / task_groups, [&](int64_t task, int) {
    const int64_t end = std::min(groups, (task + 1) * task_groups);
    // So few groups at once that they come from memory once for all rows of x.
    for (int64_t group = task * task_groups; group < end; group += kFewestGroups) {
      const int64_t row = group * kShortlistGroup, count = std::min(kFewestGroups, end - group);
      const quant::ConstShortlistSpan part =
          quant::shortlist_rows(list.parts, list.columns, row, std::min(count * kShortlistGroup, list.rows - row));
      const bool whole = row + count * kShortlistGroup <= list.rows;
      for (int64_t i = 0; i < x.rows; i += ShortlistKernels::kMostRows) {
        const int n = static_cast<int>(std::min<int64_t>(ShortlistKernels::kMostRows, x.rows - i));
        float* to = static_cast<float*>(logits.data) + i * logits.stride + row;
        if (whole) {
          kernels.coarse(prepared.rows().data() + i, n, part.coarse.data(), part.scales.data(), blocks, count, to, logits.stride);
          continue;
        }
        constexpr int64_t kStride = kFewestGroups * kShortlistGroup;
        float room[ShortlistKernels::kMostRows * kStride];
        kernels.coarse(prepared.rows().data() + i, n, part.coarse.data(), part.scales.data(), blocks, count, room, kStride);
        for (int r = 0; r < n; ++r) std::copy_n(room + r * kStride, list.rows - row, to + r * logits.stride);
      }
    }
  });
}

void shortlist_refinements(const Context& context, const ConstMatrix& x, const Shortlist& list, std::span<const int32_t> ids,
                           std::span<float> out) {
  constexpr std::string_view kWhere = "shortlist_refinements";
  check(kWhere, x, list);
  check_size(kWhere, "x rows", 1, x.rows);
  check_size(kWhere, "room for refinements", static_cast<int64_t>(ids.size()), static_cast<int64_t>(out.size()));
  const auto known = [&](int32_t id) { return id >= 0 && id < list.rows; };
  if (!std::ranges::all_of(ids, known)) fail(ErrorCode::kInvalidArgument, kWhere, "ids", "0 to " + std::to_string(list.rows - 1), "others");
  const PreparedRows prepared(x);
  const ShortlistKernels& kernels = *context.table->shortlist;
  const int64_t blocks = quant::shortlist_blocks(list.columns), row_bytes = quant::shortlist_fine_bytes(list.columns);
  const auto fine_of = [&](int64_t i) { return list.parts.fine.data() + ids[static_cast<size_t>(i)] * row_bytes; };
  const auto count = static_cast<int64_t>(ids.size());
  context.pool->parallel_for((count + kIdsOfATask - 1) / kIdsOfATask, [&](int64_t task, int) {
    // Rows lie anywhere: each is asked for while the one before it is multiplied.
    const int64_t begin = task * kIdsOfATask, end = std::min(count, begin + kIdsOfATask);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t at = 0; i + 1 < end && at < row_bytes; at += kLineBytes) __builtin_prefetch(fine_of(i + 1) + at);
      out[static_cast<size_t>(i)] = kernels.fine(prepared.rows()[0], fine_of(i), blocks);
    }
  });
}

}  // namespace qvl::kernels
