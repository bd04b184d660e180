// Flash attention on packed tiles of 8-bit codes by VPDPBUSD (spec 5.4), for bfloat16 activations whose rows all see the same
// keys. What becomes which code: attention_int8_tile.h.
//
// Packed operands are arrays of 32-bit words, four codes along the summed axis each:
//   query  [head_dim/4] signed, 128 times their sum negated (int32), the scale (float)
//   keys   [head_dim/4][kInt8KeyTile] codes + 128, the scales [kInt8KeyTile] (float)
//   values [kInt8KeyTile/4][head_dim rounded up to kAttentionLanes] signed, the scales [the same] (float), then one float that
//          is zero, or NaN when an element of the tile's keys is not finite
#include "qvl/kernels/attention_kernels.h"

#if defined(__x86_64__)

// GCC 12 reports the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "qvl/base/dtype.h"
#include "qvl/kernels/attention_int8_tile.h"

// Until the end of the file: templates are instantiated there. Functions of the standard library must not be
// instantiated here, a linker might keep this copy for everyone.
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#include "qvl/kernels/attention_vec_avx512.h"
// After the vector.
#include "qvl/kernels/attention_tile_simd.h"
#include "qvl/kernels/products_avx512vnni.h"

namespace qvl::kernels {
namespace {

using V = VecAvx512;
constexpr int kW = 16;
// 6 x 4 accumulators, 4 operands and a word that is repeated fill 29 of 32 registers.
constexpr int kR = 6;
constexpr int kC = 4;
constexpr int64_t kKeys = kInt8KeyTile;
// Keys whose weights become one vector of codes.
constexpr int64_t kPanel = 64;
static_assert(kKeys % kPanel == 0);

// One group of rows on its way from scores to values.
struct Group {
  alignas(64) float scores[kR * kKeys];
  alignas(64) uint8_t weights[kR * kKeys];
  alignas(64) float lane_max[kR * kW];
  alignas(64) float shrink[kW];  // what earlier sums shrink by, a row
  alignas(64) float unit[kW];    // what a code of this tile's weights is worth, a row
  alignas(64) float factor[kW];  // makes scores of products with keys, a row
  alignas(64) float top[kW];     // the largest score of the tile, a row
  int64_t first;                 // row
};
struct Scratch {
  Group groups[2];
};

int64_t query_words(int64_t hd) {
  return hd / 4 + 2;
}

// acc[r][v] += the products of words of a[r], `Signed`, with those of b[v] of the other kind.
template <bool SignedRows, int C>
QVL_INLINE void multiply(__m512i (&acc)[kR][C], const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride,
                         int64_t steps) {
  for (int64_t k = 0; k < steps; ++k, b += b_stride) {
    __m512i operand[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) operand[c] = _mm512_loadu_si512(b + c * kW);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const __m512i word = _mm512_set1_epi32(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        add_products(acc[r][c], SignedRows ? operand[c] : word, SignedRows ? word : operand[c]);
      }
    }
  }
}

template <int C>
__attribute__((noinline)) void score_block(const int32_t* q, int64_t words, const int32_t* keys, const float* key_scales,
                                           float* scores, float* lane_max, bool first) {
  __m512i acc[kR][C];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = _mm512_set1_epi32(q[r * (words + 2) + words]);
  }
  multiply<true, C>(acc, q, words + 2, keys, kKeys, words);
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
    __m512 max = first ? V::set1(-std::numeric_limits<float>::infinity()) : V::load(lane_max + r * kW);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const __m512 score = V::mul(_mm512_cvtepi32_ps(acc[r][c]), V::load(key_scales + c * kW));
      V::store(scores + r * kKeys + c * kW, score);
      max = V::max(max, score);
    }
    V::store(lane_max + r * kW, max);
  }
}

