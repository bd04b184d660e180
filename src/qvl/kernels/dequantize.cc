#include "qvl/kernels/dequantize.h"

#include <algorithm>
#include <bit>

#include "qvl/kernels/int8_weight.h"

namespace qvl::kernels {

Int8Weight int8_view(const Weight& w) {
  Int8Weight view;
  view.data = static_cast<const std::byte*>(w.data);
  view.data_stride = static_cast<int64_t>(w.format.data_bytes(1, w.in));
  // Behind the exponent.
  view.scales = w.scales + (w.format.scale_type == DType::kI8 ? 1 : 0);
  view.scale_stride = static_cast<int64_t>(w.format.scale_bytes(1, w.in));
  view.zero_points = w.zero_points;
  view.zero_stride = static_cast<int64_t>(w.format.zero_point_bytes(1, w.in));
  view.scale_type = w.format.scale_type;
  view.bits = w.format.bits;
  // One scale a row is one block that holds the row.
  view.block = w.format.kind == quant::Kind::kRow8
                   ? std::max<int64_t>(kInt8Pad, std::bit_ceil(static_cast<uint64_t>(w.in)))
                   : w.format.block;
  view.k = w.in;
  view.x_bits = w.activation_bits;
  return view;
}

namespace {

void put(float value, float* out) {
  *out = value;
}
void put(float value, BFloat16* out) {
  *out = to_bfloat16(value);
}

template <typename T>
void unpack(const Int8Weight& w, int64_t row, int64_t rows, int64_t column, int64_t columns, T* out) {
  for (int64_t r = row; r < row + rows; ++r, out += columns) {
    const std::byte* p = w.data + r * w.data_stride;
    for (int64_t begin = column; begin < column + columns;) {
      const int64_t block = begin / w.block;
      const int64_t end = std::min(column + columns, (block + 1) * w.block);
      const float scale = int8_scale(w, r, block);
      T* to = out + (begin - column);
      const int zero = int8_zero_point(w, r, block);
      for (int64_t k = begin; k < end; ++k) put(static_cast<float>(int8_code(w, p, k) - zero) * scale, to++);
      begin = end;
    }
  }
}

}  // namespace

void dequantize_block(const Weight& w, int64_t row, int64_t rows, int64_t column, int64_t columns, DType type,
                      std::byte* out) {
  const Int8Weight view = int8_view(w);
  if (type == DType::kBF16) {
    unpack(view, row, rows, column, columns, reinterpret_cast<BFloat16*>(out));
  } else {
    unpack(view, row, rows, column, columns, reinterpret_cast<float*>(out));
  }
}

}  // namespace qvl::kernels
