// Parts of matrices, and matrices over tensors. None owns what it points to.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/ops.h"

namespace qvl::engine::native {

// Rows [first, first + rows).
inline kernels::Matrix rows_of(const kernels::Matrix& m, int64_t first, int64_t rows) {
  return {static_cast<std::byte*>(m.data) + static_cast<size_t>(first * m.stride) * dtype_size_bytes(m.dtype), m.dtype,
          rows, m.cols, m.stride};
}
inline kernels::ConstMatrix rows_of(const kernels::ConstMatrix& m, int64_t first, int64_t rows) {
  return {static_cast<const std::byte*>(m.data) + static_cast<size_t>(first * m.stride) * dtype_size_bytes(m.dtype),
          m.dtype, rows, m.cols, m.stride};
}
// Columns [first, first + cols).
inline kernels::Matrix columns_of(const kernels::Matrix& m, int64_t first, int64_t cols) {
  return {static_cast<std::byte*>(m.data) + static_cast<size_t>(first) * dtype_size_bytes(m.dtype), m.dtype, m.rows, cols,
          m.stride};
}

// All of a tensor [rows, cols].
inline kernels::Matrix view(Tensor& t) {
  return {t.data(), t.dtype(), t.dim(0), t.dim(1), t.dim(1)};
}
inline kernels::ConstMatrix view(const Tensor& t) {
  return {t.data(), t.dtype(), t.dim(0), t.dim(1), t.dim(1)};
}
// A copy of a matrix without gaps, as `dtype`.
inline Tensor copy_of(const kernels::ConstMatrix& m, DType dtype) {
  Tensor t(dtype, {m.rows, m.cols});
  convert_elements(m.data, m.dtype, t.data(), dtype, m.rows * m.cols);
  return t;
}

}  // namespace qvl::engine::native