template <int C>
__attribute__((noinline)) void value_block(const uint8_t* weights, const float* shrink, const float* unit,
                                           const int32_t* values, const float* value_scales, int64_t stride, int64_t steps,
                                           float* out) {
  __m512i acc[kR][C];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = _mm512_setzero_si512();
  }
  multiply<false, C>(acc, reinterpret_cast<const int32_t*>(weights), kKeys / 4, values, stride, steps);
  __m512 scales[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) scales[c] = V::load(value_scales + c * kW);
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
    const __m512 less = V::set1(shrink[r]), more = V::set1(unit[r]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      float* p = out + r * stride + c * kW;
      V::store(p, V::fma(V::mul(_mm512_cvtepi32_ps(acc[r][c]), scales[c]), more, V::mul(less, V::load(p))));
    }
  }
}

// 2^x for x <= 8 or so, 1e-4 relative.
QVL_INLINE __m512 exp2_of(__m512 x) {
  // What is left of x beside its nearest integer, whose power of two VSCALEFPS gives when told to round down.
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = V::sub(x, n);
  __m512 p = V::set1(0.055171664f);
  p = V::fma(p, f, V::set1(0.24261671f));
  p = V::fma(p, f, V::set1(0.69326097f));
  p = V::fma(p, f, V::set1(0.99992806f));
  return _mm512_scalef_ps(p, n);
}

// Scores of one row become codes of weights. The sum of the codes.
QVL_INLINE __m512i make_weights(const float* scores, int64_t panels, __m512 factor, __m512 top, uint8_t* weights) {
  const auto code = [&](int64_t j) {
    const __m512 x = V::fms(V::load(scores + j * kW), factor, top);
    return _mm512_cvttps_epi32(V::add(exp2_of(x), V::load(kInt8Dither.data() + j * kW)));
  };
  __m512i sum = _mm512_setzero_si512();
  for (int64_t j = 0; j < panels * 4; j += 4) {
    const __m512i codes = _mm512_packus_epi16(_mm512_packs_epi32(code(j), code(j + 1)), _mm512_packs_epi32(code(j + 2), code(j + 3)));
    _mm512_storeu_si512(weights + j * kW, codes);
    sum = _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi8(1));
  }
  return sum;
}

QVL_INLINE void score(const AttendArgs& args, int64_t first, Group* g) {
  const int64_t words = args.head_dim / 4, panels = (args.key_count + kPanel - 1) / kPanel;
  const auto* keys = static_cast<const int32_t*>(args.keys);
  const auto* key_scales = reinterpret_cast<const float*>(keys + words * kKeys);
  const int32_t* q = static_cast<const int32_t*>(args.queries) + first * (words + 2);
  g->first = first;
  simd::for_columns<kC>(panels * 4, [&]<int C>(int64_t j) {
    score_block<C>(q, words, keys + j * kW, key_scales + j * kW, g->scores + j * kW, g->lane_max, j == 0);
  });
  if (args.key_count < panels * kPanel) {
    for (int r = 0; r < kR; ++r) simd::hide_behind<V>(g->scores + r * kKeys, args.key_count, panels * 4, g->lane_max + r * kW);
  }
  alignas(64) float top[kW] = {}, factor[kW] = {};
  for (int r = 0; r < kR; ++r) {
    top[r] = V::reduce_max(V::load(g->lane_max + r * kW));
    std::memcpy(factor + r, q + r * (words + 2) + words + 1, sizeof(float));
  }
  const __m512 f = V::mul(V::load(factor), V::set1(args.scale));
  const __m512 t = V::mul(V::load(top), f), old = V::load_n(args.max + first, kR), now = V::max(old, t);
  V::store_n(args.max + first, now, kR);
  V::store(g->factor, f);
  V::store(g->top, V::sub(t, V::set1(kInt8LargestWeightLog)));
  V::store(g->shrink, simd::exp2_nonpositive<V>(V::sub(old, now)));
  // NaN in a row's scale, or in a key of the tile, is lost in codes: here it comes back.
  const float lost = key_scales[kKeys];
  V::store(g->unit, V::fma(f, V::set1(0.0f), V::fma(simd::exp2_nonpositive<V>(V::sub(t, now)), V::set1(1.0f / kInt8LargestWeight), V::set1(lost))));
}

