// Linear layers: checks, the choice of kernels by types, and the loops over panels, rows and threads that are
// the same for every instruction set. Most of the time of every stage is spent below these loops
// (spec 5.4, 6.4).
//
// kGemm. A task is a block of output columns times a block of rows. For each block of K its weights are
// packed into a per-thread buffer that fits the second-level cache; then each tile of rows visits every panel
// of the block. Sums go through memory between two blocks of K, which changes no bit of them. kGemv. A task
// is a range of weight rows, read once in address order. Both leave float sums in a per-thread buffer, from
// where `finish` takes them.
#include <algorithm>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

constexpr int64_t kMaxGemvRows = 16;
// Packed panels of one task: half of a 2 MB second-level cache, the rest is for x and the results.
constexpr size_t kPackedBudgetBytes = 1024 * 1024;
// Longest block of K: four float panels of 64 columns then fit that budget, so that a tile of x serves four
// times, and six rows of it, widened, stay in the first-level cache.
constexpr int64_t kMaxDepth = 1024;
// Row blocks repack the same weights, so they have to be long enough to pay for it. With more than one block
// of K the sums of a row block wait in memory (4 MB at most); they pass by once per block, which costs
// little.
constexpr int64_t kMinRowBlock = 192;
constexpr int64_t kMaxRowBlockSums = 4096;
constexpr int64_t kTasksPerThread = 4;
// A gemv task reads about this much: long enough for the prefetchers, short enough to balance.
constexpr int64_t kGemvTaskBytes = 256 * 1024;
constexpr int64_t kMaxGemvTaskCols = 256;

int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
size_t align_up(size_t bytes) {
  return (bytes + 63) & ~size_t{63};
}

