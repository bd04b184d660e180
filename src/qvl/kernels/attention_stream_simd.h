// Attention of few rows over unpacked keys and values (decode), over a vector type V and an element type T. Spec
// section 6.4. Bandwidth-bound: every element of the cache is loaded and widened once for a group of kRows query
// heads. Include after the target pragma and V's header; everything is a template, so that each instruction set gets
// functions of its own.
//
// bfloat16 heads of whole double vectors are widened as even and odd elements (two instructions for two vectors);
// queries and sums then keep that order inside the kernels.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_tile_simd.h"

namespace qvl::kernels::simd {

template <typename V, typename T>
struct Stream {
  using F = typename V::F;
  static constexpr int64_t kW = V::kWidth;
  static constexpr int kRows = 4;

  static bool interleaved(int64_t hd) { return !std::is_same_v<T, float> && hd % (2 * kW) == 0; }

  // Two vectors of elements d.. in internal order. The second vector lies wholly behind hd when it is not loaded.
  template <bool Interleaved>
  QVL_INLINE void load2(const T* p, int64_t d, int64_t hd, F& a, F& b) {
    if constexpr (Interleaved) {
      V::load_even_odd(p + d, a, b);
    } else {
      const int64_t left = hd - d;
      a = left >= kW ? V::load(p + d) : V::load_n(p + d, left);
      b = left >= 2 * kW ? V::load(p + d + kW) : left > kW ? V::load_n(p + d + kW, left - kW) : V::zero();
    }
  }
  QVL_INLINE void load2_float(const float* p, int64_t d, int64_t hd, F& a, F& b) {
    const int64_t left = hd - d;
    a = left >= kW ? V::load(p + d) : V::load_n(p + d, left);
    b = left >= 2 * kW ? V::load(p + d + kW) : left > kW ? V::load_n(p + d + kW, left - kW) : V::zero();
  }

  static void widen(const void* src, int64_t hd, float* dst) {
    const T* p = static_cast<const T*>(src);
    if (interleaved(hd)) {
      if constexpr (!std::is_same_v<T, float>) {
        for (int64_t d = 0; d < hd; d += 2 * kW) {
          F a, b;
          V::load_even_odd(p + d, a, b);
          V::store(dst + d, a);
          V::store(dst + d + kW, b);
        }
      }
      return;
    }
    int64_t d = 0;
    for (; d + kW <= hd; d += kW) V::store(dst + d, V::load(p + d));
    if (d < hd) V::store_n(dst + d, V::load_n(p + d, hd - d), hd - d);
  }

  static void narrow(const float* src, int64_t hd, void* dst) {
    T* p = static_cast<T*>(dst);
    // Adding zero turns a negative zero into a positive one.
    const auto positive = [=](F v) { return V::add(v, V::zero()); };
    if (interleaved(hd)) {
      if constexpr (!std::is_same_v<T, float>) {
        for (int64_t d = 0; d < hd; d += 2 * kW) {
          V::store_even_odd(p + d, positive(V::load(src + d)), positive(V::load(src + d + kW)));
        }
      }
      return;
    }
    int64_t d = 0;
    for (; d + kW <= hd; d += kW) V::store(p + d, positive(V::load(src + d)));
    if (d < hd) V::store_n(p + d, positive(V::load_n(src + d, hd - d)), hd - d);
  }

  // R rows and two keys at a time, so that eight sums (R = 4) share one reduction.
  template <bool Interleaved, int R>
  static void score_rows(const float* q, const T* k, int64_t count, int64_t hd, float* scores, int64_t stride) {
    for (int64_t i = 0; i < count; i += 2) {
      const T* k0 = k + i * hd;
      const T* k1 = i + 1 < count ? k0 + hd : k0;
      F acc[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] = V::zero();
      for (int64_t d = 0; d < hd; d += 2 * kW) {
        F a0, b0, a1, b1;
        if constexpr (std::is_same_v<T, float>) {
          load2_float(k0, d, hd, a0, b0);
          load2_float(k1, d, hd, a1, b1);
        } else {
          load2<Interleaved>(k0, d, hd, a0, b0);
          load2<Interleaved>(k1, d, hd, a1, b1);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          F qa, qb;
          if constexpr (Interleaved) {
            qa = V::load(q + r * hd + d);
            qb = V::load(q + r * hd + d + kW);
          } else {
            load2_float(q + r * hd, d, hd, qa, qb);
          }
          acc[r] = V::fma(b0, qb, V::fma(a0, qa, acc[r]));
          acc[4 + r] = V::fma(b1, qb, V::fma(a1, qa, acc[4 + r]));
        }
      }
      alignas(32) float sums[8];
      _mm256_store_ps(sums, V::reduce_add8(acc));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        scores[r * stride + i] = sums[r];
        if (i + 1 < count) scores[r * stride + i + 1] = sums[4 + r];
      }
    }
  }