QVL_INLINE void gather(const AttendArgs& args, Group* g) {
  const int64_t panels = (args.key_count + kPanel - 1) / kPanel, out_stride = round_up(args.head_dim, kAttentionLanes);
  for (int r = 0; r < kR; ++r) {
    float* sum = args.sum + (g->first + r) * kAttentionLanes;
    const __m512i codes = make_weights(g->scores + r * kKeys, panels, V::set1(g->factor[r]), V::set1(g->top[r]), g->weights + r * kKeys);
    V::store(sum, V::fma(_mm512_cvtepi32_ps(codes), V::set1(g->unit[r]), V::mul(V::load(sum), V::set1(g->shrink[r]))));
  }
  const auto* values = static_cast<const int32_t*>(args.values);
  const auto* value_scales = reinterpret_cast<const float*>(values + kKeys / 4 * out_stride);
  float* out = args.out + g->first * out_stride;
  simd::for_columns<kC>((args.head_dim + kW - 1) / kW, [&]<int C>(int64_t j) {
    value_block<C>(g->weights, g->shrink, g->unit, values + j * kW, value_scales + j * kW, out_stride, panels * (kPanel / 4),
                   out + j * kW);
  });
}

void attend(const AttendArgs& args) {
  simd::in_turn(args.rows, kR, static_cast<Scratch*>(args.scratch)->groups,
                [&](int64_t first, Group* g) __attribute__((always_inline)) {
                  score(args, first, g);
                  return true;
                },
                [&](Group* g) __attribute__((always_inline)) { gather(args, g); });
}

size_t query_bytes(int64_t hd) {
  return static_cast<size_t>(query_words(hd)) * sizeof(int32_t);
}
size_t key_tile_bytes(int64_t hd) {
  return static_cast<size_t>((hd / 4 + 1) * kKeys + 1) * sizeof(int32_t);
}
size_t value_tile_bytes(int64_t hd) {
  return static_cast<size_t>(round_up(hd, kAttentionLanes) * (kKeys / 4 + 1)) * sizeof(int32_t);
}
size_t scratch_bytes(int64_t) {
  return sizeof(Scratch);
}

// The factor that makes codes of a row, and in `scale` what a code is worth: NaN when an element is not finite.
QVL_INLINE float row_factor(const BFloat16* row, int64_t hd, float* scale) {
  const float largest = simd::largest<V>(row, hd);
  if (!(largest <= std::numeric_limits<float>::max())) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    return 0;
  }
  if (largest < kSmallestCodedRow) {
    *scale = 0;
    return 0;
  }
  *scale = largest * (1.0f / kInt8LargestCode);
  return kInt8LargestCode / largest;
}

QVL_INLINE __m128i codes_of(__m512 x, __m512 factor) {
  return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(V::mul(x, factor)));
}

void pack_query(const void* src, int64_t hd, void* dst) {
  const auto* row = static_cast<const BFloat16*>(src);
  auto* words = static_cast<int32_t*>(dst);
  auto* codes = static_cast<int8_t*>(dst);
  float scale;
  const __m512 factor = V::set1(row_factor(row, hd, &scale));
  __m512i sum = _mm512_setzero_si512();
  for (int64_t d = 0; d < hd; d += kW) {
    const __m128i c = codes_of(simd::elements<V>(row, hd, d), factor);
    sum = _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(c));
    const int64_t n = hd - d < kW ? hd - d : kW;
    _mm_mask_storeu_epi8(codes + d, static_cast<__mmask16>((1u << n) - 1u), c);
  }
  words[hd / 4] = -128 * _mm512_reduce_add_epi32(sum);
  std::memcpy(words + hd / 4 + 1, &scale, sizeof scale);
}

