// Flash attention on packed tiles over a vector type V and a dot product D (below). Spec sections 5.4
// and 6.4. One group of kTileRows query rows meets one tile: scores in registers, their maxima, weights by a
// fast exp2, and the weighted sum of values, again in registers. Include after the target pragma and V's
// header; everything is a template, so that each instruction set gets functions of its own.
//
// Packed operands are arrays of 32-bit words; a word is D::kUnit elements along the summed axis:
//   query  [head_dim/kUnit]
//   keys   [head_dim/kUnit][kKeyTile]
//   values [kKeyTile/kUnit][head_dim rounded up to kAttentionLanes]
#pragma once

#include <cstdint>
#include <limits>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_kernels.h"

namespace qvl::kernels::simd {

// 2^x for x <= 0, 2.7 * 2^-24 relative; x <= -127 gives zero, NaN stays NaN.
template <typename V>
QVL_INLINE typename V::F exp2_nonpositive(typename V::F x) {
  using F = typename V::F;
  const F magic = V::set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  x = V::max(V::set1(-127.0f), x);
  const F n = V::add(x, magic);
  const F f = V::sub(x, V::sub(n, magic));
  // Minimax for 2^f, |f| <= 1/2, with the constant term exactly 1, so that x = -127 ends at exactly zero.
  F p = V::set1(0.001326472614891827f);
  p = V::fma(p, f, V::set1(0.009671512991189957f));
  p = V::fma(p, f, V::set1(0.05550733581185341f));
  p = V::fma(p, f, V::set1(0.24022242426872253f));
  p = V::fma(p, f, V::set1(0.6931470036506653f));
  p = V::fma(p, f, V::set1(1.0f));
  return V::add_exponent(p, n);
}

// Scores of a row behind its last visible key become -inf; lane_max [V::kWidth] gets the maxima of the others.
template <typename V>
static __attribute__((noinline)) void hide_behind(float* scores, int64_t visible, int64_t vectors, float* lane_max) {
  const typename V::F hidden = V::set1(-std::numeric_limits<float>::infinity());
  typename V::F max = hidden;
  for (int64_t j = 0; j < vectors; ++j, scores += V::kWidth) {
    const int64_t left = visible - j * V::kWidth, n = left < 0 ? 0 : left > V::kWidth ? V::kWidth : left;
    const typename V::F v = V::first_lanes(V::load(scores), hidden, n);
    V::store(scores, v);
    max = V::max(max, v);
  }
  V::store(lane_max, max);
}

// fn<C>(first) over `vectors` columns in nearly equal parts of at most kC.
template <int kC, typename Fn>
QVL_INLINE void for_columns(int64_t vectors, const Fn& fn) {
  static_assert(kC == 2 || kC == 4 || kC == 8);
  for (int64_t j = 0; j < vectors;) {
    const int64_t left = vectors - j, parts = (left + kC - 1) / kC, c = (left + parts - 1) / parts;
    if constexpr (kC == 8) {
      if (c == 8) fn.template operator()<8>(j);
      if (c == 7) fn.template operator()<7>(j);
      if (c == 6) fn.template operator()<6>(j);
      if (c == 5) fn.template operator()<5>(j);
    }
    if constexpr (kC >= 4) {
      if (c == 4) fn.template operator()<4>(j);
      if (c == 3) fn.template operator()<3>(j);
    }
    if (c == 2) fn.template operator()<2>(j);
    if (c == 1) fn.template operator()<1>(j);
    j += c;
  }
}

// Groups of `step` rows through score(first, group), false where there is nothing to gather, and gather(group). The scores of a
// group come before the weights of the group ahead: the latency of its maxima hides behind them.
template <typename Group, typename Score, typename Gather>
QVL_INLINE void in_turn(int64_t rows, int64_t step, Group (&groups)[2], const Score& score, const Gather& gather) {
  Group* next = &groups[0];
  Group* ready = nullptr;
  for (int64_t first = 0; first < rows; first += step) {
    if (!score(first, next)) continue;
    if (ready != nullptr) gather(ready);
    ready = next;
    next = next == &groups[0] ? &groups[1] : &groups[0];
  }
  if (ready != nullptr) gather(ready);
}

// Elements [at, at + V::kWidth) of a row of hd, zeros behind it.
template <typename V, typename T>
QVL_INLINE typename V::F elements(const T* row, int64_t hd, int64_t at) {
  if (at + V::kWidth <= hd) return V::load(row + at);
  return at < hd ? V::load_n(row + at, hd - at) : V::zero();
}

// The largest magnitude of a row; not finite when an element is not.
template <typename V, typename T>
QVL_INLINE float largest(const T* row, int64_t hd) {
  typename V::F max = V::zero(), lost = V::zero();
  for (int64_t d = 0; d < hd; d += V::kWidth) {
    const typename V::F x = elements<V>(row, hd, d);
    max = V::max(max, V::max(x, V::sub(V::zero(), x)));
    lost = V::fma(x, V::zero(), lost);
  }
  return V::reduce_max(max) + V::reduce_add(lost);
}

// Products of float words.
template <typename V>
struct DotF32 {
  using F = typename V::F;
  static constexpr int kUnit = 1;
  static constexpr int kKeyTile = 64;
  QVL_INLINE F mac(F sum, F a, F b) { return V::fma(a, b, sum); }
  // Stores the weights of one row, leaves them as they are in place, and adds them to sum.
  QVL_INLINE F keep_weights(float* scores, float*, int64_t vectors, F scale, F max, F sum) {
    for (int64_t j = 0; j < vectors; ++j) {
      const F w = exp2_nonpositive<V>(V::fms(V::load(scores + j * V::kWidth), scale, max));
      V::store(scores + j * V::kWidth, w);
      sum = V::add(sum, w);
    }
    return sum;
  }
  static constexpr bool kWeightsInPlace = true;
};

template <typename V, typename D>
struct Tile {
  using F = typename V::F;
  static constexpr int kW = V::kWidth;
  static constexpr int kR = V::kTileRows;
  static constexpr int kC = V::kTileVecs;
  static constexpr int64_t kKeys = D::kKeyTile;
  static constexpr int64_t kRowGroup = kR;
  static constexpr int64_t kWeightWords = kKeys / D::kUnit;

