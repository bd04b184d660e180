// Linear layers over integer weights with activations rounded to int8: x is prepared once per call, then the loops of
// linear_loop.h run over the kernels of int8_kernels.h (spec 6.4, 10).
#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "qvl/base/tensor.h"
#include "qvl/kernels/dequantize.h"
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/linear_loop.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

// Rows of x as bytes, q + 128 or q, with their scales, for the tiles.
struct QuantizedRows {
  const uint8_t* q = nullptr;
  int64_t stride = 0;
  const float* scales = nullptr;
  int64_t scale_stride = 0;
  const int32_t* least = nullptr;  // as the scales: what the bytes have too little; null: they are q + 128 or q
};

// Gate and up may be stored in different formats: each has its own view of x.
class Int8Gemm {
 public:
  struct Operand {
    Int8Weight weight;
    QuantizedRows x;
  };

  Int8Gemm(const Int8GemmKernel& kernel, const Operand& first, const Operand& second)
      : panel_cols(kernel.panel_cols), tile_rows(kernel.tile_rows), kernel_(kernel), operands_{first, second} {}

  // Room for either operand's panel.
  size_t panel_bytes(int64_t depth) const {
    size_t most = 0;
    for (const Operand& o : operands_) {
      if (o.weight.data != nullptr) most = std::max(most, kernel_.panel_bytes(whole(o, depth), o.weight.group()));
    }
    return most;
  }
  size_t row_bytes(int64_t) const { return 0; }

  void pack(int weight, int64_t col, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) const {
    const Operand& o = operands_[weight];
    kernel_.pack(o.weight.rows_from(col), cols, begin, whole(o, depth), packed);
  }

  void start_tile(int64_t row, int64_t rows, int64_t, int64_t begin, int64_t depth, bool accumulate, std::byte*) {
    for (int i = 0; i < 2; ++i) {
      const Operand& o = operands_[i];
      if (o.weight.data == nullptr) continue;
      Int8TileArgs& tile = tiles_[i];
      tile.x = o.x.q + row * o.x.stride + begin;
      tile.x_stride = o.x.stride;
      tile.x_scales = o.x.scales + row * o.x.scale_stride + begin / o.weight.group();
      tile.x_scale_stride = o.x.scale_stride;
      tile.x_least = o.x.least == nullptr ? nullptr : o.x.least + (tile.x_scales - o.x.scales);
      tile.rows = static_cast<int>(rows);
      tile.group = o.weight.group();
      tile.groups = whole(o, depth) / o.weight.group();
      tile.wide = o.weight.bits == 8;
      tile.zero_points = o.weight.zero_points != nullptr;
      tile.accumulate = accumulate;
      tile.power_scales = o.weight.power_scales();
    }
  }

  void tile(int weight, const std::byte* packed, float* c) {
    tiles_[weight].packed = packed;
    tiles_[weight].c = c;
    kernel_.tile(tiles_[weight]);
  }

  const int64_t panel_cols, tile_rows;

 private:
  static int64_t whole(const Operand& o, int64_t depth) {
    return div_up(depth, o.weight.group()) * o.weight.group();
  }

  const Int8GemmKernel& kernel_;
  Operand operands_[2];
  Int8TileArgs tiles_[2]{};
};

bool same_x(const Int8Weight& a, const Int8Weight& b) {
  return a.bits == b.bits && a.group() == b.group() && a.x_bits == b.x_bits;
}

bool same_format(const Int8Weight& a, const Int8Weight& b) {
  return same_x(a, b) && a.block == b.block && a.scale_type == b.scale_type && (a.zero_points == nullptr) == (b.zero_points == nullptr);
}

bool takes_seven(const Int8Kernels& kernels, const Int8Weight& w) {
  return kernels.gemm_seven.fits != nullptr && kernels.gemm_seven.fits(w);
}

// All rows of x rounded as `w` wants them, in `room` of quantized_rows_bytes().
size_t quantized_rows_bytes(int64_t rows, int64_t k, int64_t group) {
  return align_up(static_cast<size_t>(rows * int8_padded(k)) +
                  (sizeof(float) + sizeof(int32_t)) * static_cast<size_t>(rows * (int8_padded(k) / group)));
}

QuantizedRows quantized_rows(const Context& ctx, const Int8Kernels& kernels, const ConstMatrix& matrix, const Int8Weight& w,
                             bool seven, std::byte* room) {
  const int64_t group = w.group();
  const bool is_signed = w.bits == 8 && kernels.gemm.signed_when_wide;
  const auto quantize = matrix.dtype == DType::kF32 ? kernels.quantize_f32 : kernels.quantize_bf16;
  QuantizedRows x;
  x.stride = int8_padded(matrix.cols);
  x.scale_stride = x.stride / group;
  x.q = reinterpret_cast<uint8_t*>(room);
  float* scales = reinterpret_cast<float*>(room + matrix.rows * x.stride);
  x.scales = scales;
  int32_t* least = reinterpret_cast<int32_t*>(scales + matrix.rows * x.scale_stride);
  if (seven) x.least = least;
  constexpr int64_t kRowsOfATask = 8;
  ctx.pool->parallel_for(div_up(matrix.rows, kRowsOfATask), [&](int64_t task, int) {
    for (int64_t r = task * kRowsOfATask; r < std::min(matrix.rows, (task + 1) * kRowsOfATask); ++r) {
      uint8_t* q = reinterpret_cast<uint8_t*>(room) + r * x.stride;
      quantize(at(matrix, r, 0), matrix.cols, group, w.x_bits, reinterpret_cast<int8_t*>(q), scales + r * x.scale_stride);
      if (seven) {
        kernels.gemm_seven.shift(reinterpret_cast<int8_t*>(q), x.stride, least + r * x.scale_stride);
        continue;
      }
      for (int64_t i = 0; i < x.stride && !is_signed; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, q + i, sizeof(eight));
        eight ^= 0x8080808080808080u;
        std::memcpy(q + i, &eight, sizeof(eight));
      }
    }
  });
  return x;
}

}  // namespace

