// Norms and rotary embedding of single rows over a vector type V (attention_vec_*.h) and an element type T
// (float or BFloat16). Spec sections 5.3, 5.4, 6.3, 6.4 and B. Include after the target pragma and V's
// header; everything is a template, so that each instruction set gets functions of its own.
#pragma once

#include <cstdint>
#include <type_traits>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_int8_simd.h"
#include "qvl/kernels/attention_kernels.h"

namespace qvl::kernels::simd {

// v as the activation type stores it.
template <typename V, typename T>
QVL_INLINE typename V::F round_to(typename V::F v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    return V::round_bf16(v);
  }
}

// fn(load, i, n) over [0, count) in whole vectors and one partial vector of n < kWidth lanes at the end.
template <typename V, typename Whole, typename Part>
QVL_INLINE void for_vectors(int64_t count, const Whole& whole, const Part& part) {
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) whole(i);
  if (i < count) part(i, count - i);
}

// Sum of term(vector) over x[0..count). term of the zero lanes of the last vector must be masked by the
// caller through `tail`. Four chains of sums hide the latency.
template <typename V, typename T, typename Term, typename Tail>
QVL_INLINE float sum_of(const T* x, int64_t count, const Term& term, const Tail& tail) {
  constexpr int64_t kW = V::kWidth;
  typename V::F s0 = V::zero(), s1 = V::zero(), s2 = V::zero(), s3 = V::zero();
  int64_t i = 0;
  for (; i + 4 * kW <= count; i += 4 * kW) {
    s0 = term(s0, V::load(x + i));
    s1 = term(s1, V::load(x + i + kW));
    s2 = term(s2, V::load(x + i + 2 * kW));
    s3 = term(s3, V::load(x + i + 3 * kW));
  }
  for (; i + kW <= count; i += kW) s0 = term(s0, V::load(x + i));
  if (i < count) s1 = tail(s1, V::load_n(x + i, count - i), count - i);
  return V::reduce_add(V::add(V::add(s0, s1), V::add(s2, s3)));
}

template <typename V, typename T>
QVL_INLINE float inverse_rms(const T* x, int64_t count, float eps) {
  using F = typename V::F;
  const float sum = sum_of<V>(
      x, count, [=](F s, F v) { return V::fma(v, v, s); },
      [=](F s, F v, int64_t) { return V::fma(v, v, s); });
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(count) + eps);
}

template <typename V, typename T>
void layer_norm(const void* x_data, int64_t count, const float* weight, const float* bias, float eps,
                void* y_data) {
  using F = typename V::F;
  const T* x = static_cast<const T*>(x_data);
  T* y = static_cast<T*>(y_data);
  const float mean =
      sum_of<V>(
          x, count, [=](F s, F v) { return V::add(s, v); }, [=](F s, F v, int64_t) { return V::add(s, v); }) /
      static_cast<float>(count);
  const F m = V::set1(mean);
  // The sum of squared deviations, not the difference of two large sums.
  const float squares = sum_of<V>(
      x, count,
      [m](F s, F v) {
        const F d = V::sub(v, m);
        return V::fma(d, d, s);
      },
      [m](F s, F v, int64_t n) {
        const F d = V::first_lanes(V::sub(v, m), V::zero(), n);
        return V::fma(d, d, s);
      });
  const F inverse = V::set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(count) + eps));
  for_vectors<V>(
      count,
      [=](int64_t i) {
        const F scaled = V::mul(V::sub(V::load(x + i), m), inverse);
        V::store(y + i, V::fma(scaled, V::load(weight + i), V::load(bias + i)));
      },
      [=](int64_t i, int64_t n) {
        const F scaled = V::mul(V::sub(V::load_n(x + i, n), m), inverse);
        V::store_n(y + i, V::fma(scaled, V::load_n(weight + i, n), V::load_n(bias + i, n)), n);
      });
}

