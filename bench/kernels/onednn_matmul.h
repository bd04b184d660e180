// oneDNN's matmul for comparison: y[m, n] = x[m, k] . w[n, k]^T, the weight in oneDNN's own packed layout
// (packed ahead, outside of the measured time; qvl packs inside).
#pragma once

#include <cstdint>
#include <memory>

#include "qvl/base/dtype.h"

namespace qvl::bench {

class OnednnMatmul {
 public:
  OnednnMatmul(DType dtype, int64_t m, int64_t n, int64_t k, const void* w);
  ~OnednnMatmul();
  void run(const void* x, void* y);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qvl::bench
