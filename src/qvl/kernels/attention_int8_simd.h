// Heads of the int8 KV cache over a vector type V and an activation type T: codes -127..127 with one float scale a head.
// Spec section 6.4. Include after the target pragma and V's header; everything is a template, so that each instruction set
// gets functions of its own.
//
// Keys have channels that are many times larger than the others (the norm's weights make them so), and one scale for all
// would leave the others few codes. A key is therefore stored as the codes of its Hadamard transform H k, in which a large
// channel is spread over all of them; a score is (H q) . (H k) / n. H is unnormalised, and n, a power of two, is part of
// the scale, so that going back is exact but for the product with the scale. Measurements are in MODEL.md.
#pragma once

#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_kernels.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels::simd {

// In place: the Hadamard transform of x[hd] in parts as wide as the largest power of two that divides hd, neighbours
// first: the order of the scalar kernels, so that all give the same bits.
template <typename V>
QVL_INLINE void hadamard(float* x, int64_t hd) {
  constexpr int64_t kW = V::kWidth;
  const int64_t n = hd & -hd;
  for (int64_t half = 1; half < n; half *= 2) {
    for (int64_t i = 0; i < hd; i += 2 * half) {
      float* low = x + i;
      float* high = low + half;
      if (half >= kW) {
        for (int64_t j = 0; j < half; j += kW) {
          const typename V::F a = V::load(low + j), b = V::load(high + j);
          V::store(low + j, V::add(a, b));
          V::store(high + j, V::sub(a, b));
        }
        continue;
      }
      for (int64_t j = 0; j < half; ++j) {
        const float a = low[j], b = high[j];
        low[j] = a + b;
        high[j] = a - b;
      }
    }
  }
}

// src as floats.
template <typename V, typename E>
QVL_INLINE void widen_head(const E* src, int64_t hd, float* dst) {
  int64_t d = 0;
  for (; d + V::kWidth <= hd; d += V::kWidth) V::store(dst + d, V::load(src + d));
  if (d < hd) V::store_n(dst + d, V::load_n(src + d, hd - d), hd - d);
}

template <typename V, typename T>
float quantize_head(const void* src, int64_t hd, bool key, int8_t* codes) {
  using F = typename V::F;
  constexpr int64_t kW = V::kWidth;
  alignas(64) float x[kMaxInt8HeadDim];
  widen_head<V>(static_cast<const T*>(src), hd, x);
  if (key) hadamard<V>(x, hd);
  F top = V::zero(), broken = V::zero();  // infinities and NaN make a NaN of `broken`, whatever max() does with them
  int64_t d = 0;
  const auto see = [&](F v) {
    top = V::max(V::max(v, V::sub(V::zero(), v)), top);
    broken = V::fma(v, V::zero(), broken);
  };
  for (; d + kW <= hd; d += kW) see(V::load(x + d));
  if (d < hd) see(V::load_n(x + d, hd - d));
  const float largest = V::reduce_max(top), nothing = V::reduce_add(broken);
  const bool some = largest >= kSmallestCodedRow;
  const F inverse = V::set1(some ? 127.0f / largest : 0.0f);
  for (d = 0; d + kW <= hd; d += kW) V::store(codes + d, V::mul(V::load(x + d), inverse));
  if (d < hd) V::store_n(codes + d, V::mul(V::load_n(x + d, hd - d), inverse), hd - d);
  const float scale = some ? largest / 127.0f : 0.0f;
  return (key ? scale / static_cast<float>(hd & -hd) : scale) + nothing;
}

template <typename V, typename T>
void dequantize_head(const int8_t* codes, float scale, int64_t hd, bool key, void* dst) {
  constexpr int64_t kW = V::kWidth;
  T* y = static_cast<T*>(dst);
  alignas(64) float x[kMaxInt8HeadDim];
  widen_head<V>(codes, hd, x);
  if (key) hadamard<V>(x, hd);  // sums of small integers: exact
  const typename V::F factor = V::set1(scale);
  int64_t d = 0;
  for (; d + kW <= hd; d += kW) V::store(y + d, V::mul(V::load(x + d), factor));
  if (d < hd) V::store_n(y + d, V::mul(V::load_n(x + d, hd - d), factor), hd - d);
}

}  // namespace qvl::kernels::simd
