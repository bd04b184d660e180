// ONNX Runtime's matrix products for comparison: a model of one linear layer, written and run as qvl's own ONNX
// packages are. y[m, n] = x[m, k] . w[n, k]^T in float32; packing the weight happens at load, outside of the measured
// time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "qvl/kernels/ops.h"

namespace qvl::bench {

class OnnxruntimeMatmul {
 public:
  // Float32 weights become MatMul; blocks MatMulNBits with accuracy level 4 (activations in int8); rows of 8 bits
  // DynamicQuantizeLinear and MatMulInteger. Throws kUnsupported without a library, kInvalidArgument for another
  // format.
  OnnxruntimeMatmul(const kernels::Weight& w, int threads);
  ~OnnxruntimeMatmul();

  // "ONNX Runtime 1.32.0"
  std::string name() const;
  void run(const float* x, int64_t m, float* y);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qvl::bench
