// The activations of one call in one allocation, planned before it is made: matrices whose uses do not overlap in time
// share memory. Place all, allocate, then use.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/base/tensor.h"
#include "qvl/kernels/ops.h"

namespace qvl::engine::native {

class Arena {
 public:
  // `activation`: the type of all elements.
  explicit Arena(DType activation) : activation_(activation) {}

  struct Slot {
    size_t offset = 0;  // bytes, a multiple of 64
    int64_t rows = 0, cols = 0;
  };
  // A matrix [rows, cols] behind what was placed before.
  Slot place(int64_t rows, int64_t cols) {
    const Slot slot{end_, rows, cols};
    end_ += (static_cast<size_t>(rows * cols) * dtype_size_bytes(activation_) + 63) / 64 * 64;
    size_ = std::max(size_, end_);
    return slot;
  }
  // What is placed from here on shares memory with `slot` and all that was placed after it.
  void reuse_from(const Slot& slot) { end_ = slot.offset; }

  // Throws kLimit when the memory cannot be had. Contents are uninitialised.
  void allocate() { memory_ = AlignedBuffer(size_); }
  kernels::Matrix matrix(const Slot& slot) {
    return {memory_.data() + slot.offset, activation_, slot.rows, slot.cols, slot.cols};
  }
  size_t size_bytes() const { return size_; }

 private:
  DType activation_;
  size_t end_ = 0;
  size_t size_ = 0;
  AlignedBuffer memory_;
};

}  // namespace qvl::engine::native
