// Turns rows of a checkpoint's matrix into a format of format.h, as many rows at a time as the caller likes:
// the exporter streams through it. Results depend neither on the grouping of rows, nor on threads, nor on the
// processor.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/base/thread_pool.h"
#include "qvl/quant/block_codec.h"
#include "qvl/quant/error_stats.h"
#include "qvl/quant/format.h"
#include "qvl/quant/panel_kernels.h"

namespace qvl::quant {

enum class Method : uint8_t {
  // Blocks: byte for byte what ONNX Runtime's own quantiser makes (scale = largest / -8 or / -128; with zero
  // points
  // (max - min) / 15 or / 255). Rows: largest / 127. No importance.
  kPlain,
  // Scale and zero point of each block by search: least squared error, columns weighted by importance.
  kSearch,
};
std::string_view method_name(Method method);  // "plain", "search"

class Quantizer {
 public:
  // `importance` [columns]: how much the squared error of a column counts, from calibration the mean square
  // of the activation that meets it; only ratios matter. Values below 1/1000 of their mean are raised to it,
  // so that a column that calibration never saw is still kept. Empty: all columns alike. kPlain ignores it in
  // choosing codes; the weighted figures of the statistics use it with either method. `where` begins error
  // messages: the tensor's name. Throws kInvalidArgument (format, columns < 1, negative or not finite
  // importance), kMismatch (its size), kUnsupported (instruction set).
  Quantizer(const Format& format, int64_t columns, Method method, std::span<const float> importance = {},
            std::string where = "quantizer", Isa isa = available_isas().back());

  const Format& format() const { return format_; }
  int64_t columns() const { return columns_; }

  // rows: [row_count, columns] of `type` (F32, BF16, F16), contiguous, any alignment. out: the place of these
  // rows alone (row_span of the whole). Works on 16 rows at a time in all threads of the pool; memory beside
  // the arguments: a few KiB a thread, for int8 rows 80 bytes a column. Returns the statistics of these rows;
  // stored_bytes counts `out`. Merged in ascending order, groups of a multiple of 16 rows give the same sums
  // whatever their size. `first_row` only numbers the rows in messages. Throws kFormat for a weight that is
  // not finite, kLimit where f16 (as scale or as format) cannot hold a value, kMismatch for sizes,
  // kUnsupported for the type.
  ErrorStats quantize(const void* rows, DType type, int64_t row_count, const QuantizedSpan& out,
                      ThreadPool& pool, int64_t first_row = 0) const;

  // The statistics that quantize would return, from about `sample_rows` of the `row_count` rows in groups of
  // 16 spread evenly from the first to the last; all rows if sample_rows >= row_count. Writes nothing.
  ErrorStats measure(const void* rows, DType type, int64_t row_count, int64_t sample_rows,
                     ThreadPool& pool) const;

 private:
  // Statistics of all groups, merged in ascending order; `run` does one with scratch of its thread.
  ErrorStats run_groups(int64_t groups, ThreadPool& pool,
                        const std::function<ErrorStats(int64_t group, float* scratch)>& run) const;
  ErrorStats run_group(const std::byte* source, DType type, int rows, int64_t first_row,
                       const QuantizedSpan* out, int64_t out_row, float* scratch) const;
  ErrorStats convert_group(const std::byte* source, DType type, int rows, int64_t first_row,
                           std::byte* out) const;
  [[noreturn]] void fail_group(const std::byte* source, DType type, int rows, int64_t first_row) const;
  uint64_t row_bytes() const;

  Format format_;
  int64_t columns_;
  Method method_;
  std::vector<float> importance_;  // mean 1, or empty
  std::string where_;
  PanelKernel kernel_;
};

}  // namespace qvl::quant
