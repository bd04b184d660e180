// Linear layers over integer weights with activations rounded to int8: x is prepared once per call, then the loops of
// linear_loop.h run over the kernels of int8_kernels.h (spec 6.4, 10).
#include <algorithm>

#include "qvl/base/tensor.h"
#include "qvl/kernels/dequantize.h"
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/linear_loop.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

int64_t padded(int64_t k) {
  return div_up(k, kInt8Pad) * kInt8Pad;
}

// Rows of x as unsigned bytes q + 128 with their scales, for the tiles.
struct UnsignedRows {
  const uint8_t* q = nullptr;
  int64_t stride = 0;
  const float* scales = nullptr;
  int64_t scale_stride = 0;
};

class Int8Gemm {
 public:
  Int8Gemm(const Int8GemmKernel& kernel, const Int8Weight& first, const Int8Weight& second, const UnsignedRows& x)
      : panel_cols(kernel.panel_cols), tile_rows(kernel.tile_rows), kernel_(kernel), weights_{first, second}, x_(x) {}

  size_t panel_bytes(int64_t depth) const { return kernel_.panel_bytes(whole(depth), group()); }
  size_t row_bytes(int64_t) const { return 0; }

  void pack(int weight, int64_t col, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) const {
    kernel_.pack(weights_[weight].rows_from(col), cols, begin, whole(depth), packed);
  }

  void start_tile(int64_t row, int64_t rows, int64_t, int64_t begin, int64_t depth, bool accumulate, std::byte*) {
    tile_.x = x_.q + row * x_.stride + begin;
    tile_.x_stride = x_.stride;
    tile_.x_scales = x_.scales + row * x_.scale_stride + begin / group();
    tile_.x_scale_stride = x_.scale_stride;
    tile_.rows = static_cast<int>(rows);
    tile_.group = group();
    tile_.groups = whole(depth) / group();
    tile_.accumulate = accumulate;
  }

  void tile(const std::byte* packed, float* c) {
    tile_.wide = weights_[0].bits == 8;
    tile_.packed = packed;
    tile_.c = c;
    kernel_.tile(tile_);
  }

  const int64_t panel_cols, tile_rows;

 private:
  int64_t group() const { return weights_[0].group(); }
  int64_t whole(int64_t depth) const { return div_up(depth, group()) * group(); }

  const Int8GemmKernel& kernel_;
  Int8Weight weights_[2];
  UnsignedRows x_;
  Int8TileArgs tile_{};
};

}  // namespace

bool int8_runs(const Weight& w) {
  if (w.format.kind == quant::Kind::kFloat || !w.int8_activations) return false;
  return w.format.bits == 4 || !w.format.zero_points;
}

void run_int8(const Context& ctx, LinearPath path, const Call& call) {
  const Int8Kernels& kernels = *ctx.table->int8;
  const Int8Weight first = int8_view(*call.first);
  const Int8Weight second = call.second == nullptr ? Int8Weight{} : int8_view(*call.second);
  const int64_t rows = call.x.rows, k = call.first->in, group = first.group();
  const int64_t groups = padded(k) / group;
  const auto quantize = call.x.dtype == DType::kF32 ? kernels.quantize_f32 : kernels.quantize_bf16;

  if (path == LinearPath::kGemv) {
    const int64_t stride = static_cast<int64_t>(align_up(kernels.gemv.prepared_bytes(first)));
    std::byte* prepared = scratch<Scratch::kPreparedX>(static_cast<size_t>(
        rows * stride + padded(k) + groups * static_cast<int64_t>(sizeof(float))));
    int8_t* q = reinterpret_cast<int8_t*>(prepared + rows * stride);
    float* scales = reinterpret_cast<float*>(q + padded(k));
    for (int64_t r = 0; r < rows; ++r) {
      quantize(at(call.x, r, 0), k, group, q, scales);
      kernels.gemv.prepare(first, q, scales, prepared + r * stride);
    }
    run_gemv(ctx, call, first.data_stride, [&](int weight, int64_t col, int64_t n, float* c, int64_t ldc) {
      const Int8Weight& w = weight == 0 ? first : second;
      kernels.gemv.run(prepared, stride, rows, w.rows_from(col), n, c, ldc);
    });
    return;
  }

  std::byte* prepared = scratch<Scratch::kPreparedX>(
      static_cast<size_t>(rows * (padded(k) + groups * static_cast<int64_t>(sizeof(float)))));
  UnsignedRows x;
  x.q = reinterpret_cast<uint8_t*>(prepared);
  x.stride = padded(k);
  float* scales = reinterpret_cast<float*>(prepared + rows * x.stride);
  x.scales = scales;
  x.scale_stride = groups;
  constexpr int64_t kRowsOfATask = 8;
  ctx.pool->parallel_for(div_up(rows, kRowsOfATask), [&](int64_t task, int) {
    for (int64_t r = task * kRowsOfATask; r < std::min(rows, (task + 1) * kRowsOfATask); ++r) {
      uint8_t* q = reinterpret_cast<uint8_t*>(prepared) + r * x.stride;
      quantize(at(call.x, r, 0), k, group, reinterpret_cast<int8_t*>(q), scales + r * groups);
      for (int64_t i = 0; i < x.stride; ++i) q[i] ^= 0x80;
    }
  });
  run_gemm(ctx, Int8Gemm(kernels.gemm, first, second, x), call, kInt8Pad);
}

}  // namespace qvl::kernels
