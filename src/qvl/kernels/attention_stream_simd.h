// Attention of few rows over unpacked keys and values (decode), over a vector type V, an activation type T and a type C
// of the cache's elements (T, or int8_t). Spec section 6.4. Bandwidth-bound: every element of the cache is loaded and
// widened once for a group of up to four query heads. Include after the target pragma and V's header; everything is a
// template, so that each instruction set gets functions of its own.
//
// Heads of whole double vectors take loops without tails. Those of a bfloat16 cache are widened as even and odd
// elements (two instructions for two vectors); queries and sums then keep that order inside the kernels.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_int8_simd.h"
#include "qvl/kernels/attention_tile_simd.h"

namespace qvl::kernels::simd {

template <typename V, typename T, typename C>
struct Stream {
  using F = typename V::F;
  static constexpr int64_t kW = V::kWidth;
  static constexpr bool kInterleaves = std::is_same_v<C, BFloat16>;
  static_assert(std::is_same_v<C, T> || std::is_same_v<C, int8_t>);

  static bool whole(int64_t hd) { return hd % (2 * kW) == 0; }
  static bool interleaved(int64_t hd) { return kInterleaves && whole(hd); }

  // Processors with vectors of 512 bits fetch ahead by themselves what is read in the order in which its lines lie, and are
  // disturbed by being asked: reading in order is 1.25 times as fast there, and asking costs a quarter of that (Zen 4). Codes are multiplied
  // more slowly than they arrive and take the loops that load queries least often.
  static constexpr bool kInOrder = kW == 16 && sizeof(C) > 1;
  static constexpr int64_t kUsualHd = 128;  // of every published model

  // All others: keys and values come from memory in runs of some ten KB, too short for hardware prefetchers to get going and
  // never across their pages. So each line is asked for once, in address order, this far ahead; behind the end of a run comes
  // what the caller reads next. Zen 3 loses a third without.
  static constexpr int64_t kAheadBytes = 4096;
  static constexpr int64_t kLineBytes = 64;
  static constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(C));  // elements

  // Where the byte lies that is to be asked for while byte `at` of a run of `bytes` is read.
  QVL_INLINE const char* ahead_of(const C* run, int64_t bytes, const void* next, int64_t at) {
    const int64_t wanted = at + kAheadBytes;
    if (next == nullptr || wanted < bytes) return offset(run, wanted);  // also behind the end, where it does no harm
    return offset(next, wanted - bytes);
  }
  QVL_INLINE const char* offset(const void* p, int64_t bytes) {
    return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
  }

