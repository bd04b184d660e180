// Argument checks shared by the operators of this room: one clear error before any work starts.
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include "qvl/base/error.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {

// Throws kUnsupported unless the type is one that activations may have.
inline void check_activation(std::string_view where, std::string_view what, DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    fail(ErrorCode::kUnsupported, where, std::string(what) + " type", "F32 or BF16", dtype_name(dtype));
  }
}

// Throws kMismatch unless got == expected.
inline void check_size(std::string_view where, std::string_view what, int64_t expected, int64_t got) {
  if (expected != got) {
    fail(ErrorCode::kMismatch, where, what, std::to_string(expected), std::to_string(got));
  }
}

inline void check_dtype(std::string_view where, std::string_view what, DType expected, DType got) {
  if (expected != got) {
    fail(ErrorCode::kMismatch, where, std::string(what) + " type", dtype_name(expected), dtype_name(got));
  }
}

// A matrix of activations with rows >= 0, cols >= 1, stride >= cols and storage if it has rows.
inline void check_matrix(std::string_view where, std::string_view what, const ConstMatrix& m) {
  const std::string name(what);
  check_activation(where, what, m.dtype);
  if (m.rows < 0 || m.cols < 1) {
    fail(ErrorCode::kMismatch, where, name + " shape", "rows >= 0 and cols >= 1",
         std::to_string(m.rows) + " x " + std::to_string(m.cols));
  }
  if (m.stride < m.cols) {
    fail(ErrorCode::kMismatch, where, name + " row stride", "at least " + std::to_string(m.cols),
         std::to_string(m.stride));
  }
  if (m.data == nullptr && m.rows > 0)
    fail(ErrorCode::kInvalidArgument, where, name + ": expected data, got null");
}

// Same type and shape.
inline void check_like(std::string_view where, std::string_view what, const ConstMatrix& expected,
                       const ConstMatrix& got) {
  check_matrix(where, what, got);
  check_dtype(where, what, expected.dtype, got.dtype);
  check_size(where, std::string(what) + " rows", expected.rows, got.rows);
  check_size(where, std::string(what) + " columns", expected.cols, got.cols);
}

inline void check_pointer(std::string_view where, std::string_view what, const void* p) {
  if (p == nullptr) fail(ErrorCode::kInvalidArgument, where, std::string(what) + ": expected data, got null");
}

// Throws kUnsupported unless head_dim is a positive multiple of `multiple`.
inline void check_head_dim(std::string_view where, int64_t head_dim, int64_t multiple) {
  if (head_dim < multiple || head_dim % multiple != 0) {
    fail(ErrorCode::kUnsupported, where, "head_dim", "a positive multiple of " + std::to_string(multiple),
         std::to_string(head_dim));
  }
}

// The score scale of attention: throws kInvalidArgument unless finite and positive.
inline void check_scale(std::string_view where, float scale) {
  if (!(scale > 0) || !std::isfinite(scale)) {
    fail(ErrorCode::kInvalidArgument, where, "scale", "a finite positive number", std::to_string(scale));
  }
}

// The address of element `index` of an array of `dtype`.
inline const std::byte* element(const void* data, DType dtype, int64_t index) {
  return static_cast<const std::byte*>(data) + index * static_cast<int64_t>(dtype_size_bytes(dtype));
}
inline std::byte* element(void* data, DType dtype, int64_t index) {
  return static_cast<std::byte*>(data) + index * static_cast<int64_t>(dtype_size_bytes(dtype));
}

}  // namespace qvl::kernels
