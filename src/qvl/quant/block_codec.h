// Reads and writes the bits of the integer formats of format.h, one value at a time: the reference that
// quantisers, kernels and tests are held against. Not for speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "qvl/quant/format.h"

namespace qvl::quant {

// A matrix, or some whole rows of one, in an integer format. Not owned; sizes as Format::data_bytes(rows,
// columns) and so on give them; zero_points is empty where the format stores none.
struct QuantizedSpan {
  std::span<std::byte> data;
  std::span<std::byte> scales;  // as Format says, not necessarily aligned
  std::span<std::byte> zero_points;
};
struct ConstQuantizedSpan {
  std::span<const std::byte> data;
  std::span<const std::byte> scales;
  std::span<const std::byte> zero_points;

  ConstQuantizedSpan() = default;
  ConstQuantizedSpan(std::span<const std::byte> d, std::span<const std::byte> s, std::span<const std::byte> z)
      : data(d), scales(s), zero_points(z) {}
  ConstQuantizedSpan(const QuantizedSpan& s)
      : data(s.data), scales(s.scales), zero_points(s.zero_points) {}  // NOLINT
};

// Owns what a QuantizedSpan points at.
class QuantizedMatrix {
 public:
  // All zero bytes. Throws kInvalidArgument, kLimit.
  QuantizedMatrix(const Format& format, int64_t rows, int64_t columns);

  const Format& format() const { return format_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  QuantizedSpan span() { return {data_, scales_, zero_points_}; }
  ConstQuantizedSpan span() const { return {data_, scales_, zero_points_}; }

 private:
  Format format_;
  int64_t rows_, columns_;
  std::vector<std::byte> data_, scales_, zero_points_;
};

// The part of `all` that holds rows [first, first + count) of a matrix of `rows` rows. Sizes are checked
// (kMismatch), the range too (kInvalidArgument).
QuantizedSpan row_span(const Format& format, int64_t rows, int64_t columns, const QuantizedSpan& all,
                       int64_t first, int64_t count);

// One matrix taken apart: q is the stored value, [rows, columns].
struct Codes {
  std::vector<int16_t> q;            // [rows, columns]
  std::vector<float> scales;         // [rows, block_count]
  std::vector<int16_t> zero_points;  // [rows, block_count]; empty: the format's constant
};

// The constant zero point: 8 or 128.
int default_zero_point(const Format& format);

// Writes codes into `out`, every byte of it: padding of the last block becomes the block's zero point (it
// dequantises to zero), a spare nibble behind an odd number of zero points 0. Throws kMismatch for sizes that
// do not fit and kInvalidArgument for values out of range or scales that the scale type cannot hold exactly.
void pack(const Format& format, int64_t rows, int64_t columns, const Codes& codes, const QuantizedSpan& out);

// Inverse of pack. Throws kMismatch.
Codes unpack(const Format& format, int64_t rows, int64_t columns, const ConstQuantizedSpan& in);

// The scales alone: out [rows, block_count]. Throws kMismatch.
void read_scales(const Format& format, int64_t rows, int64_t columns, std::span<const std::byte> scales, std::span<float> out);

// out [rows, columns] = (q - zero_point) * scale, computed in float32 as the operators do. Throws kMismatch.
void dequantize(const Format& format, int64_t rows, int64_t columns, const ConstQuantizedSpan& in,
                std::span<float> out);

}  // namespace qvl::quant
