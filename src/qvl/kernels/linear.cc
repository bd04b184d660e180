// Linear layers: checks, the choice of kernels by types, and weights in floats: as they are stored, or unpacked from
// an integer format block by block. Most of the time of every stage is spent below the loops of linear_loop.h
// (spec 5.4, 6.4).
#include <algorithm>
#include <array>
#include <span>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/dequantize.h"
#include "qvl/kernels/linear_loop.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

bool is_integer(const Weight& w) {
  return w.format.kind != quant::Kind::kFloat;
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

std::string weight_type(const Weight& w) {
  return is_integer(w) ? w.format.name() : std::string(dtype_name(w.dtype));
}

void check_integer(std::string_view where, const Weight& w) {
  if (!is_integer(w)) return;
  w.format.validate();
  if (w.scales == nullptr) fail(ErrorCode::kInvalidArgument, where, "weight in " + w.format.name() + ": no scales");
  if (w.format.zero_points != (w.zero_points != nullptr)) {
    fail(ErrorCode::kMismatch, where, "zero points of a weight in " + w.format.name(),
         w.format.zero_points ? "some" : "none", w.zero_points != nullptr ? "some" : "none");
  }
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
  check_integer(where, w);
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

const std::byte* weight_at(const Weight& w, int64_t row, int64_t col) {
  return static_cast<const std::byte*>(w.data) +
         (row * w.in + col) * static_cast<int64_t>(dtype_size_bytes(w.dtype));
}

// Of the floats that meet x in a float product: integer weights are unpacked to the activation type.
DType product_type(const Weight& w, DType x) {
  return is_integer(w) ? x : w.dtype;
}

// Columns [col, col + cols) of the output, inputs [begin, begin + depth), as floats of x's type: where they are stored,
// or unpacked into scratch; `stride` becomes the distance of two rows in elements.
const std::byte* float_rows(const Weight& w, DType x, int64_t col, int64_t cols, int64_t begin, int64_t depth,
                            int64_t& stride) {
  if (!is_integer(w)) {
    stride = w.in;
    return weight_at(w, col, begin);
  }
  stride = depth;
  std::byte* rows = scratch<Scratch::kUnpacked>(static_cast<size_t>(cols * depth) * dtype_size_bytes(x));
  dequantize_block(w, col, cols, begin, depth, x, rows);
  return rows;
}

class FloatGemm {
 public:
  FloatGemm(const GemmKernel& kernel, const Call& call)
      : panel_cols(kernel.panel_cols), tile_rows(kernel.tile_rows), kernel_(kernel), call_(call) {}

  size_t panel_bytes(int64_t depth) const { return kernel_.panel_bytes(depth); }
  size_t row_bytes(int64_t depth) const {
    return kernel_.widen == nullptr ? 0 : sizeof(float) * static_cast<size_t>(tile_rows * depth);
  }

  void pack(int weight, int64_t col, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) const {
    const Weight& w = weight == 0 ? *call_.first : *call_.second;
    int64_t stride = 0;
    const std::byte* rows = float_rows(w, call_.x.dtype, col, cols, begin, depth, stride);
    kernel_.pack(rows, stride, cols, depth, packed);
  }

  void start_tile(int64_t row, int64_t rows, int64_t next_rows, int64_t begin, int64_t depth, bool accumulate,
                  std::byte* wide) {
    const void* a = at(call_.x, row, begin);
    int64_t a_stride = call_.x.stride;
    if (kernel_.widen != nullptr) {
      kernel_.widen(a, a_stride, rows, depth, reinterpret_cast<float*>(wide));
      a = wide;
      a_stride = depth;
    }
    tile_ = {a, a_stride, static_cast<int>(rows), nullptr, depth, accumulate, nullptr, nullptr, 0, 0, 0};
    if (next_rows > 0) {
      tile_.next_x = at(call_.x, row + rows, begin);
      tile_.next_element_bytes = static_cast<int64_t>(dtype_size_bytes(call_.x.dtype));
      tile_.next_stride = call_.x.stride * tile_.next_element_bytes;
      tile_.next_rows = static_cast<int>(next_rows);
    }
  }

  void tile(int, const std::byte* packed, float* c) {
    tile_.packed = packed;
    tile_.c = c;
    kernel_.tile(tile_);
    tile_.next_rows = 0;
  }

  const int64_t panel_cols, tile_rows;

 private:
  const GemmKernel& kernel_;
  const Call& call_;
  TileArgs tile_{};
};

// All calls have the same x.
void run_float_gemv(const Context& ctx, const GemvKernel& kernel, std::span<const Call> calls) {
  const ConstMatrix& rows_of_x = calls[0].x;
  const int64_t rows = rows_of_x.rows, k = rows_of_x.cols;
  const void* x = rows_of_x.data;
  int64_t x_stride = rows_of_x.stride;
  if (kernel.prepare != nullptr) {
    x_stride = kernel.prepared_floats(k);
    float* prepared = reinterpret_cast<float*>(
        scratch<Scratch::kPreparedX>(sizeof(float) * static_cast<size_t>(rows * x_stride)));
    for (int64_t r = 0; r < rows; ++r) kernel.prepare(at(rows_of_x, r, 0), k, prepared + r * x_stride);
    x = prepared;
  }
  std::array<int64_t, kMaxCalls> row_bytes;
  row_bytes.fill(k * static_cast<int64_t>(dtype_size_bytes(product_type(*calls[0].first, rows_of_x.dtype))));
  run_gemv(ctx, calls, row_bytes, [&](size_t call, int weight, int64_t col, int64_t n, float* c, int64_t ldc) {
    int64_t stride = 0;
    const Weight& w = weight == 0 ? *calls[call].first : *calls[call].second;
    const std::byte* from = float_rows(w, rows_of_x.dtype, col, n, 0, k, stride);
    kernel.run(x, x_stride, rows, from, n, k, c, ldc);
  });
}

void run(const Context& ctx, std::string_view where, LinearPath path, const Call& call) {
  const Kernels kernels = kernels_for(where, *ctx.table->linear, call.x.dtype,
                                      product_type(*call.first, call.x.dtype));
  if (call.x.rows == 0) return;
  if (int8_runs(*call.first) && (call.second == nullptr || int8_runs(*call.second))) {
    run_int8(ctx, path, call);
  } else if (path == LinearPath::kGemm) {
    run_gemm(ctx, FloatGemm(*kernels.gemm, call), call, 32);
  } else {
    run_float_gemv(ctx, *kernels.gemv, {&call, 1});
  }
}

Call plain_call(const Context& ctx, std::string_view where, LinearPath path, ConstMatrix x, const Weight& w,
                Activation activation, ConstMatrix residual, Matrix y) {
  check_call(where, ctx, path, x, w, y);
  if (residual.data != nullptr) check_matrix(where, "residual", residual, x.rows, w.out, x.dtype);
  const LinearKernels& table = *ctx.table->linear;
  return {x, &w, nullptr, activation, residual, y, x.dtype == DType::kF32 ? table.finish_f32 : table.finish_bf16};
}

}  // namespace

void linear(const Context& ctx, LinearPath path, ConstMatrix x, const Weight& w, Activation activation,
            ConstMatrix residual, Matrix y) {
  constexpr std::string_view kWhere = "linear";
  run(ctx, kWhere, path, plain_call(ctx, kWhere, path, x, w, activation, residual, y));
}

void linear_together(const Context& ctx, LinearPath path, std::span<const LinearProduct> products) {
  constexpr std::string_view kWhere = "linear_together";
  if (products.size() > kMaxCalls) {
    fail(ErrorCode::kInvalidArgument, kWhere, "products", "at most " + std::to_string(kMaxCalls),
         std::to_string(products.size()));
  }
  std::array<Call, kMaxCalls> calls;
  size_t count = 0;
  for (const LinearProduct& p : products) {
    if (p.weight == nullptr) fail(ErrorCode::kInvalidArgument, kWhere, "product without a weight");
    calls[count++] = plain_call(ctx, kWhere, path, p.x, *p.weight, Activation::kNone, {}, p.y);
    kernels_for(kWhere, *ctx.table->linear, p.x.dtype, product_type(*p.weight, p.x.dtype));
  }
  const std::span<const Call> all(calls.data(), count);
  const auto alike = [&](const Call& c) {
    const Call& first = all.front();
    return c.x.data == first.x.data && c.x.stride == first.x.stride && c.x.rows == first.x.rows &&
           c.x.dtype == first.x.dtype && int8_runs(*c.first) == int8_runs(*first.first) &&
           product_type(*c.first, c.x.dtype) == product_type(*first.first, c.x.dtype);
  };
  // Long loops gain nothing by being one.
  if (path == LinearPath::kGemm || count < 2 || all.front().x.rows == 0 || !std::ranges::all_of(all, alike)) {
    for (const Call& c : all) run(ctx, kWhere, path, c);
    return;
  }
  const Call& first = all.front();
  if (int8_runs(*first.first)) return run_int8_gemv(ctx, all);
  run_float_gemv(ctx,
                 *kernels_for(kWhere, *ctx.table->linear, first.x.dtype, product_type(*first.first, first.x.dtype)).gemv,
                 all);
}

void linear_swiglu(const Context& ctx, LinearPath path, ConstMatrix x, const Weight& gate, const Weight& up,
                   Matrix y) {
  constexpr std::string_view kWhere = "linear_swiglu";
  check_call(kWhere, ctx, path, x, gate, y);
  if (up.out != gate.out || up.in != gate.in) {
    fail(ErrorCode::kMismatch, kWhere, "shape of the up projection", dims(gate.out, gate.in),
         dims(up.out, up.in));
  }
  if (is_integer(gate) != is_integer(up) || (!is_integer(gate) && up.dtype != gate.dtype)) {
    fail(ErrorCode::kUnsupported, kWhere, "type of the up projection", weight_type(gate), weight_type(up));
  }
  check_integer(kWhere, up);
  if (up.data == nullptr) fail(ErrorCode::kInvalidArgument, kWhere, "up projection: no data");
  if (gate.bias != nullptr || up.bias != nullptr) {
    fail(ErrorCode::kUnsupported, kWhere, "bias", "none", "one");
  }
  const LinearKernels& table = *ctx.table->linear;
  const FinishKernel finish = x.dtype == DType::kF32 ? table.finish_swiglu_f32 : table.finish_swiglu_bf16;
  run(ctx, kWhere, path, {x, &gate, &up, Activation::kNone, {}, y, finish});
}

void weight_row(const Weight& w, int64_t row, DType type, void* out) {
  constexpr std::string_view kWhere = "weight row";
  check_integer(kWhere, w);
  if (type != DType::kF32 && type != DType::kBF16) {
    fail(ErrorCode::kUnsupported, kWhere, "type of the result", "F32 or BF16", dtype_name(type));
  }
  if (row < 0 || row >= w.out) {
    fail(ErrorCode::kInvalidArgument, kWhere, "row", "0.." + std::to_string(w.out - 1), std::to_string(row));
  }
  if (is_integer(w)) {
    dequantize_block(w, row, 1, 0, w.in, type, static_cast<std::byte*>(out));
  } else {
    convert_elements(weight_at(w, row, 0), w.dtype, out, type, w.in);
  }
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