std::string dims(int64_t rows, int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

void check_matrix(std::string_view where, const std::string& what, const ConstMatrix& m, int64_t rows,
                  int64_t cols, DType dtype) {
  if (m.rows != rows || m.cols != cols) {
    fail(ErrorCode::kMismatch, where, what + " shape", dims(rows, cols), dims(m.rows, m.cols));
  }
  if (m.dtype != dtype) {
    fail(ErrorCode::kUnsupported, where, what + " type", dtype_name(dtype), dtype_name(m.dtype),
         "activations of one call share a type");
  }
  if (m.stride < m.cols) {
    fail(ErrorCode::kMismatch, where, what + " row stride", "at least " + std::to_string(m.cols),
         std::to_string(m.stride));
  }
  if (m.data == nullptr && rows > 0) fail(ErrorCode::kInvalidArgument, where, what + ": no data");
}

void check_call(std::string_view where, const Context& ctx, LinearPath path, const ConstMatrix& x,
                const Weight& w, const ConstMatrix& y) {
  if (ctx.pool == nullptr || ctx.table == nullptr) {
    fail(ErrorCode::kInvalidArgument, where, "context without thread pool or kernel table");
  }
  if (x.rows < 0 || w.out < 1 || w.in < 1) {
    fail(ErrorCode::kMismatch, where, "sizes", "rows >= 0, out >= 1, in >= 1",
         "rows " + std::to_string(x.rows) + ", weight " + dims(w.out, w.in));
  }
  if (w.data == nullptr) fail(ErrorCode::kInvalidArgument, where, "weight: no data");
  if (x.dtype != DType::kF32 && x.dtype != DType::kBF16) {
    fail(ErrorCode::kUnsupported, where, "activation type", "F32 or BF16", dtype_name(x.dtype));
  }
  check_matrix(where, "x", x, x.rows, w.in, x.dtype);
  check_matrix(where, "y", y, x.rows, w.out, x.dtype);
  if (path == LinearPath::kGemv && x.rows > kMaxGemvRows) {
    fail(ErrorCode::kMismatch, where, "rows on the gemv path", "at most " + std::to_string(kMaxGemvRows),
         std::to_string(x.rows), "use kGemm");
  }
}

struct Kernels {
  const GemmKernel* gemm;
  const GemvKernel* gemv;
};

Kernels kernels_for(std::string_view where, const LinearKernels& table, DType x, DType w) {
  if (x == DType::kBF16 && w == DType::kBF16) return {&table.gemm_bf16_bf16, &table.gemv_bf16_bf16};
  if (x == DType::kF32 && w == DType::kF32) return {&table.gemm_f32_f32, &table.gemv_f32_f32};
  if (x == DType::kF32 && w == DType::kBF16) return {&table.gemm_f32_bf16, &table.gemv_f32_bf16};
  if (x == DType::kF32 && w == DType::kF16) return {&table.gemm_f32_f16, &table.gemv_f32_f16};
  fail(ErrorCode::kUnsupported, where, "types of x and weight",
       "F32 with F32, BF16 or F16, or BF16 with BF16",
       std::string(dtype_name(x)) + " with " + std::string(dtype_name(w)));
}

// Scratch of the calling thread, kept for the next call: fresh pages would cost more than packing. Prepared x
// lives through the loop that its caller runs, so it has a buffer of its own.
enum class Scratch { kTask, kPreparedX };

template <Scratch>
std::byte* scratch(size_t size_bytes) {
  thread_local AlignedBuffer buffer;
  if (buffer.size_bytes() < size_bytes) {
    buffer = AlignedBuffer();
    buffer = AlignedBuffer(size_bytes);
  }
  return buffer.data();
}

const std::byte* at(const ConstMatrix& m, int64_t row, int64_t col) {
  return static_cast<const std::byte*>(m.data) +
         (row * m.stride + col) * static_cast<int64_t>(dtype_size_bytes(m.dtype));
}

std::byte* at(const Matrix& m, int64_t row, int64_t col) {
  return static_cast<std::byte*>(m.data) +
         (row * m.stride + col) * static_cast<int64_t>(dtype_size_bytes(m.dtype));
}

const std::byte* weight_at(const Weight& w, int64_t row, int64_t col) {
  return static_cast<const std::byte*>(w.data) +
         (row * w.in + col) * static_cast<int64_t>(dtype_size_bytes(w.dtype));
}

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
void finish_block(const Call& call, const float* c, const float* c2, int64_t ldc, int64_t row, int64_t rows,
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
void prefetch_for_write(const Matrix& y, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  const int64_t bytes = cols * static_cast<int64_t>(dtype_size_bytes(y.dtype));
  for (int64_t r = row; r < row + rows; ++r) {
    const std::byte* p = at(y, r, col);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 1);
  }
}

// Asks for the sums of the tile after the one about to run; there is room for one more than the last.
void prefetch_sums(const float* sums, size_t count) {
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

GemmPlan plan_gemm(const GemmKernel& kernel, int weights, int64_t rows, int64_t cols, int64_t k,
                   int threads) {
  GemmPlan plan{};
  const int64_t depth_blocks = div_up(k, kMaxDepth);
  plan.depth = depth_blocks == 1 ? k : div_up(div_up(k, depth_blocks), 32) * 32;

  const int64_t panels = div_up(cols, kernel.panel_cols);
  const size_t panel_bytes = align_up(kernel.panel_bytes(plan.depth)) * weights;
  const int64_t fitting = std::max<int64_t>(1, static_cast<int64_t>(kPackedBudgetBytes / panel_bytes));
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

void run_gemm_block(const GemmKernel& kernel, const GemmPlan& plan, const Call& call,
                    const GemmBlock& block) {
  const int64_t k = call.first->in, nr = kernel.panel_cols, mr = kernel.tile_rows;
  const Weight* weights[2] = {call.first, call.second};
  const int weight_count = call.second == nullptr ? 1 : 2;
  const bool split_depth = plan.depth < k;

  const size_t panel_bytes = align_up(kernel.panel_bytes(plan.depth));
  const size_t packed_bytes = panel_bytes * weight_count * static_cast<size_t>(plan.block_panels);
  const size_t tile_floats = static_cast<size_t>(mr * nr);
  const size_t tiles = split_depth ? static_cast<size_t>(plan.row_block / mr * plan.block_panels + 1) : 1;
  const size_t sums_bytes = align_up(sizeof(float) * tile_floats * tiles * weight_count);
  const size_t wide_bytes = kernel.widen == nullptr ? 0 : align_up(sizeof(float) * mr * plan.depth);
  std::byte* packed = scratch<Scratch::kTask>(packed_bytes + sums_bytes + wide_bytes);
  float* sums = reinterpret_cast<float*>(packed + packed_bytes);
  float* wide = reinterpret_cast<float*>(packed + packed_bytes + sums_bytes);

  for (int64_t depth_begin = 0; depth_begin < k; depth_begin += plan.depth) {
    const int64_t depth = std::min(plan.depth, k - depth_begin);
    const bool first = depth_begin == 0, last = depth_begin + depth == k;
    std::byte* panel = packed;
    for (int64_t col = block.col_begin; col < block.col_end; col += nr) {
      for (int i = 0; i < weight_count; ++i, panel += panel_bytes) {
        kernel.pack(weight_at(*weights[i], col, depth_begin), k, std::min(nr, block.col_end - col), depth,
                    panel);
      }
    }
    float* c = sums;
    for (int64_t row = block.row_begin; row < block.row_end; row += mr) {
      const int64_t m = std::min(mr, block.row_end - row);
      const void* a = at(call.x, row, depth_begin);
      int64_t a_stride = call.x.stride;
      if (kernel.widen != nullptr) {
        kernel.widen(a, a_stride, m, depth, wide);
        a = wide;
        a_stride = depth;
      }
      TileArgs tile{a, a_stride, static_cast<int>(m), nullptr, depth, !first, nullptr, nullptr, 0, 0, 0};
      const int64_t next_rows = std::min(mr, block.row_end - row - mr);
      if (next_rows > 0) {
        tile.next_x = at(call.x, row + mr, depth_begin);
        tile.next_element_bytes = static_cast<int64_t>(dtype_size_bytes(call.x.dtype));
        tile.next_stride = call.x.stride * tile.next_element_bytes;
        tile.next_rows = static_cast<int>(next_rows);
      }
      panel = packed;
      for (int64_t col = block.col_begin; col < block.col_end; col += nr) {
        const int64_t cols = std::min(nr, block.col_end - col);
        if (last) prefetch_for_write(call.y, row, m, col, cols);
        if (!first) prefetch_sums(c + tile_floats * weight_count, tile_floats * weight_count);
        for (int i = 0; i < weight_count; ++i, panel += panel_bytes) {
          tile.packed = panel;
          tile.c = c + i * tile_floats;
          kernel.tile(tile);
          tile.next_rows = 0;
        }
        if (last) {
          const float* c2 = weight_count == 1 ? nullptr : c + tile_floats;
          finish_block(call, c, c2, nr, row, m, col, cols);
        }
        if (split_depth) c += tile_floats * weight_count;
      }
    }
  }
}

void run_gemm(const Context& ctx, const GemmKernel& kernel, const Call& call) {
  const int64_t rows = call.x.rows, cols = call.first->out;
  const int weights = call.second == nullptr ? 1 : 2;
  const GemmPlan plan = plan_gemm(kernel, weights, rows, cols, call.first->in, ctx.pool->threads());
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

void run_gemv(const Context& ctx, const GemvKernel& kernel, const Call& call) {
  const int64_t rows = call.x.rows, k = call.first->in, cols = call.first->out;
  const int64_t row_bytes = k * static_cast<int64_t>(dtype_size_bytes(call.first->dtype));
  // Whole cache lines of y, so that two threads never write the same one.
  int64_t task_cols = std::clamp<int64_t>(kGemvTaskBytes / row_bytes / 32 * 32, 32, kMaxGemvTaskCols);
  while (task_cols > 32 && cols / task_cols < ctx.pool->threads() * kTasksPerThread) task_cols -= 32;

  const void* x = call.x.data;
  int64_t x_stride = call.x.stride;
  if (kernel.prepare != nullptr) {
    x_stride = kernel.prepared_floats(k);
    float* prepared = reinterpret_cast<float*>(
        scratch<Scratch::kPreparedX>(sizeof(float) * static_cast<size_t>(rows * x_stride)));
    for (int64_t r = 0; r < rows; ++r) kernel.prepare(at(call.x, r, 0), k, prepared + r * x_stride);
    x = prepared;
  }

  ctx.pool->parallel_for(div_up(cols, task_cols), [&](int64_t task, int) {
    constexpr int64_t kSums = kMaxGemvRows * kMaxGemvTaskCols;
    float* c = reinterpret_cast<float*>(scratch<Scratch::kTask>(sizeof(float) * 2 * kSums));
    const int64_t col = task * task_cols;
    const int64_t n = std::min(task_cols, cols - col);
    kernel.run(x, x_stride, rows, weight_at(*call.first, col, 0), n, k, c, task_cols);
    float* c2 = nullptr;
    if (call.second != nullptr) {
      c2 = c + kSums;
      kernel.run(x, x_stride, rows, weight_at(*call.second, col, 0), n, k, c2, task_cols);
    }
    finish_block(call, c, c2, task_cols, 0, rows, col, n);
  });
}

void run(const Context& ctx, std::string_view where, LinearPath path, const Call& call) {
  const Kernels kernels = kernels_for(where, *ctx.table->linear, call.x.dtype, call.first->dtype);
  if (call.x.rows == 0) return;
  if (path == LinearPath::kGemm) {
    run_gemm(ctx, *kernels.gemm, call);
  } else {
    run_gemv(ctx, *kernels.gemv, call);
  }
}

}  // namespace

void linear(const Context& ctx, LinearPath path, ConstMatrix x, const Weight& w, Activation activation,
            ConstMatrix residual, Matrix y) {
  constexpr std::string_view kWhere = "linear";
  check_call(kWhere, ctx, path, x, w, y);
  if (residual.data != nullptr) check_matrix(kWhere, "residual", residual, x.rows, w.out, x.dtype);
  const LinearKernels& table = *ctx.table->linear;
  const FinishKernel finish = x.dtype == DType::kF32 ? table.finish_f32 : table.finish_bf16;
  run(ctx, kWhere, path, {x, &w, nullptr, activation, residual, y, finish});
}

void linear_swiglu(const Context& ctx, LinearPath path, ConstMatrix x, const Weight& gate, const Weight& up,
                   Matrix y) {
  constexpr std::string_view kWhere = "linear_swiglu";
  check_call(kWhere, ctx, path, x, gate, y);
  if (up.out != gate.out || up.in != gate.in) {
    fail(ErrorCode::kMismatch, kWhere, "shape of the up projection", dims(gate.out, gate.in),
         dims(up.out, up.in));
  }
  if (up.dtype != gate.dtype) {
    fail(ErrorCode::kUnsupported, kWhere, "type of the up projection", dtype_name(gate.dtype),
         dtype_name(up.dtype));
  }
  if (up.data == nullptr) fail(ErrorCode::kInvalidArgument, kWhere, "up projection: no data");
  if (gate.bias != nullptr || up.bias != nullptr) {
    fail(ErrorCode::kUnsupported, kWhere, "bias", "none", "one");
  }
  const LinearKernels& table = *ctx.table->linear;
  const FinishKernel finish = x.dtype == DType::kF32 ? table.finish_swiglu_f32 : table.finish_swiglu_bf16;
  run(ctx, kWhere, path, {x, &gate, &up, Activation::kNone, {}, y, finish});
}

void add_rows(const Context& ctx, Matrix x, ConstMatrix y) {
  constexpr std::string_view kWhere = "add_rows";
  if (ctx.pool == nullptr || ctx.table == nullptr) {
    fail(ErrorCode::kInvalidArgument, kWhere, "context without thread pool or kernel table");
  }
  if (x.dtype != DType::kF32 && x.dtype != DType::kBF16) {
    fail(ErrorCode::kUnsupported, kWhere, "activation type", "F32 or BF16", dtype_name(x.dtype));
  }
  check_matrix(kWhere, "x", x, x.rows, x.cols, x.dtype);
  check_matrix(kWhere, "y", y, x.rows, x.cols, x.dtype);
  const AddKernel add = x.dtype == DType::kF32 ? ctx.table->linear->add_f32 : ctx.table->linear->add_bf16;
  const auto add_range = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) add(at(x, r, 0), at(y, r, 0), x.cols);
  };
  // Waking threads costs more than adding a few rows.
  constexpr int64_t kMinTaskElements = 64 * 1024;
  const int64_t rows_per_task = std::max<int64_t>(1, kMinTaskElements / std::max<int64_t>(1, x.cols));
  ctx.pool->parallel_for(div_up(x.rows, rows_per_task), [&](int64_t task, int) {
    add_range(task * rows_per_task, std::min(x.rows, (task + 1) * rows_per_task));
  });
}

}  // namespace qvl::kernels
