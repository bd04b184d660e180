// The loops of linear layers that are the same for every kind of weight and every instruction set: blocks of
// columns and rows over threads, panels, tiles, and the last step (private to this room; spec 5.4, 6.4).
//
// kGemm. A task is a block of output columns times a block of rows. For each block of K its weights are
// packed into a per-thread buffer that fits the second-level cache; then each tile of rows visits every panel
// of the block. Sums go through memory between two blocks of K, which changes no bit of them. kGemv. A task
// is a range of weight rows, read once in address order. Both leave float sums in a per-thread buffer, from
// where `finish` takes them.
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "qvl/base/tensor.h"
#include "qvl/kernels/linear_kernels.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {

constexpr int64_t kMaxGemvRows = 16;
// Rows of kGemm that run_gemv takes where a kernel's bits and speed allow it.
constexpr int64_t kMaxFewRows = 64;
// Packed panels of one task: half of the second-level cache, the rest is for x and the results.
inline size_t packed_budget_bytes() {
  return cpu_features().second_level_cache_bytes / 2;
}
// Longest block of K: four float panels of 64 columns then fit half of 2 MiB, so that a tile of x serves four
// times, and six rows of it, widened, stay in the first-level cache.
constexpr int64_t kMaxDepth = 1024;
// Row blocks repack the same weights, so they have to be long enough to pay for it. With more than one block
// of K the sums of a row block wait in memory (4 MB at most); they pass by once per block, which costs
// little.
constexpr int64_t kMinRowBlock = 192;
constexpr int64_t kMaxRowBlockSums = 4096;
constexpr int64_t kTasksPerThread = 4;
// A gemv task reads about this much of one weight: it begins with waiting for memory, about a microsecond, and the last one keeps
// other threads waiting. With more rows it takes longer to read, and what it begins with, which nobody asked for, should be little of it.
constexpr int64_t kGemvTaskBytes = 512 * 1024, kGemvTaskBytesOfRows = 1024 * 1024;
constexpr int64_t kFewRows = 3;  // up to as many read at the pace of memory
constexpr int64_t kMaxGemvTaskCols = 512;

inline int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline size_t align_up(size_t bytes) {
  return (bytes + 63) & ~size_t{63};
}

// Scratch of the calling thread, kept for the next call: fresh pages would cost more than packing. Prepared x
// lives through the loop that its caller runs, so it has a buffer of its own; weights unpacked to floats live through a
// task.
enum class Scratch { kTask, kPreparedX, kUnpacked };

template <Scratch>
inline std::byte* scratch(size_t size_bytes) {
  thread_local AlignedBuffer buffer;
  if (buffer.size_bytes() < size_bytes) {
    buffer = AlignedBuffer();
    buffer = AlignedBuffer(size_bytes);
  }
  return buffer.data();
}

inline const std::byte* at(const ConstMatrix& m, int64_t row, int64_t col) {
  return static_cast<const std::byte*>(m.data) +
         (row * m.stride + col) * static_cast<int64_t>(dtype_size_bytes(m.dtype));
}

inline std::byte* at(const Matrix& m, int64_t row, int64_t col) {
  return static_cast<std::byte*>(m.data) +
         (row * m.stride + col) * static_cast<int64_t>(dtype_size_bytes(m.dtype));
}

// Calls that share a loop.
constexpr size_t kMaxCalls = 4;

// One call: `second` is the up projection of SwiGLU or null.
struct Call {
  ConstMatrix x;
  const Weight* first;
  const Weight* second;
  Activation activation;
  ConstMatrix residual;
  Matrix y;
  FinishKernel finish;
};

// The last step for a block of outputs at (row, col); c and c2 are [rows, ldc].
inline void finish_block(const Call& call, const float* c, const float* c2, int64_t ldc, int64_t row, int64_t rows,
                  int64_t col, int64_t cols) {
  FinishArgs args{};
  args.c = c;
  args.c2 = c2;
  args.ldc = ldc;
  args.rows = rows;
  args.cols = cols;
  args.bias = call.first->bias == nullptr ? nullptr : call.first->bias + col;
  args.activation = call.activation;
  args.residual = call.residual.data == nullptr ? nullptr : at(call.residual, row, col);
  args.residual_stride = call.residual.stride;
  args.y = at(call.y, row, col);
  args.y_stride = call.y.stride;
  call.finish(args);
}

// Asks for the lines of y that the tile about to run will store to.
inline void prefetch_for_write(const Matrix& y, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  const int64_t bytes = cols * static_cast<int64_t>(dtype_size_bytes(y.dtype));
  for (int64_t r = row; r < row + rows; ++r) {
    const std::byte* p = at(y, r, col);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 1);
  }
}

