// The inner loop of the resize, one version for each instruction set. Spec 3.3.
#pragma once

#include <cstdint>

#include "qvl/image/resize.h"

namespace qvl::image {

// dst[x] = clamp((2^(bits-1) + sum over j < count of weight[j] * src[j * src_stride_bytes + x]) >> bits, 0,
// 255) for 0 <= x < length. count >= 1; weight has one more (zero) value if count is odd; dst does not
// overlap src. Reads and writes nothing outside the rows.
using WeightedRowsKernel = void (*)(const uint8_t* src, int64_t src_stride_bytes, int32_t count,
                                    const int16_t* weight, int precision_bits, uint8_t* dst, int64_t length);

// Throws kUnsupported if this processor cannot run it.
WeightedRowsKernel weighted_rows_kernel(ResizeIsa isa);

// dst[c * 64 + r] = src_rows[r][c] for 0 <= c < columns, 0 <= r < rows <= 64; the rest of each 64 bytes is
// undefined.
void transpose_to_columns(const uint8_t* src, int64_t src_stride_bytes, int64_t rows, int64_t columns,
                          uint8_t* dst);
// dst_rows[r][c] = src[c * 64 + r].
void transpose_to_rows(const uint8_t* src, int64_t rows, int64_t columns, uint8_t* dst,
                       int64_t dst_stride_bytes);

}  // namespace qvl::image