  // out[R, columns] += weights . values for two vectors' worth of columns at a time, keys in ascending order.
  template <bool Interleaved, int R>
  static void gather_rows(const float* weights, int64_t stride, const T* v, int64_t count, int64_t hd, float* out) {
    constexpr int kPairs = 2;  // vector pairs held at once
    int64_t d = 0;
    for (; Interleaved && d + 2 * kPairs * kW <= hd; d += 2 * kPairs * kW) {
      F acc[R][2 * kPairs];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < 2 * kPairs; ++c) acc[r][c] = V::load(out + r * hd + d + c * kW);
      }
      for (int64_t i = 0; i < count; ++i) {
        F x[2 * kPairs];
#pragma GCC unroll 2
        for (int c = 0; c < kPairs; ++c) load2<Interleaved>(v + i * hd, d + 2 * c * kW, hd, x[2 * c], x[2 * c + 1]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const F w = V::set1(weights[r * stride + i]);
#pragma GCC unroll 4
          for (int c = 0; c < 2 * kPairs; ++c) acc[r][c] = V::fma(w, x[c], acc[r][c]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < 2 * kPairs; ++c) V::store(out + r * hd + d + c * kW, acc[r][c]);
      }
    }
    for (; d < hd; d += 2 * kW) {
      F acc[R][2];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) load2_float(out + r * hd, d, hd, acc[r][0], acc[r][1]);
      for (int64_t i = 0; i < count; ++i) {
        F a, b;
        if constexpr (std::is_same_v<T, float>) {
          load2_float(v + i * hd, d, hd, a, b);
        } else {
          load2<Interleaved>(v + i * hd, d, hd, a, b);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const F w = V::set1(weights[r * stride + i]);
          acc[r][0] = V::fma(w, a, acc[r][0]);
          acc[r][1] = V::fma(w, b, acc[r][1]);
        }
      }
      const int64_t left = hd - d, na = left < kW ? left : kW, nb = left - na < kW ? left - na : kW;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        V::store_n(out + r * hd + d, acc[r][0], na);
        if (nb > 0) V::store_n(out + r * hd + d + kW, acc[r][1], nb);
      }
    }
  }

  // fn<R>(first row) over the rows in groups of kRows and single rows at the end... one size per call.
  template <typename Fn>
  QVL_INLINE void for_groups(int64_t rows, const Fn& fn) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) fn.template operator()<4>(r);
    for (; r + 2 <= rows; r += 2) fn.template operator()<2>(r);
    if (r < rows) fn.template operator()<1>(r);
  }

  static void scores(const float* q, int64_t rows, const void* k, int64_t count, int64_t hd, float* out,
                     int64_t stride) {
    const T* keys = static_cast<const T*>(k);
    for_groups(rows, [&]<int R>(int64_t r) {
      if constexpr (!std::is_same_v<T, float>) {
        if (interleaved(hd)) return score_rows<true, R>(q + r * hd, keys, count, hd, out + r * stride, stride);
      }
      score_rows<false, R>(q + r * hd, keys, count, hd, out + r * stride, stride);
    });
  }

  static float weights(float* scores, int64_t visible, int64_t count, float scale, float* max_out) {
    const F hidden = V::set1(-std::numeric_limits<float>::infinity());
    const auto at = [&](int64_t i) {
      const int64_t n = visible - i;
      return n >= kW ? V::load(scores + i) : V::first_lanes(V::load_n(scores + i, n), hidden, n);
    };
    F top = hidden;
    for (int64_t i = 0; i < visible; i += kW) top = V::max(top, at(i));
    const float max = V::reduce_max(top) * scale;
    const F factor = V::set1(scale), shift = V::set1(max);
    F sum = V::zero();
    for (int64_t i = 0; i < visible; i += kW) {
      const F w = exp2_nonpositive<V>(V::fms(at(i), factor, shift));
      sum = V::add(sum, w);
      const int64_t n = visible - i;
      if (n >= kW) {
        V::store(scores + i, w);
      } else {
        V::store_n(scores + i, w, n);
      }
    }
    for (int64_t i = visible; i < count; ++i) scores[i] = 0.0f;
    *max_out = max;
    return V::reduce_add(sum);
  }

  static void gather(const float* w, int64_t stride, int64_t rows, const void* v, int64_t count, int64_t hd,
                     float* out) {
    const T* values = static_cast<const T*>(v);
    for_groups(rows, [&]<int R>(int64_t r) {
      if constexpr (!std::is_same_v<T, float>) {
        if (interleaved(hd)) return gather_rows<true, R>(w + r * stride, stride, values, count, hd, out + r * hd);
      }
      gather_rows<false, R>(w + r * stride, stride, values, count, hd, out + r * hd);
    });
  }
};

template <typename V, typename T>
AttentionStream attention_stream() {
  using S = Stream<V, T>;
  return {S::scores, S::weights, S::gather, S::widen, S::narrow};
}

}  // namespace qvl::kernels::simd