// Asks for the sums of the tile after the one about to run; there is room for one more than the last.
inline void prefetch_sums(const float* sums, size_t count) {
  for (size_t i = 0; i < count; i += 16) __builtin_prefetch(sums + i, 1);
}

// How a gemm is cut into tasks. Results do not depend on it.
struct GemmPlan {
  int64_t depth;         // of one block of K; a multiple of 32 unless it is all of K
  int64_t block_panels;  // panels (or gate/up pairs of panels) per task
  int64_t col_blocks;
  int64_t row_block;
  int64_t row_blocks;
};

// Kernel: `panel_cols`, `tile_rows` and panel_bytes(depth). Blocks of K are multiples of `depth_step`, a power of two.
template <typename Kernel>
GemmPlan plan_gemm(const Kernel& kernel, int weights, int64_t rows, int64_t cols, int64_t k, int64_t depth_step,
                   int threads) {
  GemmPlan plan{};
  const int64_t depth_blocks = div_up(k, kMaxDepth);
  plan.depth = depth_blocks == 1 ? k : div_up(div_up(k, depth_blocks), depth_step) * depth_step;

  const int64_t panels = div_up(cols, kernel.panel_cols);
  const size_t panel_bytes = align_up(kernel.panel_bytes(plan.depth)) * weights;
  const int64_t fitting = std::max<int64_t>(1, static_cast<int64_t>(packed_budget_bytes() / panel_bytes));
  const int64_t wanted_tasks = threads == 1 ? 1 : threads * kTasksPerThread;
  const int64_t longest_block = std::clamp<int64_t>(panels / wanted_tasks, 1, fitting);
  // Even blocks: 16 panels in blocks of at most 7 are 6, 6, 4 rather than 7, 7, 2.
  plan.block_panels = div_up(panels, div_up(panels, longest_block));
  plan.col_blocks = div_up(panels, plan.block_panels);

  int64_t row_blocks = std::clamp<int64_t>(div_up(wanted_tasks, plan.col_blocks), 1,
                                           std::max<int64_t>(1, rows / kMinRowBlock));
  if (plan.depth < k) row_blocks = std::max(row_blocks, div_up(rows, kMaxRowBlockSums));
  plan.row_block = div_up(div_up(rows, row_blocks), kernel.tile_rows) * kernel.tile_rows;
  plan.row_blocks = div_up(rows, plan.row_block);
  return plan;
}

// One task of a gemm: rows [row_begin, row_end) times columns [col_begin, col_end).
struct GemmBlock {
  int64_t row_begin, row_end, col_begin, col_end;
};

// Kernel, for one instruction set and kind of weight:
//   panel_cols, tile_rows; size_t panel_bytes(depth)
//   size_t row_bytes(depth): scratch for one tile of x, 0 if none
//   pack(weight 0 or 1, column, columns, depth_begin, depth, packed)
//   start_tile(row, rows, depth_begin, depth, accumulate, scratch): a tile of x is about to meet every panel
//   tile(weight, packed, c): one panel
template <typename Kernel>
void run_gemm_block(Kernel kernel, const GemmPlan& plan, const Call& call, const GemmBlock& block) {
  const int64_t k = call.first->in, nr = kernel.panel_cols, mr = kernel.tile_rows;
  const int weight_count = call.second == nullptr ? 1 : 2;
  const bool split_depth = plan.depth < k;

  const size_t panel_bytes = align_up(kernel.panel_bytes(plan.depth));
  const size_t packed_bytes = panel_bytes * weight_count * static_cast<size_t>(plan.block_panels);
  const size_t tile_floats = static_cast<size_t>(mr * nr);
  const size_t tiles = split_depth ? static_cast<size_t>(plan.row_block / mr * plan.block_panels + 1) : 1;
  const size_t sums_bytes = align_up(sizeof(float) * tile_floats * tiles * weight_count);
  std::byte* packed = scratch<Scratch::kTask>(packed_bytes + sums_bytes + align_up(kernel.row_bytes(plan.depth)));
  float* sums = reinterpret_cast<float*>(packed + packed_bytes);

  for (int64_t depth_begin = 0; depth_begin < k; depth_begin += plan.depth) {
    const int64_t depth = std::min(plan.depth, k - depth_begin);
    const bool first = depth_begin == 0, last = depth_begin + depth == k;
    std::byte* panel = packed;
    for (int64_t col = block.col_begin; col < block.col_end; col += nr) {
      for (int i = 0; i < weight_count; ++i, panel += panel_bytes) {
        kernel.pack(i, col, std::min(nr, block.col_end - col), depth_begin, depth, panel);
      }
    }
    float* c = sums;
    for (int64_t row = block.row_begin; row < block.row_end; row += mr) {
      const int64_t m = std::min(mr, block.row_end - row);
      kernel.start_tile(row, m, std::min(mr, block.row_end - row - m), depth_begin, depth, !first,
                        packed + packed_bytes + sums_bytes);
      panel = packed;
      for (int64_t col = block.col_begin; col < block.col_end; col += nr) {
        const int64_t cols = std::min(nr, block.col_end - col);
        if (last) prefetch_for_write(call.y, row, m, col, cols);
        if (!first) prefetch_sums(c + tile_floats * weight_count, tile_floats * weight_count);
        for (int i = 0; i < weight_count; ++i, panel += panel_bytes) kernel.tile(i, panel, c + i * tile_floats);
        if (last) {
          const float* c2 = weight_count == 1 ? nullptr : c + tile_floats;
          finish_block(call, c, c2, nr, row, m, col, cols);
        }
        if (split_depth) c += tile_floats * weight_count;
      }
    }
  }
}

