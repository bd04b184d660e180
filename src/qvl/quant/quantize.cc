#include "qvl/quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"

namespace qvl::quant {
namespace {

constexpr double kImportanceFloor = 1e-3;

int64_t type_bytes(DType type, std::string_view where) {
  if (type != DType::kF32 && type != DType::kBF16 && type != DType::kF16) {
    fail(ErrorCode::kUnsupported, where, "element type of a matrix", "F32, BF16 or F16", dtype_name(type));
  }
  return static_cast<int64_t>(dtype_size_bytes(type));
}

// Mean 1, no value below the floor.
std::vector<float> normalize_importance(std::span<const float> importance, int64_t columns,
                                        std::string_view where) {
  if (importance.empty()) return {};
  if (importance.size() != static_cast<size_t>(columns)) {
    fail(ErrorCode::kMismatch, where, "importance", std::to_string(columns) + " columns",
         std::to_string(importance.size()));
  }
  double sum = 0;
  for (float v : importance) {
    if (!std::isfinite(v) || v < 0) {
      fail(ErrorCode::kInvalidArgument, where, "importance of a column", "a finite value of 0 or more",
           std::to_string(v));
    }
    sum += static_cast<double>(v);
  }
  if (sum == 0) return {};
  const double mean = sum / static_cast<double>(columns);
  std::vector<float> result;
  for (float v : importance) {
    result.push_back(static_cast<float>(std::max(static_cast<double>(v) / mean, kImportanceFloor)));
  }
  return result;
}

double sum_of(const PanelStats::Lanes& lanes, int rows) {
  return std::accumulate(lanes.begin(), lanes.begin() + rows, 0.0);
}

}  // namespace

std::string_view method_name(Method method) {
  return method == Method::kPlain ? "plain" : "search";
}

Quantizer::Quantizer(const Format& format, int64_t columns, Method method, std::span<const float> importance,
                     std::string where, Isa isa)
    : format_(format),
      columns_(columns),
      method_(method),
      where_(std::move(where)),
      kernel_(panel_kernel(isa)) {
  format.validate();
  if (columns < 1) fail(ErrorCode::kInvalidArgument, where_, "columns", "1 or more", std::to_string(columns));
  importance_ = normalize_importance(importance, columns, where_);
}

uint64_t Quantizer::row_bytes() const {
  return format_.data_bytes(1, columns_) + format_.scale_bytes(1, columns_) +
         format_.zero_point_bytes(1, columns_);
}

void Quantizer::fail_group(const std::byte* source, DType type, int rows, int64_t first_row) const {
  const int64_t size = type_bytes(type, where_);
  for (int64_t i = 0; i < rows * columns_; ++i) {
    alignas(4) std::byte bytes[4];
    float value = 0;
    std::memcpy(bytes, source + i * size, static_cast<size_t>(size));
    convert_elements(bytes, type, &value, DType::kF32, 1);
    if (!std::isfinite(value)) {
      fail(ErrorCode::kFormat, where_,
           "weight at row " + std::to_string(first_row + i / columns_) + ", column " +
               std::to_string(i % columns_),
           "a finite value", std::to_string(value), "the checkpoint is damaged");
    }
  }
  fail(ErrorCode::kLimit, where_,
       "rows " + std::to_string(first_row) + " to " + std::to_string(first_row + rows - 1),
       "values that fit " + format_.name(), "larger ones", "choose bf16 or f32");
}

ErrorStats Quantizer::convert_group(const std::byte* source, DType type, int rows, int64_t first_row,
                                    std::byte* out) const {
  const int64_t count = rows * columns_;
  Tensor original(type, {count}), stored(format_.float_type, {count}), x(DType::kF32, {count}),
      y(DType::kF32, {count});
  std::memcpy(original.data(), source, original.size_bytes());
  convert_elements(original.data(), type, stored.data(), format_.float_type, count);
  convert_elements(original.data(), type, x.data(), DType::kF32, count);
  convert_elements(stored.data(), format_.float_type, y.data(), DType::kF32, count);
  for (float v : y.as<float>()) {
    if (!std::isfinite(v)) fail_group(source, type, rows, first_row);
  }
  ErrorStats stats;
  stats.add(x.as<float>(), y.as<float>(), columns_, importance_);
  if (out != nullptr) std::memcpy(out, stored.data(), stored.size_bytes());
  return stats;
}

ErrorStats Quantizer::run_group(const std::byte* source, DType type, int rows, int64_t first_row,
                                const QuantizedSpan* out, int64_t out_row, float* scratch) const {
  const auto data_stride = static_cast<int64_t>(format_.data_bytes(1, columns_));
  ErrorStats stats;
  if (format_.kind == Kind::kFloat) {
    stats = convert_group(source, type, rows, first_row,
                          out != nullptr ? out->data.data() + out_row * data_stride : nullptr);
  } else {
    PanelStats sums;
    PanelTask task;
    task.source = source;
    task.source_stride_bytes = columns_ * type_bytes(type, where_);
    task.rows = rows;
    task.columns = columns_;
    task.type = type;
    task.bits = format_.bits;
    task.row8 = format_.kind == Kind::kRow8;
    task.block = task.row8 ? columns_ : format_.block;
    task.zero_points = format_.zero_points;
    task.scale_type = format_.scale_type;
    task.rule = method_ == Method::kPlain ? Rule::kPlain : Rule::kSearch;
    task.importance = importance_.empty() ? nullptr : importance_.data();
    task.scratch = scratch;
    task.stats = &sums;
    if (out != nullptr) {
      task.data_stride_bytes = data_stride;
      task.scale_stride_bytes = static_cast<int64_t>(format_.scale_bytes(1, columns_));
      task.zero_stride_bytes = static_cast<int64_t>(format_.zero_point_bytes(1, columns_));
      task.data = out->data.data() + out_row * task.data_stride_bytes;
      task.scales = out->scales.data() + out_row * task.scale_stride_bytes;
      if (format_.zero_points) task.zeros = out->zero_points.data() + out_row * task.zero_stride_bytes;
    }
    if (kernel_(task) != PanelResult::kOk) fail_group(source, type, rows, first_row);
    stats.count = rows * columns_;
    stats.max_error = *std::max_element(sums.max_error.begin(), sums.max_error.begin() + rows);
    stats.sum_error = sum_of(sums.sum_error, rows);
    stats.sum_squared_error = sum_of(sums.squared_error, rows);
    stats.sum_squared = sum_of(sums.squared, rows);
    stats.sum_cross = sum_of(sums.cross, rows);
    stats.sum_weighted_squared_error = sum_of(sums.weighted_squared_error, rows);
    stats.sum_weighted_squared = sum_of(sums.weighted_squared, rows);
  }
  stats.stored_bytes = static_cast<uint64_t>(rows) * row_bytes();
  return stats;
}

ErrorStats Quantizer::run_groups(int64_t groups, ThreadPool& pool,
                                 const std::function<ErrorStats(int64_t group, float* scratch)>& run) const {
  std::vector<ErrorStats> stats(static_cast<size_t>(groups));
  std::vector<AlignedBuffer> scratch(static_cast<size_t>(pool.threads()));
  const size_t scratch_bytes =
      sizeof(float) * panel_scratch_floats(format_.kind == Kind::kRow8 ? columns_ : format_.block,
                                           format_.block_count(columns_), format_.scale_type);
  pool.parallel_for(groups, [&](int64_t group, int thread) {
    AlignedBuffer& mine = scratch[static_cast<size_t>(thread)];
    if (mine.size_bytes() == 0) mine = AlignedBuffer(scratch_bytes);
    stats[static_cast<size_t>(group)] = run(group, reinterpret_cast<float*>(mine.data()));
  });
  ErrorStats total;
  for (const ErrorStats& s : stats) total.merge(s);
  return total;
}

ErrorStats Quantizer::quantize(const void* rows, DType type, int64_t row_count, const QuantizedSpan& out,
                               ThreadPool& pool, int64_t first_row) const {
  const int64_t size = type_bytes(type, where_);
  if (row_count < 0)
    fail(ErrorCode::kInvalidArgument, where_, "rows", "0 or more", std::to_string(row_count));
  const auto require = [&](std::string_view what, uint64_t expected, size_t got) {
    if (expected == got) return;
    fail(ErrorCode::kMismatch, where_, "bytes for " + std::string(what), std::to_string(expected),
         std::to_string(got));
  };
  require("data", format_.data_bytes(row_count, columns_), out.data.size());
  require("scales", format_.scale_bytes(row_count, columns_), out.scales.size());
  require("zero points", format_.zero_point_bytes(row_count, columns_), out.zero_points.size());

  const int64_t groups = (row_count + kPanelRows - 1) / kPanelRows;
  return run_groups(groups, pool, [&](int64_t group, float* scratch) {
    const int64_t row = group * kPanelRows;
    const int count = static_cast<int>(std::min<int64_t>(kPanelRows, row_count - row));
    return run_group(static_cast<const std::byte*>(rows) + row * columns_ * size, type, count,
                     first_row + row, &out, row, scratch);
  });
}

ErrorStats Quantizer::measure(const void* rows, DType type, int64_t row_count, int64_t sample_rows,
                              ThreadPool& pool) const {
  const int64_t size = type_bytes(type, where_);
  if (row_count < 0)
    fail(ErrorCode::kInvalidArgument, where_, "rows", "0 or more", std::to_string(row_count));
  if (sample_rows < 1)
    fail(ErrorCode::kInvalidArgument, where_, "sampled rows", "1 or more", std::to_string(sample_rows));
  const bool all = sample_rows >= row_count;
  const int64_t groups = ((all ? row_count : sample_rows) + kPanelRows - 1) / kPanelRows;
  return run_groups(groups, pool, [&](int64_t group, float* scratch) {
    // Sampled groups lie at multiples of 16 rows, the last one at the end of the matrix.
    const int64_t last_group = (row_count + kPanelRows - 1) / kPanelRows - 1;
    const int64_t at = all || groups < 2 ? group : group * last_group / (groups - 1);
    const int64_t row = at * kPanelRows;
    const int count = static_cast<int>(std::min<int64_t>(kPanelRows, row_count - row));
    return run_group(static_cast<const std::byte*>(rows) + row * columns_ * size, type, count, row, nullptr,
                     0, scratch);
  });
}

}  // namespace qvl::quant
