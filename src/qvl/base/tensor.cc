#include "qvl/base/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "qvl/base/error.h"

namespace qvl {

AlignedBuffer::AlignedBuffer(size_t size_bytes) : size_bytes_(size_bytes) {
  if (size_bytes == 0) return;
  // Large ones in huge pages, where the system has them for the asking: a first touch of 114 MB of keys and values would
  // otherwise be 28,000 faults.
  constexpr size_t kCacheLine = 64, kHugePage = size_t{2} << 20;
  const bool large = size_bytes >= 4 * kHugePage;
  const size_t alignment = large ? kHugePage : kCacheLine;
  if (size_bytes > SIZE_MAX - alignment) fail(ErrorCode::kLimit, "memory", "allocation size overflows");
  const size_t rounded = (size_bytes + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, rounded)));
  if (!data_) fail(ErrorCode::kLimit, "memory", "cannot allocate " + std::to_string(size_bytes) + " bytes");
  if (large) ::madvise(data_.get(), size_bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // advice: may fail
}

void AlignedBuffer::Free::operator()(std::byte* p) const {
  std::free(p);
}

Tensor::Tensor(DType dtype, Shape shape)
    : dtype_(dtype),
      shape_(std::move(shape)),
      size_(element_count(shape_)),
      buffer_(static_cast<size_t>(size_) * dtype_size_bytes(dtype)) {}

Tensor Tensor::zeros(DType dtype, Shape shape) {
  Tensor t(dtype, std::move(shape));
  if (t.size_bytes()) std::memset(t.data(), 0, t.size_bytes());
  return t;
}

Tensor Tensor::copy() const {
  return to(dtype_);
}

Tensor Tensor::to(DType dtype) const {
  Tensor t(dtype, shape_);
  if (size_) convert_elements(data(), dtype_, t.data(), dtype, size_);
  return t;
}

void Tensor::reshape(Shape shape) {
  if (element_count(shape) != size_) {
    fail(ErrorCode::kMismatch, "tensor", "reshape", shape_string(shape_) + " kept in size",
         shape_string(shape));
  }
  shape_ = std::move(shape);
}

}  // namespace qvl
