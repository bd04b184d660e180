// oneDNN's matmul for comparison: y[m, n] = x[m, k] . w[n, k]^T, the weight in oneDNN's own packed layout
// (packed ahead, outside of the measured time; qvl packs inside).
#pragma once

#include <cstdint>
#include <memory>

#include "qvl/base/dtype.h"

namespace qvl::bench {

// Of all that follows on this thread; from outside, OMP_NUM_THREADS.
void set_onednn_threads(int threads);

class OnednnMatmul {
 public:
  // F32 or BF16, one type for x, w and y. Throws kUnsupported for what oneDNN has no code for on this processor (BF16
  // without AVX-512).
  OnednnMatmul(DType dtype, int64_t m, int64_t n, int64_t k, const void* w);
  // uint8 x, int8 w, int32 y: the integer product alone, without rounding x and scaling y.
  OnednnMatmul(int64_t m, int64_t n, int64_t k, const int8_t* w);
  ~OnednnMatmul();
  void run(const void* x, void* y);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qvl::bench
