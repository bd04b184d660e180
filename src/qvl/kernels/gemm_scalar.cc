// Plain C++ linear kernels: the oracle that every other table is tested against, and what runs on processors
// without a table of their own. Each output is summed over k in ascending order with separately rounded
// products. Activations are evaluated in double and rounded once.
#include <cmath>
#include <cstring>

#include "qvl/base/dtype.h"
#include "qvl/kernels/linear_kernels.h"
#include "qvl/kernels/widen.h"

namespace qvl::kernels {
namespace {

constexpr int kTileRows = 4;
constexpr int kPanelCols = 8;

size_t panel_bytes(int64_t k) {
  return sizeof(float) * kPanelCols * static_cast<size_t>(k);
}

template <typename W>
void pack(const void* w, int64_t ldw, int64_t cols, int64_t k, void* packed) {
  const W* src = static_cast<const W*>(w);
  float* dst = static_cast<float*>(packed);
  for (int64_t n = 0; n < kPanelCols; ++n) {
    for (int64_t i = 0; i < k; ++i) dst[i * kPanelCols + n] = n < cols ? widen(src[n * ldw + i]) : 0.0f;
  }
}

template <typename X>
void gemm_tile(const TileArgs& t) {
  for (int r = 0; r < t.rows; ++r) {
    const X* x = static_cast<const X*>(t.a) + r * t.a_stride;
    const float* w = static_cast<const float*>(t.packed);
    float sum[kPanelCols] = {};
    if (t.accumulate) std::memcpy(sum, t.c + r * kPanelCols, sizeof(sum));
    for (int64_t i = 0; i < t.k; ++i, w += kPanelCols) {
      const float xi = widen(x[i]);
      for (int n = 0; n < kPanelCols; ++n) sum[n] += xi * w[n];
    }
    std::memcpy(t.c + r * kPanelCols, sum, sizeof(sum));
  }
}

template <typename X, typename W>
void gemv(const void* x, int64_t x_stride, int64_t m, const void* w, int64_t n, int64_t k, float* c,
          int64_t ldc) {
  for (int64_t j = 0; j < n; ++j) {
    const W* wj = static_cast<const W*>(w) + j * k;
    for (int64_t r = 0; r < m; ++r) {
      const X* xr = static_cast<const X*>(x) + r * x_stride;
      float sum = 0.0f;
      for (int64_t i = 0; i < k; ++i) sum += widen(xr[i]) * widen(wj[i]);
      c[r * ldc + j] = sum;
    }
  }
}

float activate(Activation activation, float v) {
  const double x = v;
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kGeluTanh:
      return static_cast<float>(0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))));
    case Activation::kGeluErf:
      return static_cast<float>(0.5 * x * std::erfc(-x * 0.7071067811865476));
  }
  return v;
}

float silu(float v) {
  return static_cast<float>(v / (1.0 + std::exp(-static_cast<double>(v))));
}

void finish_f32(const FinishArgs& f) {
  for (int64_t r = 0; r < f.rows; ++r) {
    float* y = static_cast<float*>(f.y) + r * f.y_stride;
    const float* residual =
        f.residual == nullptr ? nullptr : static_cast<const float*>(f.residual) + r * f.residual_stride;
    for (int64_t j = 0; j < f.cols; ++j) {
      float v = f.c[r * f.ldc + j];
      if (f.bias != nullptr) v += f.bias[j];
      v = activate(f.activation, v);
      if (residual != nullptr) v += residual[j];
      y[j] = v;
    }
  }
}

void finish_bf16(const FinishArgs& f) {
  for (int64_t r = 0; r < f.rows; ++r) {
    BFloat16* y = static_cast<BFloat16*>(f.y) + r * f.y_stride;
    const BFloat16* residual =
        f.residual == nullptr ? nullptr : static_cast<const BFloat16*>(f.residual) + r * f.residual_stride;
    for (int64_t j = 0; j < f.cols; ++j) {
      float v = f.c[r * f.ldc + j];
      if (f.bias != nullptr) v += f.bias[j];
      v = round_to_bf16(v);
      if (f.activation != Activation::kNone) v = round_to_bf16(activate(f.activation, v));
      if (residual != nullptr) v = round_to_bf16(v + to_float(residual[j]));
      y[j] = to_bfloat16(v);
    }
  }
}

void finish_swiglu_f32(const FinishArgs& f) {
  for (int64_t r = 0; r < f.rows; ++r) {
    float* y = static_cast<float*>(f.y) + r * f.y_stride;
    for (int64_t j = 0; j < f.cols; ++j) y[j] = silu(f.c[r * f.ldc + j]) * f.c2[r * f.ldc + j];
  }
}

void finish_swiglu_bf16(const FinishArgs& f) {
  for (int64_t r = 0; r < f.rows; ++r) {
    BFloat16* y = static_cast<BFloat16*>(f.y) + r * f.y_stride;
    for (int64_t j = 0; j < f.cols; ++j) {
      const float gate = round_to_bf16(f.c[r * f.ldc + j]);
      const float up = round_to_bf16(f.c2[r * f.ldc + j]);
      y[j] = to_bfloat16(round_to_bf16(silu(gate)) * up);
    }
  }
}

void add_f32(void* dst, const void* src, int64_t n) {
  float* d = static_cast<float*>(dst);
  const float* s = static_cast<const float*>(src);
  for (int64_t i = 0; i < n; ++i) d[i] += s[i];
}

void add_bf16(void* dst, const void* src, int64_t n) {
  BFloat16* d = static_cast<BFloat16*>(dst);
  const BFloat16* s = static_cast<const BFloat16*>(src);
  for (int64_t i = 0; i < n; ++i) d[i] = to_bfloat16(to_float(d[i]) + to_float(s[i]));
}

template <typename X, typename W>
GemmKernel gemm() {
  return {kTileRows, kPanelCols, panel_bytes, pack<W>, nullptr, gemm_tile<X>};
}

}  // namespace

const LinearKernels& linear_kernels_scalar() {
  static const LinearKernels kernels = [] {
    LinearKernels k;
    k.gemm_f32_f32 = gemm<float, float>();
    k.gemm_f32_bf16 = gemm<float, BFloat16>();
    k.gemm_f32_f16 = gemm<float, Float16>();
    k.gemm_bf16_bf16 = gemm<BFloat16, BFloat16>();
    k.gemv_f32_f32.run = gemv<float, float>;
    k.gemv_f32_bf16.run = gemv<float, BFloat16>;
    k.gemv_f32_f16.run = gemv<float, Float16>;
    k.gemv_bf16_bf16.run = gemv<BFloat16, BFloat16>;
    k.finish_f32 = finish_f32;
    k.finish_bf16 = finish_bf16;
    k.finish_swiglu_f32 = finish_swiglu_f32;
    k.finish_swiglu_bf16 = finish_swiglu_bf16;
    k.add_f32 = add_f32;
    k.add_bf16 = add_bf16;
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels
