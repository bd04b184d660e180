// Flash attention on packed tiles of 16-bit codes (spec 5.4 and 6.4), for instruction sets that multiply pairs of 16-bit
// integers faster than floats. Rows of queries, keys and values become codes of their own power of two: bfloat16 elements
// down to about a 64th of a row's largest pass unchanged. Weights become codes relative to their sum in a tile. Sums of
// products are exact. Include after the target pragma and the headers of W; everything is a template, so that each
// instruction set gets functions of its own.
//
// Packed operands are arrays of 32-bit words, two codes along the summed axis each:
//   query  [head_dim/2], the scale (float)
//   keys   [head_dim/2][kKeys], the scales [kKeys] (float)
//   values [kKeys/2][head_dim rounded up to kAttentionLanes], log2 of the scales [kKeys] (float), 1/scales [kKeys] (float)
//
// A key's weight in a row is 2^(score); its value's scale is multiplied in before the weight is rounded, as an addition to
// the score, so that what is lost depends on the row alone and never on keys that it does not see.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_kernels.h"
// After V's header.
#include "qvl/kernels/attention_tile_simd.h"

namespace qvl::kernels::simd {

// Lengths of rows of queries and keys in codes: the sum of products of two rows, and of any part of them, is at most the
// product of their lengths (Cauchy and Schwarz), which fits 32 bits.
inline constexpr float kLongestCodes = 46300.0f;
inline constexpr float kLargestCode = 32767.0f;
// The codes of a row's weights in a tile sum to this and half a code for each, so that their products with codes of values
// fit 32 bits.
inline constexpr float kWeightCodes = 65500.0f;

template <typename To, typename From>
QVL_INLINE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
// The least power of two above x; x is positive, normal and below 2^127.
QVL_INLINE float power_above(float x) {
  return same_bits<float>((same_bits<uint32_t>(x) & 0x7f800000u) + 0x00800000u);
}
QVL_INLINE float exponent_of(float power) {
  return static_cast<float>(static_cast<int32_t>(same_bits<uint32_t>(power) >> 23) - 127);
}

// W: V, the float vector; I, its integers; kRows, rows multiplied at once.
template <typename W>
struct TileInt16 {
  using V = typename W::V;
  using F = typename V::F;
  using I = typename W::I;
  static constexpr int kW = V::kWidth;
  static constexpr int kR = W::kRows;
  static constexpr int kC = W::kVecs;  // at most, columns of accumulators
  static constexpr int64_t kKeys = 64;
  static constexpr int64_t kSteps = kKeys / 2;
  static constexpr int64_t kRowGroup = kW;
  // Rows that meet the keys of a tile before they meet its values: the nearest cache holds only one of them.
  static constexpr int kGroup = 16;
  static_assert(kGroup % kW == 0 && kW % kR == 0 && (static_cast<int64_t>(kWeightCodes) + kKeys / 2) * static_cast<int64_t>(kLargestCode) < int64_t{1} << 31);

  struct Scratch {
    alignas(64) float scores[kGroup * kKeys];
    alignas(64) int32_t weights[kGroup * kSteps];
    alignas(64) float lane_max[kGroup * kW];
    alignas(64) float lane_sum[kGroup * kW];
    // One value a row.
    alignas(64) float top[kGroup];     // the largest score of the tile
    alignas(64) float shrink[kGroup];  // what earlier sums shrink by
    alignas(64) float grow[kGroup];    // the factor of this tile's weights
    alignas(64) float unit[kGroup];    // the factor of this tile's products
    alignas(64) float factor[kGroup];  // makes codes of weights
  };

