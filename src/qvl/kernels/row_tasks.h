// How the operators on rows (norms, rotary embedding) are dealt to threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {

inline const RowKernels& row_kernels(const Context& ctx, DType dtype) {
  const AttentionKernels& kernels = *ctx.table->attention;
  return dtype == DType::kF32 ? kernels.rows_f32 : kernels.rows_bf16;
}

// fn(r) for every row. A task takes so many rows that it outweighs the waking of a thread.
template <typename Fn>
void for_rows(const Context& ctx, int64_t rows, int64_t row_elements, const Fn& fn) {
  constexpr int64_t kTaskElements = 16384;
  const int64_t rows_per_task = std::max<int64_t>(1, kTaskElements / row_elements);
  ctx.pool->parallel_for((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * rows_per_task);
    for (int64_t r = task * rows_per_task; r < end; ++r) fn(r);
  });
}

}  // namespace qvl::kernels