  // One group of rows on its way from scores to values.
  struct Group {
    alignas(64) float scores[kR * kKeys];
    alignas(64) float weights[D::kWeightsInPlace ? 1 : kR * kWeightWords];
    alignas(64) float lane_max[kR * kW];
    alignas(64) float row[kW];  // one value per row: its maximum, then what its earlier sums shrink by
    int64_t first;              // row
    int64_t seen;               // keys that the row that sees most sees
  };
  struct Scratch {
    Group groups[2];
  };

  // c[r, v] += sum over steps of a[r][step] * b[step][v]: the inner loop of both products.
  template <int C>
  QVL_INLINE void multiply(F (&acc)[kR][C], const float* a, int64_t a_stride, const float* b,
                           int64_t b_stride, int64_t steps) {
    for (int64_t k = 0; k < steps; ++k, b += b_stride) {
      F operand[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) operand[c] = V::load(b + c * kW);
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        const F broadcast = V::set1(a[r * a_stride + k]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = D::mac(acc[r][c], operand[c], broadcast);
      }
    }
  }

  template <int C>
  static __attribute__((noinline)) void score_block(const float* q, int64_t words, const float* keys,
                                                    float* scores, float* lane_max, bool first) {
    F acc[kR][C];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = V::zero();
    }
    multiply<C>(acc, q, words, keys, kKeys, words);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      F max = acc[r][0];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        V::store(scores + r * kKeys + c * kW, acc[r][c]);
        max = V::max(max, acc[r][c]);
      }
      if (!first) max = V::max(max, V::load(lane_max + r * kW));
      V::store(lane_max + r * kW, max);
    }
  }

  template <int C>
  static __attribute__((noinline)) void value_block(const float* weights, int64_t weight_stride,
                                                    const float* shrink, const float* values,
                                                    int64_t value_stride, int64_t steps, float* out,
                                                    int64_t out_stride) {
    F acc[kR][C];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const F factor = V::set1(shrink[r]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = V::mul(V::load(out + r * out_stride + c * kW), factor);
    }
    multiply<C>(acc, weights, weight_stride, values, value_stride, steps);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) V::store(out + r * out_stride + c * kW, acc[r][c]);
    }
  }

  // First half of a group's way: scores, new maxima, and by how much the sums so far shrink. False if no row
  // of the group sees a key of this tile.
  QVL_INLINE bool score(const AttendArgs& args, int64_t first, Group* g) {
    int32_t visible[kR];
    int64_t most = 0, least = args.key_count;
    for (int r = 0; r < kR; ++r) {
      visible[r] = args.visible == nullptr ? static_cast<int32_t>(args.key_count) : args.visible[first + r];
      if (visible[r] > most) most = visible[r];
      if (visible[r] < least) least = visible[r];
    }
    if (most == 0) return false;
    g->first = first;
    g->seen = most;
    const int64_t words = args.head_dim / D::kUnit, vectors = (most + kW - 1) / kW;
    const auto* keys = static_cast<const float*>(args.keys);
    const float* q = static_cast<const float*>(args.queries) + first * words;
    for_columns<kC>(vectors, [&]<int C>(int64_t j) {
      score_block<C>(q, words, keys + j * kW, g->scores + j * kW, g->lane_max, j == 0);
    });
    if (least < vectors * kW) {
      for (int r = 0; r < kR; ++r) hide_behind<V>(g->scores + r * kKeys, visible[r], vectors, g->lane_max + r * kW);
    }

    for (int r = 0; r < kR; ++r) g->row[r] = V::reduce_max(V::load(g->lane_max + r * kW));
    const F old = V::load_n(args.max + first, kR);
    const F now = V::max(old, V::mul(V::load_n(g->row, kR), V::set1(args.scale)));
    V::store_n(args.max + first, now, kR);
    V::store(g->row, exp2_nonpositive<V>(V::sub(old, now)));
    return true;
  }

  // Second half: weights, their sums, and the weighted sums of values.
  QVL_INLINE void gather(const AttendArgs& args, Group* g) {
    const int64_t vectors = (g->seen + kW - 1) / kW, out_stride = round_up(args.head_dim, kAttentionLanes);
    const F scale = V::set1(args.scale);
    for (int r = 0; r < kR; ++r) {
      float* sum = args.sum + (g->first + r) * kAttentionLanes;
      const F start = V::mul(V::load(sum), V::set1(g->row[r]));
      V::store(sum, D::keep_weights(g->scores + r * kKeys, g->weights + r * kWeightWords, vectors, scale,
                                    V::set1(args.max[g->first + r]), start));
    }
    const auto* values = static_cast<const float*>(args.values);
    const float* weights = D::kWeightsInPlace ? g->scores : g->weights;
    float* out = args.out + g->first * out_stride;
    for_columns<kC>((args.head_dim + kW - 1) / kW, [&]<int C>(int64_t j) {
      value_block<C>(weights, kWeightWords, g->row, values + j * kW, out_stride,
                     (g->seen + D::kUnit - 1) / D::kUnit, out + j * kW, out_stride);
    });
  }

  static void attend(const AttendArgs& args) {
    in_turn(args.rows, kR, static_cast<Scratch*>(args.scratch)->groups,
            [&](int64_t first, Group* g) __attribute__((always_inline)) { return score(args, first, g); },
            [&](Group* g) __attribute__((always_inline)) { gather(args, g); });
  }

  template <typename T>
  static void finish(const float* out, const float* sum, int64_t hd, void* dst) {
    T* p = static_cast<T*>(dst);
    F total = V::load(sum);
    for (int64_t i = kW; i < kAttentionLanes; i += kW) total = V::add(total, V::load(sum + i));
    const F inverse = V::set1(1.0f / V::reduce_add(total));
    int64_t i = 0;
    // Adding zero turns a negative zero into a positive one.
    for (; i + kW <= hd; i += kW) V::store(p + i, V::fma(V::load(out + i), inverse, V::zero()));
    if (i < hd) V::store_n(p + i, V::fma(V::load(out + i), inverse, V::zero()), hd - i);
  }

  static size_t query_bytes(int64_t hd) {
    return static_cast<size_t>(hd / D::kUnit) * sizeof(float);
  }
  static size_t key_tile_bytes(int64_t hd) {
    return static_cast<size_t>(hd / D::kUnit * kKeys) * sizeof(float);
  }
  static size_t value_tile_bytes(int64_t hd) {
    return static_cast<size_t>(round_up(hd, kAttentionLanes) * kWeightWords) * sizeof(float);
  }
  static size_t scratch_bytes(int64_t) {
    return sizeof(Scratch);
  }

  // Packing of float words from elements T, widened where needed.
  template <typename T>
  static void pack_query(const void* src, int64_t hd, void* dst) {
    const T* p = static_cast<const T*>(src);
    float* q = static_cast<float*>(dst);
    int64_t i = 0;
    for (; i + kW <= hd; i += kW) V::store(q + i, V::load(p + i));
    if (i < hd) V::store_n(q + i, V::load_n(p + i, hd - i), hd - i);
  }

  template <typename T>
  static void pack_keys(const void* src, int64_t stride, int64_t first, int64_t count, int64_t hd,
                        void* tile) {
    const T* p = static_cast<const T*>(src);
    float* dst = static_cast<float*>(tile) + first;
    transpose_rows([=](int64_t key) { return p + key * stride; }, count, hd, dst);
  }

  // row(key) is a row of `words` elements that V loads as words; dst[words][kKeys] gets them as columns, and
  // zeros up to a whole panel.
  template <typename Row>
  QVL_INLINE void transpose_rows(const Row& row, int64_t count, int64_t words, float* dst) {
    const int64_t padded = round_up(count, kAttentionLanes);
    for (int64_t key = 0; key < padded; key += kW) {
      for (int64_t d = 0; d < words; d += kW) {
        F block[kW];
        if (key + kW <= count && d + kW <= words) {
#pragma GCC unroll 16
          for (int i = 0; i < kW; ++i) block[i] = V::load(row(key + i) + d);
          V::transpose(block);
#pragma GCC unroll 16
          for (int i = 0; i < kW; ++i) V::store(dst + (d + i) * kKeys + key, block[i]);
          continue;
        }
        const int64_t n = words - d < kW ? words - d : kW;
        for (int i = 0; i < kW; ++i) block[i] = key + i < count ? V::load_n(row(key + i) + d, n) : V::zero();
        V::transpose(block);
        for (int i = 0; i < n; ++i) V::store(dst + (d + i) * kKeys + key, block[i]);
      }
    }
  }

  template <typename T>
  static void pack_values(const void* src, int64_t stride, int64_t first, int64_t count, int64_t hd,
                          void* tile) {
    const T* p = static_cast<const T*>(src);
    const int64_t out_stride = round_up(hd, kAttentionLanes);
    float* dst = static_cast<float*>(tile) + first * out_stride;
    const int64_t padded = round_up(count, kAttentionLanes);
    for (int64_t key = 0; key < padded; ++key, dst += out_stride) {
      int64_t d = 0;
      if (key < count) {
        for (; d + kW <= hd; d += kW) V::store(dst + d, V::load(p + key * stride + d));
      }
      for (; d < out_stride; d += kW) {
        const int64_t left = hd - d, n = key < count ? (left < 0 ? 0 : left < kW ? left : kW) : 0;
        V::store(dst + d, n == 0 ? V::zero() : V::load_n(p + key * stride + d, n));
      }
    }
  }
};

