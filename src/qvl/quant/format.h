// How a matrix is stored: the one definition of the bits (spec 10; operators MatMulNBits and
// GatherBlockQuantized of ONNX Runtime). All integer formats keep a matrix as [rows, columns] = [N, K], rows
// contiguous, blocks along K.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "qvl/base/dtype.h"

namespace qvl::quant {

enum class Kind {
  kFloat,  // F32, BF16 or F16, row-major [N, K]
  // Blocks of `block` along K (the last one padded): B uint8 [N, ceil(K/block), block*bits/8]; with 4 bits
  // even k sits in the low nibble. w = (q - zero_point) * scale; zero_point is 8 (4 bits) or 128 (8 bits)
  // unless stored: then uint8 [N, ceil(blocks*bits/8)], low nibble first. scales [N, blocks], or int8 [N, 1 + blocks]:
  // an exponent e, then for each block a code c from -127 to 127, scale = c * 2^e. A scale may be negative.
  kBlock,
  // uint8 [N, K], one float32 scale a row: w = (q - 128) * scale, 1 <= q <= 255. Unsigned, because ONNX Runtime's
  // products of uint8 with int8 saturate on processors without VNNI (docs/onnx.md).
  kRow8,
};

struct Format {
  Kind kind = Kind::kFloat;
  DType float_type = DType::kF32;  // kFloat only
  int bits = 0;                    // 4 or 8; 0 for kFloat
  int64_t block = 0;               // power of two, 16 to 256; kBlock only
  bool zero_points = false;        // kBlock only
  // F32, BF16, F16 or I8 (codes and an exponent a row); the narrow ones for kBlock only. MatMulNBits with float32
  // activations wants float32 scales, so a graph makes them (constants: folded at load) where they are narrower: 4.5 or
  // 4.25 instead of 5 bits a weight at block 32.
  DType scale_type = DType::kF32;

  static Format floating(DType type) { return {.kind = Kind::kFloat, .float_type = type}; }
  static Format blocks(int bits, int64_t block, bool zero_points = false, DType scale_type = DType::kF32) {
    return {.kind = Kind::kBlock,
            .bits = bits,
            .block = block,
            .zero_points = zero_points,
            .scale_type = scale_type};
  }
  static Format row8() { return {.kind = Kind::kRow8, .bits = 8}; }
  bool operator==(const Format&) const = default;

  // "f32", "bf16", "int4 b32", "int4 b128 zp", "int8 b32 bf16-scales", "int4 b32 i8-scales", "int8 row"; parse_format
  // reads it back.
  std::string name() const;
  // Throws kInvalidArgument for a combination that does not exist.
  void validate() const;

  // All sizes below: rows, columns >= 0 (kInvalidArgument), results up to 2^62 (kLimit).
  int64_t block_count(int64_t columns) const;                 // ceil(K / block); 1 for kRow8, 0 for kFloat
  int64_t scale_count(int64_t columns) const;                 // elements of scale_type a row: one a block, with I8 one more
  uint64_t data_bytes(int64_t rows, int64_t columns) const;   // B, or the floats
  uint64_t scale_bytes(int64_t rows, int64_t columns) const;  // 0 for kFloat
  uint64_t zero_point_bytes(int64_t rows, int64_t columns) const;
  // Everything stored, divided by rows * columns (0 for an empty matrix).
  double bits_per_weight(int64_t rows, int64_t columns) const;
};

// Of I8 scales: the exponent of a row whose scales are not above `largest` in magnitude, the least (from -126 on) by which
// it is a code of up to 127. `largest` is finite and not negative; 0 has exponent 0.
int scale_exponent(float largest);

// Inverse of Format::name(); words in that order, separated by one space. Throws kInvalidArgument.
Format parse_format(std::string_view name);

}  // namespace qvl::quant