template <typename Kernel>
void run_gemm(const Context& ctx, const Kernel& kernel, const Call& call, int64_t depth_step) {
  const int64_t rows = call.x.rows, cols = call.first->out;
  const int weights = call.second == nullptr ? 1 : 2;
  const GemmPlan plan = plan_gemm(kernel, weights, rows, cols, call.first->in, depth_step, ctx.pool->threads());
  const int64_t block_cols = plan.block_panels * kernel.panel_cols;
  ctx.pool->parallel_for(plan.col_blocks * plan.row_blocks, [&](int64_t task, int) {
    GemmBlock block{};
    block.col_begin = task / plan.row_blocks * block_cols;
    block.col_end = std::min(cols, block.col_begin + block_cols);
    block.row_begin = task % plan.row_blocks * plan.row_block;
    block.row_end = std::min(rows, block.row_begin + plan.row_block);
    run_gemm_block(kernel, plan, call, block);
  });
}

// One loop over the outputs of all calls, whose x have as many rows. product(call, weight 0 or 1, first column, columns, c,
// ldc) leaves the sums of all rows of x. Weights of calls[i] are row_bytes[i] a row.
//
// Tasks are alike in bytes and as many for each thread, whatever the calls are: what one has more than another, a thread waits for
// at the end of every loop. So a task may end in another call than it begins in.
template <typename Product>
void run_gemv(const Context& ctx, std::span<const Call> calls, std::span<const int64_t> row_bytes, const Product& product) {
  constexpr int64_t kStep = 32;  // whole cache lines of y, so that two threads never write the same one
  const auto cols = [&](size_t i) { return calls[i].first->out; };
  std::array<int64_t, kMaxCalls + 1> first{};  // byte of each call, those of all calls in a row
  int64_t steps = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    first[i + 1] = first[i] + div_up(cols(i), kStep) * kStep * row_bytes[i];
    steps += div_up(cols(i), kStep);
  }
  const int64_t bytes = first[calls.size()], threads = ctx.pool->threads();
  const int64_t task_bytes = calls[0].x.rows > kFewRows ? kGemvTaskBytesOfRows : kGemvTaskBytes;
  const int64_t tasks = std::min(steps, threads * std::max(kTasksPerThread, div_up(bytes, threads * task_bytes)));

  struct Place {
    size_t call;
    int64_t col;
  };
  const auto begin_of = [&](int64_t task) {
    const int64_t at = bytes * task / tasks;
    size_t i = calls.size() - 1;
    while (at < first[i]) --i;
    const int64_t step_bytes = kStep * row_bytes[i];
    return Place{i, std::min(cols(i), (at - first[i] + step_bytes / 2) / step_bytes * kStep)};
  };
  ctx.pool->parallel_for(tasks, [&](int64_t task, int) {
    constexpr int64_t kSums = kMaxFewRows * kMaxGemvTaskCols;
    float* const c = reinterpret_cast<float*>(scratch<Scratch::kTask>(sizeof(float) * 2 * kSums));
    const Place begin = begin_of(task), end = begin_of(task + 1);
    for (size_t i = begin.call; i <= end.call; ++i) {
      const Call& call = calls[i];
      const int64_t last = i == end.call ? end.col : cols(i);
      for (int64_t col = i == begin.call ? begin.col : 0, n = 0; col < last; col += n) {
        n = std::min(kMaxGemvTaskCols, last - col);
        product(i, 0, col, n, c, n);
        float* c2 = nullptr;
        if (call.second != nullptr) {
          c2 = c + kSums;
          product(i, 1, col, n, c2, n);
        }
        finish_block(call, c, c2, n, 0, call.x.rows, col, n);
      }
    }
  });
}

// Weights in an integer format with activations in int8 (linear_int8.cc). Of several calls on kGemv, all with the same x.
bool int8_runs(const Weight& w);
void run_int8(const Context& ctx, LinearPath path, const Call& call);
void run_int8_gemv(const Context& ctx, std::span<const Call> calls);

}  // namespace qvl::kernels