// The tile of a kernel, and what depends on the type of activations.
template <typename Kernel>
AttentionTile attention_tile(decltype(AttentionTile::pack_query) pack_query, decltype(AttentionTile::pack_keys) pack_keys,
                             decltype(AttentionTile::pack_values) pack_values, decltype(AttentionTile::finish) finish) {
  AttentionTile t;
  t.key_tile = Kernel::kKeys;
  t.row_group = Kernel::kRowGroup;
  t.query_bytes = Kernel::query_bytes;
  t.key_tile_bytes = Kernel::key_tile_bytes;
  t.value_tile_bytes = Kernel::value_tile_bytes;
  t.scratch_bytes = Kernel::scratch_bytes;
  t.pack_query = pack_query;
  t.pack_keys = pack_keys;
  t.pack_values = pack_values;
  t.attend = Kernel::attend;
  t.finish = finish;
  return t;
}

// The tile of float words for activations of type T.
template <typename V, typename T>
AttentionTile attention_tile_f32_words() {
  using Kernel = Tile<V, DotF32<V>>;
  return attention_tile<Kernel>(Kernel::template pack_query<T>, Kernel::template pack_keys<T>,
                                Kernel::template pack_values<T>, Kernel::template finish<T>);
}

}  // namespace qvl::kernels::simd
