// Parts of an integer weight as floats, for products that need them so (private to this room; spec 10).
#pragma once

#include <cstddef>
#include <cstdint>

#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {

// The view of all rows of a weight in an integer format.
Int8Weight int8_view(const Weight& w);

// out [rows, columns] of `type`, F32 or BF16 = (q - zero point) * scale of rows [row, row + rows) and columns
// [column, column + columns), rounded once.
void dequantize_block(const Weight& w, int64_t row, int64_t rows, int64_t column, int64_t columns, DType type,
                      std::byte* out);

}  // namespace qvl::kernels