  // acc[r][c] += products of the words of a[r] with those of column c.
  template <int C>
  QVL_INLINE void multiply(I (&acc)[kR][C], const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride,
                           int64_t steps) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < steps; ++k, b += b_stride) {
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        const I both = W::broadcast(a[r * a_stride + k]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = W::dot(acc[r][c], both, b + c * kW);
      }
    }
  }

  template <int C>
  QVL_INLINE void clear(I (&acc)[kR][C]) {
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = W::zero();
    }
  }

  // scores = products * scales of keys * factor of the row + log2 of the scales of values.
  template <int C>
  static __attribute__((noinline)) void score_block(const int32_t* q, int64_t words, float scale, const int32_t* keys,
                                                    const float* key_scales, const float* value_logs, float* scores,
                                                    float* lane_max, bool first) {
    I acc[kR][C];
    clear<C>(acc);
    multiply<C>(acc, q, words + 1, keys, kKeys, words);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const F factor = V::set1(same_bits<float>(q[r * (words + 1) + words]) * scale);
      F max = first ? V::set1(-std::numeric_limits<float>::infinity()) : V::load(lane_max + r * kW);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const F product = V::mul(W::to_float(acc[r][c]), V::load(key_scales + c * kW));
        const F score = V::fma(product, factor, V::load(value_logs + c * kW));
        V::store(scores + r * kKeys + c * kW, score);
        max = V::max(max, score);
      }
      V::store(lane_max + r * kW, max);
    }
  }

  template <int C>
  static __attribute__((noinline)) void value_block(const int32_t* weights, const float* shrink, const float* unit,
                                                    const int32_t* values, int64_t stride, int64_t steps, float* out) {
    I acc[kR][C];
    clear<C>(acc);
    multiply<C>(acc, weights, kSteps, values, stride, steps);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const F less = V::set1(shrink[r]), more = V::set1(unit[r]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        float* p = out + r * stride + c * kW;
        V::store(p, V::fma(W::to_float(acc[r][c]), more, V::mul(less, V::load(p))));
      }
    }
  }

  // Scores of one row become weights; lane_sum gets their sums. Returns those of the weights without their values' scales.
  QVL_INLINE F make_weights(float* scores, int64_t vectors, F top, const float* inverse_scales, float* lane_sum) {
    F all = V::zero(), sum = V::zero();
    for (int64_t j = 0; j < vectors; ++j) {
      const F w = exp2_nonpositive<V>(V::sub(V::load(scores + j * kW), top));
      V::store(scores + j * kW, w);
      all = V::add(all, w);
      sum = V::fma(w, V::load(inverse_scales + j * kW), sum);
    }
    V::store(lane_sum, all);
    return sum;
  }

  QVL_INLINE void make_codes(const float* weights, int64_t vectors, F factor, int32_t* codes) {
    const auto scaled = [&](int64_t j) { return V::mul(factor, V::load(weights + j * kW)); };
    for (int64_t j = 0; j < vectors; j += 2) {
      W::store(codes + j * (kW / 2), W::codes(scaled(j), j + 1 < vectors ? scaled(j + 1) : V::zero()));
    }
  }

  // Element i: the sum of the kW floats at p + kW i.
  QVL_INLINE F sum_lanes(const float* p) {
    F rows[kW];
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) rows[i] = V::load(p + kW * i);
    alignas(64) float sums[kW];
    V::store_sums(sums, rows);
    return V::load(sums);
  }

  static void attend(const AttendArgs& args) {
    Scratch* s = static_cast<Scratch*>(args.scratch);
    const int64_t words = args.head_dim / 2, out_stride = round_up(args.head_dim, kAttentionLanes);
    const auto* keys = static_cast<const int32_t*>(args.keys);
    const auto* key_scales = reinterpret_cast<const float*>(keys + words * kKeys);
    const auto* values = static_cast<const int32_t*>(args.values);
    const auto* value_logs = reinterpret_cast<const float*>(values + kSteps * out_stride);
    const float* inverse_scales = value_logs + kKeys;
    for (int64_t first = 0; first < args.rows; first += kGroup) {
      const int64_t rows = args.rows - first < kGroup ? args.rows - first : kGroup;
      int64_t most = args.key_count, least = args.key_count;
      if (args.visible != nullptr) {
        most = 0;
        for (int64_t r = first; r < first + rows; ++r) {
          if (args.visible[r] > most) most = args.visible[r];
          if (args.visible[r] < least) least = args.visible[r];
        }
        if (most == 0) continue;
      }
      const int64_t vectors = (most + kW - 1) / kW;
      const int32_t* q = static_cast<const int32_t*>(args.queries) + first * (words + 1);
      for (int64_t r = 0; r < rows; r += kR) {
        for_columns<kC>(vectors, [&]<int C>(int64_t j) {
          score_block<C>(q + r * (words + 1), words, args.scale, keys + j * kW, key_scales + j * kW, value_logs + j * kW,
                         s->scores + r * kKeys + j * kW, s->lane_max + r * kW, j == 0);
        });
      }
      if (least < vectors * kW) {
        for (int64_t r = 0; r < rows; ++r) {
          hide_behind<V>(s->scores + r * kKeys, args.visible == nullptr ? args.key_count : args.visible[first + r],
                         vectors, s->lane_max + r * kW);
        }
      }
      for (int64_t r = 0; r < rows; ++r) s->top[r] = V::reduce_max(V::load(s->lane_max + r * kW));
      for (int64_t r = 0; r < rows; r += kW) {
        // Of a row that sees none of these keys, a number all the same.
        const F top = V::max(V::load(s->top + r), V::set1(-3e38f)), old = V::load(args.max + first + r);
        const F now = V::max(old, top);
        V::store(args.max + first + r, now);
        V::store(s->top + r, top);
        V::store(s->shrink + r, exp2_nonpositive<V>(V::sub(old, now)));
        V::store(s->grow + r, exp2_nonpositive<V>(V::sub(top, now)));
      }
      for (int64_t r = 0; r < rows; ++r) {
        float* sum = args.sum + (first + r) * kAttentionLanes;
        const F tile = make_weights(s->scores + r * kKeys, vectors, V::set1(s->top[r]), inverse_scales, s->lane_sum + r * kW);
        V::store(sum, V::fma(tile, V::set1(s->grow[r]), V::mul(V::load(sum), V::set1(s->shrink[r]))));
      }
      for (int64_t r = 0; r < rows; r += kW) {
        const F factor = W::min(V::set1(kLargestCode), W::div(V::set1(kWeightCodes), sum_lanes(s->lane_sum + r * kW)));
        V::store(s->factor + r, factor);
        V::store(s->unit + r, W::div(V::load(s->grow + r), factor));
      }
      for (int64_t r = 0; r < rows; ++r) {
        make_codes(s->scores + r * kKeys, vectors, V::set1(s->factor[r]), s->weights + r * kSteps);
      }
      const int64_t steps = (most + 1) / 2;
      for_columns<kC>((args.head_dim + kW - 1) / kW, [&]<int C>(int64_t j) {
        for (int64_t r = 0; r < rows; r += kR) {
          value_block<C>(s->weights + r * kSteps, s->shrink + r, s->unit + r, values + j * kW, out_stride, steps,
                         args.out + (first + r) * out_stride + j * kW);
        }
      });
    }
  }

  static size_t query_bytes(int64_t hd) {
    return static_cast<size_t>(hd / 2 + 1) * sizeof(int32_t);
  }
  static size_t key_tile_bytes(int64_t hd) {
    return static_cast<size_t>((hd / 2 + 1) * kKeys) * sizeof(int32_t);
  }
  static size_t value_tile_bytes(int64_t hd) {
    return static_cast<size_t>(round_up(hd, kAttentionLanes) * kSteps + 2 * kKeys) * sizeof(int32_t);
  }
  static size_t scratch_bytes(int64_t) {
    return sizeof(Scratch);
  }

  // What a row of queries or keys is to be divided by, a power of two: NaN when an element is not finite, zero for a row of
  // zeros.
  template <typename T>
  QVL_INLINE float row_scale(const T* row, int64_t hd) {
    const float max = largest<V>(row, hd);
    if (!(max <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    if (max < kSmallestCodedRow) return 0;
    // Relative to the largest, lest squares overflow.
    const F down = V::set1(1.0f / max);
    F squares = V::zero();
    for (int64_t d = 0; d < hd; d += kW) {
      const F x = V::mul(elements<V>(row, hd, d), down);
      squares = V::fma(x, x, squares);
    }
    const float length = __builtin_sqrtf(V::reduce_add(squares)) * (1 / kLongestCodes);
    return power_above(max * (length > 1 / kLargestCode ? length : 1 / kLargestCode));
  }
  // The factor that makes codes: zero for rows of zeros and for those that are lost.
  QVL_INLINE float code_factor(float scale) {
    return scale > 0 ? 1.0f / scale : 0.0f;
  }
  // kW words, the codes of elements [at, at + 2 kW). Elements that are not finite give any code.
  template <typename T>
  QVL_INLINE F code_words(const T* row, int64_t hd, int64_t at, F factor) {
    return W::as_float(W::codes(V::mul(elements<V>(row, hd, at), factor), V::mul(elements<V>(row, hd, at + kW), factor)));
  }

  template <typename T>
  static void pack_query(const void* src, int64_t hd, void* dst) {
    const T* row = static_cast<const T*>(src);
    float* q = static_cast<float*>(dst);
    const float scale = row_scale(row, hd);
    const F factor = V::set1(code_factor(scale));
    for (int64_t d = 0; d < hd; d += 2 * kW) {
      const F words = code_words(row, hd, d, factor);
      const int64_t n = (hd - d) / 2;
      if (n >= kW) {
        V::store(q + d / 2, words);
      } else {
        V::store_n(q + d / 2, words, n);
      }
    }
    q[hd / 2] = scale;
  }

  template <typename T>
  static void pack_keys(const void* src, int64_t stride, int64_t first, int64_t count, int64_t hd, void* tile) {
    const T* rows = static_cast<const T*>(src);
    const int64_t words = hd / 2, padded = round_up(count, kAttentionLanes);
    float* dst = static_cast<float*>(tile) + first;
    float* scales = static_cast<float*>(tile) + words * kKeys + first;
    for (int64_t key = 0; key < padded; key += kW) {
      float factors[kW];
      for (int i = 0; i < kW; ++i) {
        scales[key + i] = key + i < count ? row_scale(rows + (key + i) * stride, hd) : 0;
        factors[i] = code_factor(scales[key + i]);
      }
      for (int64_t d = 0; d < words; d += kW) {
        F block[kW];
        for (int i = 0; i < kW; ++i) {
          block[i] = key + i < count ? code_words(rows + (key + i) * stride, hd, 2 * d, V::set1(factors[i])) : V::zero();
        }
        V::transpose(block);
        const int64_t n = words - d < kW ? words - d : kW;
        for (int64_t i = 0; i < n; ++i) V::store(dst + (d + i) * kKeys + key, block[i]);
      }
    }
  }

  template <typename T>
  static void pack_values(const void* src, int64_t stride, int64_t first, int64_t count, int64_t hd, void* tile) {
    const T* rows = static_cast<const T*>(src);
    const int64_t out_stride = round_up(hd, kAttentionLanes), padded = round_up(count, kAttentionLanes);
    int32_t* dst = static_cast<int32_t*>(tile) + first / 2 * out_stride;
    float* logs = reinterpret_cast<float*>(static_cast<int32_t*>(tile) + kSteps * out_stride) + first;
    float* inverses = logs + kKeys;
    const auto scale_row = [&](int64_t key) {
      const float max = key < count ? largest<V>(rows + key * stride, hd) : 0.0f;
      if (!(max <= std::numeric_limits<float>::max())) {  // lost for all who see it, nothing for the others
        logs[key] = std::numeric_limits<float>::quiet_NaN();
        inverses[key] = 1;
        return 0.0f;
      }
      const float scale = power_above((max < kSmallestCodedRow ? kSmallestCodedRow : max) * (1 / kLargestCode));
      logs[key] = exponent_of(scale);
      inverses[key] = 1 / scale;
      return max < kSmallestCodedRow ? 0.0f : inverses[key];
    };
    for (int64_t key = 0; key < padded; key += 2, dst += out_stride) {
      const F low = V::set1(scale_row(key)), high = V::set1(scale_row(key + 1));
      for (int64_t d = 0; d < out_stride; d += kW) {
        const auto row = [&](int64_t i, F factor) {
          return i < count ? V::mul(elements<V>(rows + i * stride, hd, d), factor) : V::zero();
        };
        W::store(dst + d, W::pairs(row(key, low), row(key + 1, high)));
      }
    }
  }
};

// For activations of type T; `finish` is that of float words.
template <typename W, typename T>
AttentionTile attention_tile_int16(decltype(AttentionTile::finish) finish) {
  using Kernel = TileInt16<W>;
  AttentionTile t = attention_tile<Kernel>(Kernel::template pack_query<T>, Kernel::template pack_keys<T>,
                                           Kernel::template pack_values<T>, finish);
  t.int16 = true;
  return t;
}

}  // namespace qvl::kernels::simd
