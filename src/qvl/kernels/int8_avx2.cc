// Integer linear kernels for AVX2: VPMADDUBSW multiplies 32 pairs of bytes into 16-bit sums of two.
//
// Weights of 4 bits never overflow those sums: 255 * 15 * 2 four times over fits. Weights of 8 bits do, unless the sign
// moves from the weight to x first (128 * 127 * 2 fits); in groups of 128 columns most sums of four do then too
// (int8_wide_avx2.h). Otherwise as int8_avx512vnni.cc with half the lanes.
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

#include "qvl/kernels/int8_pack_avx2.h"
#include "qvl/kernels/int8_vec_avx2.h"
#include "qvl/kernels/int8_wide_avx2.h"

namespace qvl::kernels {
namespace {

using namespace avx2;

inline uint32_t largest(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

template <typename X, int kBits>
void quantize_codes(const void* x, int64_t k, int64_t group, int8_t* q, float* scales) {
  const typename X::Element* src = static_cast<const typename X::Element*>(x);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < int8_padded(k); g += group) {
    __m256i bits = _mm256_setzero_si256();
    __m256 least = _mm256_setzero_ps(), greatest = least;
    for (int64_t i = g; i < g + group; i += 8) {
      const __m256 v = load_first<X>(src + i, k - i);
      bits = _mm256_max_epu32(bits, _mm256_and_si256(_mm256_castps_si256(v), magnitude));
      if constexpr (kBits == 7) {
        least = _mm256_min_ps(least, v);
        greatest = _mm256_max_ps(greatest, v);
      }
    }
    float inverse;
    if constexpr (kBits == 7) {
      // Each has one sign: the order of their magnitudes is that of their bits.
      const __m256i below = _mm256_and_si256(_mm256_castps_si256(least), magnitude);
      const __m256i above = _mm256_and_si256(_mm256_castps_si256(greatest), magnitude);
      inverse = int7_inverse_scale(largest(bits), -std::bit_cast<float>(largest(below)),
                                   std::bit_cast<float>(largest(above)), scales[g / group]);
    } else {
      inverse = int8_inverse_scale(largest(bits), group, scales[g / group]);
    }
    if (inverse == 0) {
      std::memset(q + g, 0, static_cast<size_t>(group));
      continue;
    }
    for (int64_t i = g; i < g + group; i += 16) {
      const __m256 factor = _mm256_set1_ps(inverse);
      const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(load_first<X>(src + i, k - i), factor));
      const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(load_first<X>(src + i + 8, k - i - 8), factor));
      const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
      const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm_packs_epi16(low, high));
    }
  }
}

template <typename X>
void quantize(const void* x, int64_t k, int64_t group, int bits, int8_t* q, float* scales) {
  bits == 7 ? quantize_codes<X, 7>(x, k, group, q, scales) : quantize_codes<X, 8>(x, k, group, q, scales);
}

// ---- GEMM ----
// Panel: for each group of columns [16] weight scales, [16] corrections, [group / 4][16][4] signed values; groups of 128
// columns of 8-bit weights as int8_wide_avx2.h has them.

constexpr int kTileRows = 12;
constexpr int kSumRows = 4;  // whose sums registers hold
constexpr int kVectors = 2;
constexpr int kPanelCols = 8 * kVectors;

size_t panel_bytes(int64_t depth, int64_t group) {
  return static_cast<size_t>(depth / group * kPanelCols * (8 + group));
}

template <int kBits, bool kZero>
void pack_values(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  const int64_t group = w.group();
  const int64_t group_bytes = kPanelCols * (8 + group);
  for (int v = 0; v < kVectors; ++v) {
    const int64_t present = std::clamp<int64_t>(cols - 8 * v, 0, 8);
    const Int8Weight part = w.rows_from(8 * v);
    std::byte* base = packed + v * 32;  // of the group
    int64_t at = 0;                     // column in it
    __m256i sums = _mm256_setzero_si256();
    const auto store16 = [&](__m256i(&words)[4]) {
      transpose_words(words);
      std::byte* p = base + kPanelCols * (8 + at);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(p + i * kPanelCols * 4), words[i]);
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), words[i]));
      }
      at += 16;
      if (at < group) return;
      // x has 128 too much: minus 128 times the sum of the weights. With 8 bits tile() takes x signed.
      const __m256i correction =
          kBits == 4 ? _mm256_madd_epi16(sums, _mm256_set1_epi16(-128)) : _mm256_setzero_si256();
      _mm256_store_si256(reinterpret_cast<__m256i*>(base + kPanelCols * 4), correction);
      sums = _mm256_setzero_si256();
      base += group_bytes;
      at = 0;
    };
    for (int64_t column = begin; column < begin + depth; column += 32) {
      if (column % 128 == 0) {
        for (int64_t n = 0; n < 8; ++n)
          prefetch_next_panel(part.data + n * part.data_stride + column * kBits / 8, part.data_stride, kPanelCols);
      }
      __m256i low[4], high[4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) unpack_two<kBits, kZero>(part, n, present, column, low[n], high[n]);
      store16(low);
      if (column + 16 < begin + depth) store16(high);
    }
    pack_scales(part, present, begin, depth / group, packed + v * 32, group_bytes, kPanelCols);
  }
}