bool int8_runs(const Weight& w) {
  if (w.format.kind == quant::Kind::kFloat || !w.int8_activations) return false;
  return w.format.bits == 4 || !w.format.zero_points;
}

void run_int8_gemv(const Context& ctx, std::span<const Call> calls) {
  const Int8Kernels& kernels = *ctx.table->int8;
  const ConstMatrix& x = calls[0].x;
  const int64_t rows = x.rows, k = x.cols;
  const auto takes_few = [&](const Int8Weight& w) { return kernels.few_rows.fits != nullptr && kernels.few_rows.fits(w); };

  struct Operand {
    Int8Weight weight;
    const Int8GemvKernel* gemv = nullptr;
    int64_t stride = 0;  // of prepared x
    size_t shares = 0;   // whose preparation it uses: its own or an earlier one's
    std::byte* x = nullptr;
  };
  std::array<Operand, 2 * kMaxCalls> operands;  // those of calls[i] at 2 i
  size_t prepared_bytes = 0;
  std::array<int64_t, kMaxCalls> row_bytes;
  for (size_t i = 0; i < calls.size(); ++i) {
    const Weight* const both[2] = {calls[i].first, calls[i].second};
    const bool few = rows <= kernels.few_rows.max_rows && takes_few(int8_view(*both[0])) && (both[1] == nullptr || takes_few(int8_view(*both[1])));
    for (size_t n = 0; n < 2 && both[n] != nullptr; ++n) {
      Operand& o = operands[2 * i + n];
      o.weight = int8_view(*both[n]);
      o.gemv = few ? &kernels.few_rows.kernel : &kernels.gemv;
      // What kernels do to x depends on the format alone.
      for (o.shares = 0; o.shares < 2 * i + n; ++o.shares) {
        const Operand& other = operands[o.shares];
        if (other.gemv == o.gemv && same_format(other.weight, o.weight)) break;
      }
      o.stride = static_cast<int64_t>(align_up(o.gemv->prepared_bytes(o.weight)));
      if (o.shares == 2 * i + n) prepared_bytes += static_cast<size_t>(rows * o.stride);
    }
    row_bytes[i] = operands[2 * i].weight.data_stride;
  }

  constexpr int64_t kSmallestGroup = 16;
  std::byte* room = scratch<Scratch::kPreparedX>(prepared_bytes + static_cast<size_t>(int8_padded(k)) +
                                                 sizeof(float) * static_cast<size_t>(int8_padded(k) / kSmallestGroup));
  int8_t* q = reinterpret_cast<int8_t*>(room + prepared_bytes);
  float* scales = reinterpret_cast<float*>(q + int8_padded(k));
  const auto quantize = x.dtype == DType::kF32 ? kernels.quantize_f32 : kernels.quantize_bf16;
  for (size_t i = 0; i < 2 * calls.size(); ++i) {
    Operand& o = operands[i];
    if (o.gemv == nullptr) continue;
    if (o.shares < i) {
      o.x = operands[o.shares].x;
      continue;
    }
    o.x = room;
    for (int64_t r = 0; r < rows; ++r, room += o.stride) {
      quantize(at(x, r, 0), k, o.weight.group(), o.weight.x_bits, q, scales);
      o.gemv->prepare(o.weight, q, scales, room);
    }
  }
  run_gemv(ctx, calls, row_bytes, [&](size_t call, int i, int64_t col, int64_t n, float* c, int64_t ldc) {
    const Operand& o = operands[2 * call + static_cast<size_t>(i)];
    o.gemv->run(o.x, o.stride, rows, o.weight.rows_from(col), n, c, ldc);
  });
}

void run_int8(const Context& ctx, LinearPath path, const Call& call) {
  const Int8Kernels& kernels = *ctx.table->int8;
  const int64_t rows = call.x.rows, k = call.first->in;
  // Where the bits are the same the faster of the two is taken.
  if (path == LinearPath::kGemv || rows <= std::min(kMaxFewRows, kernels.gemv.rows_as_gemm)) return run_int8_gemv(ctx, {&call, 1});

  const Int8Weight first = int8_view(*call.first);
  const Int8Weight second = call.second == nullptr ? Int8Weight{} : int8_view(*call.second);
  const bool shared = call.second == nullptr || same_x(first, second);
  const size_t first_bytes = quantized_rows_bytes(rows, k, first.group());
  const size_t second_bytes = shared ? 0 : quantized_rows_bytes(rows, k, second.group());
  std::byte* room = scratch<Scratch::kPreparedX>(first_bytes + second_bytes);
  const bool seven = takes_seven(kernels, first) && (call.second == nullptr || takes_seven(kernels, second));
  const QuantizedRows x = quantized_rows(ctx, kernels, call.x, first, seven, room);
  const QuantizedRows x2 = shared ? x : quantized_rows(ctx, kernels, call.x, second, seven, room + first_bytes);
  run_gemm(ctx, Int8Gemm(seven ? kernels.gemm_seven.kernel : kernels.gemm, {first, x}, {second, x2}), call, kInt8Pad);
}

}  // namespace qvl::kernels