void pack_keys(const void* src, int64_t stride, int64_t, int64_t count, int64_t hd, void* tile) {
  const auto* rows = static_cast<const BFloat16*>(src);
  const int64_t words = hd / 4, padded = round_up(count, kPanel);
  auto* dst = static_cast<float*>(tile);
  float* scales = dst + words * kKeys;
  float lost = 0;
  for (int64_t key = 0; key < padded; key += kW) {
    float factors[kW];
    for (int i = 0; i < kW; ++i) {
      factors[i] = scales[key + i] = 0;
      if (key + i >= count) continue;
      factors[i] = row_factor(rows + (key + i) * stride, hd, scales + key + i);
      lost += scales[key + i] - scales[key + i];
    }
    for (int64_t d = 0; d < words; d += kW) {
      __m512 block[kW];
      for (int i = 0; i < kW; ++i) {
        const __m512 factor = V::set1(factors[i]);
        __m512i codes = _mm512_setzero_si512();
        if (key + i < count) {
          const BFloat16* row = rows + (key + i) * stride;
          const auto part = [&](int64_t at) { return codes_of(simd::elements<V>(row, hd, 4 * d + at), factor); };
          codes = _mm512_inserti32x4(_mm512_castsi128_si512(part(0)), part(16), 1);
          codes = _mm512_inserti32x4(_mm512_inserti32x4(codes, part(32), 2), part(48), 3);
        }
        block[i] = _mm512_castsi512_ps(_mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80))));
      }
      V::transpose(block);
      const int64_t n = words - d < kW ? words - d : kW;
      for (int64_t i = 0; i < n; ++i) V::store(dst + (d + i) * kKeys + key, block[i]);
    }
  }
  scales[kKeys] = lost;
}

void pack_values(const void* src, int64_t stride, int64_t, int64_t count, int64_t hd, void* tile) {
  const auto* rows = static_cast<const BFloat16*>(src);
  const int64_t out_stride = round_up(hd, kAttentionLanes), panels = (count + kPanel - 1) / kPanel;
  auto* dst = static_cast<int32_t*>(tile);
  auto* scales = reinterpret_cast<float*>(dst + kKeys / 4 * out_stride);
  for (int64_t d = 0; d < out_stride; d += kW) {
    __m512 max = V::zero(), lost = V::zero();
    for (int64_t i = 0; i < count; ++i) {
      const __m512 x = simd::elements<V>(rows + i * stride, hd, d);
      max = V::max(max, _mm512_abs_ps(x));
      lost = V::fma(x, V::zero(), lost);
    }
    const __mmask16 some = _mm512_cmp_ps_mask(max, V::set1(kSmallestCodedRow), _CMP_GE_OQ);
    const __m512 factor = _mm512_maskz_div_ps(some, V::set1(kInt8LargestCode), max);
    V::store(scales + d, V::add(lost, _mm512_maskz_mul_ps(some, max, V::set1(1.0f / kInt8LargestCode))));
    const auto code = [&](int64_t i) {
      if (i >= count) return _mm512_setzero_si512();
      return _mm512_and_si512(_mm512_cvtps_epi32(V::mul(simd::elements<V>(rows + i * stride, hd, d), factor)), _mm512_set1_epi32(255));
    };
    for (int64_t step = 0; step < panels * (kPanel / 4); ++step) {
      // In the order in which four vectors of weights are packed.
      const int64_t key = step / 16 * kPanel + step % 4 * 16 + step % 16 / 4 * 4;
      const __m512i low = _mm512_or_si512(code(key), _mm512_slli_epi32(code(key + 1), 8));
      const __m512i high = _mm512_or_si512(code(key + 2), _mm512_slli_epi32(code(key + 3), 8));
      _mm512_storeu_si512(dst + step * out_stride + d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

}  // namespace

AttentionTile attention_tile_int8_avx512vnni() {
  AttentionTile t;
  t.key_tile = kKeys;
  t.row_group = kR;
  t.query_bytes = query_bytes;
  t.key_tile_bytes = key_tile_bytes;
  t.value_tile_bytes = value_tile_bytes;
  t.scratch_bytes = scratch_bytes;
  t.pack_query = pack_query;
  t.pack_keys = pack_keys;
  t.pack_values = pack_values;
  t.attend = attend;
  t.finish = attention_kernels_avx512().tile_bf16.finish;
  return t;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