  // Two vectors of elements d.. in internal order. The second vector lies wholly behind hd when it is not
  // loaded.
  template <bool Whole>
  QVL_INLINE void load2(const C* p, int64_t d, int64_t hd, F& a, F& b) {
    if constexpr (Whole && kInterleaves) {
      V::load_even_odd(p + d, a, b);
    } else if constexpr (Whole) {
      V::load_two(p + d, a, b);
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

  static void add_scaled(const float* part, float factor, int64_t count, float* sum) {
    const F f = V::set1(factor);
    int64_t i = 0;
    for (; i + kW <= count; i += kW) V::store(sum + i, V::fma(V::load(part + i), f, V::load(sum + i)));
    if (i < count) {
      const int64_t n = count - i;
      V::store_n(sum + i, V::fma(V::load_n(part + i, n), f, V::load_n(sum + i, n)), n);
    }
  }

  static void multiply(const float* factors, int64_t count, float* values) {
    int64_t i = 0;
    for (; i + kW <= count; i += kW) V::store(values + i, V::mul(V::load(values + i), V::load(factors + i)));
    if (i < count) {
      const int64_t n = count - i;
      V::store_n(values + i, V::mul(V::load_n(values + i, n), V::load_n(factors + i, n)), n);
    }
  }

  static void widen(const void* src, int64_t hd, float* dst) {
    const T* p = static_cast<const T*>(src);
    if (interleaved(hd)) {
      if constexpr (kInterleaves) {
        for (int64_t d = 0; d < hd; d += 2 * kW) {
          F a, b;
          V::load_even_odd(p + d, a, b);
          V::store(dst + d, a);
          V::store(dst + d + kW, b);
        }
      }
      return;
    }
    widen_head<V>(p, hd, dst);
    if constexpr (std::is_same_v<C, int8_t>) hadamard<V>(dst, hd);
  }

  static void narrow(const float* src, int64_t hd, void* dst) {
    T* p = static_cast<T*>(dst);
    // Adding zero turns a negative zero into a positive one.
    const auto positive = [=](F v) { return V::add(v, V::zero()); };
    if (interleaved(hd)) {
      if constexpr (kInterleaves) {
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

  // Stores the sums of R rows and kScoreSums / R keys, of which the first `keys` are there.
  template <int R>
  QVL_INLINE void store_scores(const F* acc, int64_t keys, float* scores, int64_t stride) {
    constexpr int kKeys = V::kScoreSums / R;
    alignas(64) float sums[V::kScoreSums];
    V::store_sums(sums, acc);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (keys == kKeys) {
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) scores[r * stride + j] = sums[r * kKeys + j];
      } else {
        for (int64_t j = 0; j < keys; ++j) scores[r * stride + j] = sums[r * kKeys + j];
      }
    }
  }

  // R rows and so many keys at a time that their sums share one reduction.
  template <bool Whole, int R>
  static void score_rows(const float* q, const C* k, int64_t count, int64_t hd, float* scores, int64_t stride,
                         const void* next) {
    constexpr int kSums = V::kScoreSums, kKeys = kSums / R;
    constexpr bool kHoldQueries = R <= kKeys;
    constexpr int kHeld = kHoldQueries ? R : kKeys;
    const int64_t row_bytes = hd * static_cast<int64_t>(sizeof(C));
    for (int64_t i = 0; i < count; i += kKeys) {
      const int64_t keys = count - i < kKeys ? count - i : kKeys;
      const C* rows[kKeys];  // missing keys repeat the last one
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) rows[j] = k + (i + (j < keys ? j : keys - 1)) * hd;
      F acc[kSums];
#pragma GCC unroll 16
      for (int j = 0; j < kSums; ++j) acc[j] = V::zero();
      const auto step = [&](int64_t d) __attribute__((always_inline)) {
        const auto load_query = [&](int r, F& a, F& b) __attribute__((always_inline)) {
          if constexpr (Whole) {
            a = V::load(q + r * hd + d);
            b = V::load(q + r * hd + d + kW);
          } else {
            load2_float(q + r * hd, d, hd, a, b);
          }
        };
        // The smaller side stays in registers.
        F held_a[kHeld], held_b[kHeld];
#pragma GCC unroll 8
        for (int h = 0; h < kHeld; ++h) {
          if constexpr (kHoldQueries) {
            load_query(h, held_a[h], held_b[h]);
          } else {
            load2<Whole>(rows[h], d, hd, held_a[h], held_b[h]);
          }
        }
#pragma GCC unroll 16
        for (int o = 0; o < kSums / kHeld; ++o) {
          F a, b;
          if constexpr (kHoldQueries) {
            load2<Whole>(rows[o], d, hd, a, b);
          } else {
            load_query(o, a, b);
          }
#pragma GCC unroll 8
          for (int h = 0; h < kHeld; ++h) {
            const int sum = kHoldQueries ? h * kKeys + o : o * kKeys + h;
            acc[sum] = V::fma(b, held_b[h], V::fma(a, held_a[h], acc[sum]));
          }
        }
      };
      const char* ahead = ahead_of(k, count * row_bytes, next, i * row_bytes);
      int64_t d = 0;
      // Two vectors of floats may be longer than a line.
      constexpr int64_t kPart = kLine < 2 * kW ? 2 * kW : kLine, kLines = kPart / kLine;
      for (; Whole && d + kPart <= hd; d += kPart, ahead += kLines * kLineBytes) {
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) {
#pragma GCC unroll 2
          for (int64_t line = 0; line < kLines; ++line) __builtin_prefetch(ahead + j * row_bytes + line * kLineBytes);
        }
#pragma GCC unroll 8
        for (int64_t at = 0; at < kPart; at += 2 * kW) step(d + at);
      }
      for (; d < hd; d += 2 * kW) step(d);
      store_scores<R>(acc, keys, scores + i, stride);
    }
  }

  // Likewise in the order in which the lines lie, one key after the other; hd is kUsualHd.
  template <int R>
  static void score_keys(const float* q, const C* k, int64_t count, float* scores, int64_t stride) {
    constexpr int kSums = V::kScoreSums, kKeys = kSums / R;
    for (int64_t i = 0; i < count; i += kKeys, k += kKeys * kUsualHd) {
      const int64_t keys = count - i < kKeys ? count - i : kKeys;
      F acc[kSums];
#pragma GCC unroll 16
      for (int j = 0; j < kSums; ++j) acc[j] = V::zero();
      const auto score = [&](int j, const C* key) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int64_t d = 0; d < kUsualHd; d += 2 * kW) {
          F a, b;
          load2<true>(key, d, kUsualHd, a, b);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            F& sum = acc[r * kKeys + j];
            sum = V::fma(b, V::load(q + r * kUsualHd + d + kW), V::fma(a, V::load(q + r * kUsualHd + d), sum));
          }
        }
      };
      if (keys == kKeys) {
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) score(j, k + j * kUsualHd);
      } else {  // missing keys repeat the last one
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) score(j, k + (j < keys ? j : keys - 1) * kUsualHd);
      }
      store_scores<R>(acc, keys, scores + i, stride);
    }
  }

  // out[R, columns] += weights . values for two vectors' worth of columns at a time, keys in ascending order. `ahead`:
  // where the lines begin that are asked for, as many as these keys have.
  template <bool Whole, int R>
  static void gather_rows(const float* weights, int64_t stride, const C* v, int64_t count, int64_t hd, float* out,
                          const char* ahead) {
    constexpr int kPairs = V::kGatherPairs;  // vector pairs held at once
    constexpr int64_t kStripBytes = 2 * kPairs * kW * static_cast<int64_t>(sizeof(C));
    constexpr int64_t kKeysOfALine = kStripBytes < kLineBytes ? kLineBytes / kStripBytes : 1;
    constexpr int64_t kLinesOfAKey = kStripBytes < kLineBytes ? 1 : kStripBytes / kLineBytes;
    int64_t d = 0;
    for (; Whole && d + 2 * kPairs * kW <= hd; d += 2 * kPairs * kW) {
      F acc[R][2 * kPairs];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < 2 * kPairs; ++c) acc[r][c] = V::load(out + r * hd + d + c * kW);
      }
      const auto key = [&](int64_t i) __attribute__((always_inline)) {
        F x[2 * kPairs];
#pragma GCC unroll 2
        for (int c = 0; c < kPairs; ++c) load2<Whole>(v + i * hd, d + 2 * c * kW, hd, x[2 * c], x[2 * c + 1]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const F w = V::set1(weights[r * stride + i]);
#pragma GCC unroll 4
          for (int c = 0; c < 2 * kPairs; ++c) acc[r][c] = V::fma(w, x[c], acc[r][c]);
        }
      };
      int64_t i = 0;
      for (; i + kKeysOfALine <= count; i += kKeysOfALine) {
#pragma GCC unroll 4
        for (int64_t line = 0; line < kLinesOfAKey; ++line, ahead += kLineBytes) __builtin_prefetch(ahead);
#pragma GCC unroll 8
        for (int64_t j = 0; j < kKeysOfALine; ++j) key(i + j);
      }
      for (; i < count; ++i) key(i);
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
        load2<Whole>(v + i * hd, d, hd, a, b);
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

  // Likewise in the order in which the lines lie, all columns of one key after the other; hd is kUsualHd.
  template <int R>
  static void gather_keys(const float* weights, int64_t stride, const C* v, int64_t count, float* out) {
    constexpr int kVectors = kUsualHd / kW;
    F acc[R][kVectors];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) acc[r][c] = V::load(out + r * kUsualHd + c * kW);
    }
    for (int64_t i = 0; i < count; ++i, v += kUsualHd) {
      F w[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) w[r] = V::set1(weights[r * stride + i]);
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; c += 2) {
        F a, b;
        load2<true>(v, c * kW, kUsualHd, a, b);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          acc[r][c] = V::fma(w[r], a, acc[r][c]);
          acc[r][c + 1] = V::fma(w[r], b, acc[r][c + 1]);
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) V::store(out + r * kUsualHd + c * kW, acc[r][c]);
    }
  }

  // fn<R>(first row) over the rows in groups of 4, 2 and 1.
  template <typename Fn>
  QVL_INLINE void for_groups(int64_t rows, const Fn& fn) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) fn.template operator()<4>(r);
    for (; r + 2 <= rows; r += 2) fn.template operator()<2>(r);
    if (r < rows) fn.template operator()<1>(r);
  }

  static void scores(const float* q, int64_t rows, const void* k, int64_t count, int64_t hd, float* out,
                     int64_t stride, const void* next) {
    const C* keys = static_cast<const C*>(k);
    for_groups(rows, [&]<int R>(int64_t r) {
      const float* query = q + r * hd;
      float* const to = out + r * stride;
      if constexpr (kInOrder) {
        if (hd == kUsualHd) return score_keys<R>(query, keys, count, to, stride);
      }
      if (whole(hd)) return score_rows<true, R>(query, keys, count, hd, to, stride, next);
      score_rows<false, R>(query, keys, count, hd, to, stride, next);
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

  static void gather(const float* w, int64_t stride, int64_t rows, const void* v, int64_t count, int64_t hd, float* out,
                     const void* next) {
    // So many keys at a time that their values are in the first cache while one strip of columns after the other passes.
    constexpr int64_t kBlockKeys = 16;
    const C* values = static_cast<const C*>(v);
    if constexpr (kInOrder) {
      if (hd == kUsualHd) {
        for (int64_t i = 0; i < count; i += kBlockKeys) {
          const int64_t n = count - i < kBlockKeys ? count - i : kBlockKeys;
          int64_t r = 0;
          for (; r + 2 <= rows; r += 2) gather_keys<2>(w + r * stride + i, stride, values + i * hd, n, out + r * hd);
          if (r < rows) gather_keys<1>(w + r * stride + i, stride, values + i * hd, n, out + r * hd);
        }
        return;
      }
    }
    const int64_t row_bytes = hd * static_cast<int64_t>(sizeof(C));
    for (int64_t i = 0; i < count; i += kBlockKeys) {
      const int64_t n = count - i < kBlockKeys ? count - i : kBlockKeys;
      const char* ahead = ahead_of(values, count * row_bytes, next, i * row_bytes);
      for_groups(rows, [&]<int R>(int64_t r) {
        const float* weights = w + r * stride + i;
        if (whole(hd)) return gather_rows<true, R>(weights, stride, values + i * hd, n, hd, out + r * hd, ahead);
        gather_rows<false, R>(weights, stride, values + i * hd, n, hd, out + r * hd, ahead);
      });
    }
  }
};

template <typename V, typename T, typename C = T>
AttentionStream attention_stream() {
  using S = Stream<V, T, C>;
  return {S::scores, S::weights, S::gather, S::add_scaled, S::multiply, S::widen, S::narrow};
}

}  // namespace qvl::kernels::simd