void pack(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  if (w.bits == 8) {
    pack_values<8, false>(w, cols, begin, depth, packed);
    if (w.group() != kInt8Pad) return;
    for (int64_t g = 0; g < depth / kInt8Pad; ++g) {
      std::byte* const at = packed + g * kPanelCols * (8 + kInt8Pad);
      pair_steps<Magnitudes, kStepBytes>(at + kStepsOffset, at + kOrderOffset);
    }
  } else {
    w.zero_points != nullptr ? pack_values<4, true>(w, cols, begin, depth, packed)
                             : pack_values<4, false>(w, cols, begin, depth, packed);
  }
}

// 16-bit sums of kSteps * 4 columns, two products each. They fit: 255 * 8 * 2 eight times over, 255 * 15 * 2 four times.
template <int kM, int kSteps>
inline void tile_pairs(const uint8_t* x, int64_t x_stride, const std::byte* p, __m256i (&pairs)[kM][kVectors]) {
#pragma GCC unroll 8
  for (int s = 0; s < kSteps; ++s) {
    __m256i w[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      w[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(p + (s * kVectors + v) * 32));
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const __m256i xs = repeat_four(x + m * x_stride + 4 * s);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const __m256i product = _mm256_maddubs_epi16(xs, w[v]);
        pairs[m][v] = s == 0 ? product : _mm256_add_epi16(pairs[m][v], product);
        stay_in_order(pairs[m][v]);
      }
    }
  }
}

// kSteps: 4 columns each between two widenings; 0: 8-bit weights, kPaired: their steps are. kOnce: that is all of a group.
template <int kSteps, bool kOnce, bool kPaired, int kM>
inline void tile_rows(const Int8TileArgs& t, int row) {
  float* const c = t.c + row * kPanelCols;
  if (!t.accumulate) std::memset(c, 0, sizeof(float) * kM * kPanelCols);
  const uint8_t* x = t.x + row * t.x_stride;
  const float* x_scales = t.x_scales + row * t.x_scale_stride;
  const int64_t x_stride = t.x_stride, x_scale_stride = t.x_scale_stride, width = t.group;
  const std::byte* p = t.packed;
  for (int64_t g = 0; g < t.groups; ++g) {
    const std::byte* group = p;
    p += kPanelCols * 8;
    __m256i dot[kM][kVectors];
    const auto correct = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const __m256i correction =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(group + kPanelCols * 4 + v * 32));
#pragma GCC unroll 4
        for (int m = 0; m < kM; ++m) dot[m][v] = kOnce ? _mm256_add_epi32(dot[m][v], correction) : correction;
      }
    };
    if constexpr (kSteps == 0) {
      // What is packed needs no correction: x is signed.
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) dot[m][v] = _mm256_setzero_si256();
      }
      const auto* q = reinterpret_cast<const int8_t*>(x);
      if constexpr (kPaired) {
        add_paired_group<kM>(q, x_stride, group, dot);
      } else {
        for (int64_t i = 0; i < width; i += 4) {
          const std::byte* step = p + i * kPanelCols;
          add_step<kM>(q + i, x_stride, load_vector(step), load_vector(step + 32), dot);
        }
      }
    } else if constexpr (kOnce) {
      __m256i pairs[kM][kVectors];
      tile_pairs<kM, kSteps>(x, x_stride, p, pairs);
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) dot[m][v] = widen_pairs(pairs[m][v]);
      }
      correct();
    } else {
      correct();
      for (int64_t i = 0; i < width; i += 4 * kSteps) {
        __m256i pairs[kM][kVectors];
        tile_pairs<kM, kSteps>(x + i, x_stride, p + i * kPanelCols, pairs);
#pragma GCC unroll 4
        for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) dot[m][v] = _mm256_add_epi32(dot[m][v], widen_pairs(pairs[m][v]));
        }
      }
    }
    p += kPanelCols * width;
    x += width;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m256 scale = _mm256_load_ps(reinterpret_cast<const float*>(group + v * 32));
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        float* sums = c + m * kPanelCols + 8 * v;
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x_scales[m * x_scale_stride + g]));
        _mm256_store_ps(sums, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[m][v]), both, _mm256_load_ps(sums)));
      }
    }
  }
}

template <int kM>
inline void tile_width(const Int8TileArgs& t, int row) {
  if (t.wide) return t.group == kInt8Pad ? tile_rows<0, false, true, kM>(t, row) : tile_rows<0, false, false, kM>(t, row);
  const bool long_sums = !t.zero_points && t.group >= 32;
  if (t.group == 16) return tile_rows<4, true, false, kM>(t, row);
  if (!long_sums) return tile_rows<4, false, false, kM>(t, row);
  t.group == 32 ? tile_rows<8, true, false, kM>(t, row) : tile_rows<8, false, false, kM>(t, row);
}

// Some rows after the other, while the panel is in the first-level cache.
void tile(const Int8TileArgs& t) {
  int row = 0;
  for (; row + kSumRows <= t.rows; row += kSumRows) tile_width<kSumRows>(t, row);
  switch (t.rows - row) {
    case 1: return tile_width<1>(t, row);
    case 2: return tile_width<2>(t, row);
    case 3: return tile_width<3>(t, row);
  }
}

}  // namespace

const Int8Kernels& int8_kernels_avx2() {
  static const Int8Kernels kernels = {quantize<F32>,
                                      quantize<BF16>,
                                      int8_gemv_avx2(),
                                      {kTileRows, kPanelCols, true, panel_bytes, pack, tile},
                                      int8_few_rows_avx2(),
                                      int8_seven_avx2()};
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
