// An owned, 64-byte aligned, row-major tensor, and a view of one. Activations and stage results travel in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "qvl/base/dtype.h"

namespace qvl {

// A buffer aligned to 64 bytes (cache line, AVX-512 register). Not initialised.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Throws kLimit when the memory cannot be had.
  explicit AlignedBuffer(size_t size_bytes);
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_bytes_ = 0;
};

// Move-only; copy() when a second one is wanted.
class Tensor {
 public:
  Tensor() = default;
  // Uninitialised contents.
  Tensor(DType dtype, Shape shape);

  static Tensor zeros(DType dtype, Shape shape);

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(size_t axis) const { return shape_.at(axis); }
  int64_t size() const { return size_; }
  size_t size_bytes() const { return buffer_.size_bytes(); }
  bool empty() const { return size_ == 0; }

  void* data() { return buffer_.data(); }
  const void* data() const { return buffer_.data(); }

  // T must be the type of the elements (checked by size only).
  template <typename T>
  std::span<T> as() {
    return {reinterpret_cast<T*>(buffer_.data()), static_cast<size_t>(size_)};
  }
  template <typename T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(buffer_.data()), static_cast<size_t>(size_)};
  }

  Tensor copy() const;
  // The same values in another floating-point type (copy() if it is the same).
  Tensor to(DType dtype) const;
  // Same elements under another shape with as many of them; throws kMismatch otherwise.
  void reshape(Shape shape);

 private:
  DType dtype_ = DType::kF32;
  Shape shape_;
  int64_t size_ = 0;
  AlignedBuffer buffer_;
};

}  // namespace qvl