template <typename V, typename T>
void rms_norm(const void* x_data, int64_t count, const float* weight, float eps, void* y_data) {
  using F = typename V::F;
  const T* x = static_cast<const T*>(x_data);
  T* y = static_cast<T*>(y_data);
  const F inverse = V::set1(inverse_rms<V>(x, count, eps));
  for_vectors<V>(
      count,
      [=](int64_t i) {
        V::store(y + i, V::mul(round_to<V, T>(V::mul(V::load(x + i), inverse)), V::load(weight + i)));
      },
      [=](int64_t i, int64_t n) {
        const F normed = round_to<V, T>(V::mul(V::load_n(x + i, n), inverse));
        V::store_n(y + i, V::mul(normed, V::load_n(weight + i, n)), n);
      });
}

template <typename V, typename T>
void rope_heads(void* data, int64_t heads, int64_t hd, const float* cos, const float* sin) {
  using F = typename V::F;
  T* x = static_cast<T*>(data);
  const int64_t half = hd / 2;
  for (int64_t h = 0; h < heads; ++h, x += hd) {
    T* low = x;
    T* high = x + half;
    for_vectors<V>(
        half,
        [=](int64_t i) {
          const F a = V::load(low + i), b = V::load(high + i), c = V::load(cos + i), s = V::load(sin + i);
          V::store(low + i, V::fms(a, c, V::mul(b, s)));
          V::store(high + i, V::fma(b, c, V::mul(a, s)));
        },
        [=](int64_t i, int64_t n) {
          const F a = V::load_n(low + i, n), b = V::load_n(high + i, n);
          const F c = V::load_n(cos + i, n), s = V::load_n(sin + i, n);
          V::store_n(low + i, V::fms(a, c, V::mul(b, s)), n);
          V::store_n(high + i, V::fma(b, c, V::mul(a, s)), n);
        });
  }
}

template <typename V, typename T>
void norm_rope_head(const void* src, int64_t hd, const float* weight, float eps, const float* cos,
                    const float* sin, void* dst) {
  using F = typename V::F;
  constexpr bool kRounds = !std::is_same_v<T, float>;
  const T* x = static_cast<const T*>(src);
  T* y = static_cast<T*>(dst);
  const int64_t half = hd / 2;
  const F inverse = V::set1(inverse_rms<V>(x, hd, eps));
  const auto normed = [inverse](F v, F w) {
    return round_to<V, T>(V::mul(round_to<V, T>(V::mul(v, inverse)), w));
  };
  const auto rotate = [=](F& a, F& b, F c, F s) {
    F low, high;
    if constexpr (kRounds) {
      c = V::round_bf16(c);
      s = V::round_bf16(s);
      low = V::sub(V::round_bf16(V::mul(a, c)), V::round_bf16(V::mul(b, s)));
      high = V::add(V::round_bf16(V::mul(b, c)), V::round_bf16(V::mul(a, s)));
    } else {
      low = V::fms(a, c, V::mul(b, s));
      high = V::fma(b, c, V::mul(a, s));
    }
    a = low;
    b = high;
  };
  for_vectors<V>(
      half,
      [=](int64_t i) {
        F a = normed(V::load(x + i), V::load(weight + i)),
          b = normed(V::load(x + half + i), V::load(weight + half + i));
        rotate(a, b, V::load(cos + i), V::load(sin + i));
        V::store(y + i, a);
        V::store(y + half + i, b);
      },
      [=](int64_t i, int64_t n) {
        F a = normed(V::load_n(x + i, n), V::load_n(weight + i, n));
        F b = normed(V::load_n(x + half + i, n), V::load_n(weight + half + i, n));
        rotate(a, b, V::load_n(cos + i, n), V::load_n(sin + i, n));
        V::store_n(y + i, a, n);
        V::store_n(y + half + i, b, n);
      });
}

template <typename V, typename T>
RowKernels row_kernels() {
  return {layer_norm<V, T>,     rms_norm<V, T>,      rope_heads<V, T>,
          norm_rope_head<V, T>, quantize_head<V, T>, dequantize_head<V, T>};
}

}  // namespace qvl::kernels::simd
