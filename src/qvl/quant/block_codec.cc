#include "qvl/quant/block_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "qvl/base/error.h"

namespace qvl::quant {
namespace {

constexpr std::string_view kWhere = "block codec";

void require_integer(const Format& format) {
  format.validate();
  if (format.kind == Kind::kFloat) {
    fail(ErrorCode::kInvalidArgument, kWhere, "format", "an integer format", format.name());
  }
}

void require_size(std::string_view what, uint64_t expected, uint64_t got, std::string_view unit = " bytes") {
  if (expected == got) return;
  fail(ErrorCode::kMismatch, kWhere, what, std::to_string(expected) + std::string(unit),
       std::to_string(got) + std::string(unit));
}

void require_sizes(const Format& format, int64_t rows, int64_t columns, const ConstQuantizedSpan& span) {
  require_integer(format);
  require_size("data", format.data_bytes(rows, columns), span.data.size());
  require_size("scales", format.scale_bytes(rows, columns), span.scales.size());
  require_size("zero points", format.zero_point_bytes(rows, columns), span.zero_points.size());
}

// Value `index` of a row of packed values.
int read_packed(const std::byte* row, int bits, int64_t index) {
  if (bits == 8) return std::to_integer<int>(row[index]);
  return (std::to_integer<int>(row[index / 2]) >> (index % 2 ? 4 : 0)) & 15;
}

void write_packed(std::byte* row, int bits, int64_t index, int value) {
  if (bits == 8) {
    row[index] = static_cast<std::byte>(value);
  } else if (index % 2 == 0) {
    row[index / 2] = static_cast<std::byte>(value);  // even values come first and clear the nibble above them
  } else {
    row[index / 2] |= static_cast<std::byte>(value << 4);
  }
}

int checked(std::string_view what, int value, int low, int high) {
  if (value < low || value > high) {
    fail(ErrorCode::kInvalidArgument, kWhere, what, std::to_string(low) + " to " + std::to_string(high),
         std::to_string(value));
  }
  return value;
}

// The scales of one row; they need not be aligned.
void read_row(const Format& format, int64_t blocks, const std::byte* from, float* out) {
  const size_t size = dtype_size_bytes(format.scale_type);
  if (format.scale_type == DType::kI8) {
    const float factor = std::ldexp(1.0f, static_cast<int8_t>(from[0]));
    for (int64_t b = 0; b < blocks; ++b) out[b] = static_cast<float>(static_cast<int8_t>(from[1 + b])) * factor;
    return;
  }
  const std::vector<std::byte> aligned(from, from + static_cast<size_t>(blocks) * size);
  convert_elements(aligned.data(), format.scale_type, out, DType::kF32, blocks);
}

void write_row(const Format& format, int64_t blocks, const float* scales, std::byte* to) {
  const size_t size = dtype_size_bytes(format.scale_type);
  if (format.scale_type == DType::kI8) {
    float largest = 0;
    for (int64_t b = 0; b < blocks; ++b) largest = std::max(largest, std::isfinite(scales[b]) ? std::fabs(scales[b]) : 0.0f);
    const int exponent = scale_exponent(largest);
    to[0] = static_cast<std::byte>(exponent);
    for (int64_t b = 0; b < blocks; ++b) {
      const float code = std::isfinite(scales[b]) ? std::nearbyint(std::ldexp(scales[b], -exponent)) : 0.0f;
      to[1 + b] = static_cast<std::byte>(static_cast<int8_t>(code));
    }
    return;
  }
  std::vector<std::byte> aligned(static_cast<size_t>(blocks) * size);
  convert_elements(scales, DType::kF32, aligned.data(), format.scale_type, blocks);
  std::copy(aligned.begin(), aligned.end(), to);
}

// Columns that share a scale: with kRow8 the whole row.
int64_t block_columns(const Format& format, int64_t columns) {
  return format.kind == Kind::kRow8 ? columns : format.block;
}

size_t row_bytes(uint64_t total, int64_t rows) {
  return rows == 0 ? 0 : total / static_cast<uint64_t>(rows);
}

}  // namespace

QuantizedMatrix::QuantizedMatrix(const Format& format, int64_t rows, int64_t columns)
    : format_(format), rows_(rows), columns_(columns) {
  require_integer(format);
  data_.resize(format.data_bytes(rows, columns));
  scales_.resize(format.scale_bytes(rows, columns));
  zero_points_.resize(format.zero_point_bytes(rows, columns));
}

QuantizedSpan row_span(const Format& format, int64_t rows, int64_t columns, const QuantizedSpan& all,
                       int64_t first, int64_t count) {
  require_sizes(format, rows, columns, all);
  if (first < 0 || count < 0 || first > rows || count > rows - first) {
    fail(ErrorCode::kInvalidArgument, kWhere, "row range", "inside " + std::to_string(rows) + " rows",
         std::to_string(first) + " + " + std::to_string(count));
  }
  const auto part = [&](std::span<std::byte> span) {
    const size_t stride = row_bytes(span.size(), rows);
    return span.subspan(static_cast<size_t>(first) * stride, static_cast<size_t>(count) * stride);
  };
  return {part(all.data), part(all.scales), part(all.zero_points)};
}

int default_zero_point(const Format& format) {
  return format.bits == 4 ? 8 : 128;
}

void pack(const Format& format, int64_t rows, int64_t columns, const Codes& codes, const QuantizedSpan& out) {
  require_sizes(format, rows, columns, out);
  const int64_t blocks = format.block_count(columns);
  const auto elements = static_cast<uint64_t>(element_count({rows, columns}));
  const auto block_elements = static_cast<uint64_t>(element_count({rows, blocks}));
  require_size("codes", elements, codes.q.size(), " values");
  require_size("scales", block_elements, codes.scales.size(), " values");
  require_size("zero points", format.zero_points ? block_elements : 0, codes.zero_points.size(), " values");

  const int64_t block = block_columns(format, columns);
  const int low = format.kind == Kind::kRow8 ? 1 : 0;
  const int high = (1 << format.bits) - 1;
  const size_t scale_stride = row_bytes(out.scales.size(), rows);
  std::vector<float> stored(static_cast<size_t>(blocks));
  for (int64_t r = 0; r < rows; ++r) {
    const float* scales = codes.scales.data() + r * blocks;
    std::byte* to = out.scales.data() + static_cast<size_t>(r) * scale_stride;
    write_row(format, blocks, scales, to);
    read_row(format, blocks, to, stored.data());
    for (size_t b = 0; b < stored.size(); ++b) {
      if (std::isfinite(scales[b]) && stored[b] == scales[b]) continue;
      fail(ErrorCode::kInvalidArgument, kWhere, "scale",
           "a finite value of " + std::string(dtype_name(format.scale_type)), std::to_string(scales[b]));
    }
  }
  const size_t data_stride = row_bytes(out.data.size(), rows);
  const size_t zero_stride = row_bytes(out.zero_points.size(), rows);
  for (int64_t r = 0; r < rows; ++r) {
    std::byte* data = out.data.data() + static_cast<size_t>(r) * data_stride;
    const int16_t* q = codes.q.data() + r * columns;
    for (int64_t b = 0; b < blocks; ++b) {
      const int zero =
          format.zero_points
              ? checked("zero point", codes.zero_points[static_cast<size_t>(r * blocks + b)], 0, high)
              : default_zero_point(format);
      if (format.zero_points) {
        write_packed(out.zero_points.data() + static_cast<size_t>(r) * zero_stride, format.bits, b, zero);
      }
      for (int64_t k = b * block; k < (b + 1) * block; ++k) {
        write_packed(data, format.bits, k, k < columns ? checked("code", q[k], low, high) : zero);
      }
    }
  }
}

void read_scales(const Format& format, int64_t rows, int64_t columns, std::span<const std::byte> scales, std::span<float> out) {
  require_integer(format);
  const int64_t blocks = format.block_count(columns);
  require_size("scales", format.scale_bytes(rows, columns), scales.size());
  require_size("room for scales", static_cast<uint64_t>(element_count({rows, blocks})), out.size(), " values");
  const size_t stride = row_bytes(scales.size(), rows);
  for (int64_t r = 0; r < rows; ++r) read_row(format, blocks, scales.data() + static_cast<size_t>(r) * stride, out.data() + r * blocks);
}

Codes unpack(const Format& format, int64_t rows, int64_t columns, const ConstQuantizedSpan& in) {
  require_sizes(format, rows, columns, in);
  const int64_t blocks = format.block_count(columns);
  Codes codes;
  codes.q.resize(static_cast<size_t>(element_count({rows, columns})));
  codes.scales.resize(static_cast<size_t>(element_count({rows, blocks})));
  if (format.zero_points) codes.zero_points.resize(codes.scales.size());
  read_scales(format, rows, columns, in.scales, codes.scales);
  const size_t data_stride = row_bytes(in.data.size(), rows);
  const size_t zero_stride = row_bytes(in.zero_points.size(), rows);
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* data = in.data.data() + static_cast<size_t>(r) * data_stride;
    int16_t* q = codes.q.data() + r * columns;
    for (int64_t k = 0; k < columns; ++k) {
      q[k] = static_cast<int16_t>(read_packed(data, format.bits, k));
    }
    if (!format.zero_points) continue;
    for (int64_t b = 0; b < blocks; ++b) {
      codes.zero_points[static_cast<size_t>(r * blocks + b)] = static_cast<int16_t>(
          read_packed(in.zero_points.data() + static_cast<size_t>(r) * zero_stride, format.bits, b));
    }
  }
  return codes;
}

void dequantize(const Format& format, int64_t rows, int64_t columns, const ConstQuantizedSpan& in,
                std::span<float> out) {
  const Codes codes = unpack(format, rows, columns, in);
  require_size("output", codes.q.size(), out.size(), " values");
  const int64_t blocks = format.block_count(columns);
  const int64_t block = block_columns(format, columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k) {
      const auto at = static_cast<size_t>(r * columns + k);
      const auto b = static_cast<size_t>(r * blocks + k / block);
      const int zero = format.zero_points ? codes.zero_points[b] : default_zero_point(format);
      out[at] = static_cast<float>(codes.q[at] - zero) * codes.scales[b];
    }
  }
}

}  // namespace qvl::quant
