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

#include "qvl/kernels/int8_vec_avx2.h"
#include "qvl/kernels/int8_wide_avx2.h"

namespace qvl::kernels {
namespace {

using namespace avx2;

// 8 elements, zeros from `count` on.
template <typename T>
inline __m256 load_first(const typename T::Element* p, int64_t count) {
  return count >= 8 ? T::load(p) : T::load_n(p, std::max<int64_t>(0, count));
}

// 32 bytes, zeros from `count` on.
inline __m256i load_bytes(const std::byte* p, int64_t count) {
  if (count >= 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  alignas(32) std::byte part[32] = {};
  if (count > 0) std::memcpy(part, p, static_cast<size_t>(count));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(part));
}

inline uint32_t largest(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

template <typename X>
void quantize(const void* x, int64_t k, int64_t group, int8_t* q, float* scales) {
  const typename X::Element* src = static_cast<const typename X::Element*>(x);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < int8_padded(k); g += group) {
    __m256i bits = _mm256_setzero_si256();
    for (int64_t i = g; i < g + group; i += 8) {
      bits = _mm256_max_epu32(bits, _mm256_and_si256(_mm256_castps_si256(load_first<X>(src + i, k - i)), magnitude));
    }
    const float inverse = int8_inverse_scale(largest(bits), scales[g / group]);
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

// 32 columns from `column` of row `row`, `p` pointing at it, as signed bytes; zeros beyond the last.
template <int kBits, bool kZero>
inline __m256i unpack32(const Int8Weight& w, const std::byte* p, int64_t row, int64_t column) {
  const int64_t left = w.k - column;
  __m256i v, zero;
  if constexpr (kBits == 8) {
    v = load_bytes(p + column, left);
    zero = _mm256_set1_epi8(static_cast<char>(128));
  } else {
    const std::byte* from = p + column / 2;
    __m128i packed = _mm_setzero_si128();
    if (const int64_t bytes = w.data_stride - column / 2; bytes >= 16) {
      packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    } else {
      std::memcpy(&packed, from, static_cast<size_t>(bytes));
    }
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(packed, nibble), high = _mm_and_si128(_mm_srli_epi16(packed, 4), nibble);
    v = _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
    zero = _mm256_set1_epi8(8);
    if constexpr (kZero) {
      const auto zero_at = [&](int64_t i) {
        return _mm_set1_epi8(i < left ? static_cast<char>(int8_zero_point(w, row, (column + i) / w.block)) : char{0});
      };
      zero = _mm256_set_m128i(zero_at(16), zero_at(0));
    }
  }
  v = _mm256_sub_epi8(v, zero);
  if (left >= 32) return v;
  const __m256i index =
      _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
                       27, 28, 29, 30, 31);
  return _mm256_and_si256(v, _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(left)), index));
}

// The rows of a panel are too many streams for the processor to foresee: asks for those of the next one.
inline void prefetch_next_panel(const std::byte* p, int64_t row_bytes) {
  _mm_prefetch(reinterpret_cast<const char*>(p + kPanelCols * row_bytes), _MM_HINT_T0);
}

// The scales of 8 outputs from the first of `w`, `present` of them there, in every group of the panel.
template <typename Scale>
void pack_scales(const Int8Weight& w, int64_t present, int64_t begin, int64_t groups, std::byte* packed,
                 int64_t group_bytes) {
  const int64_t groups_a_block = w.block / w.group();
  const int64_t first_group = begin / w.group();
  for (int64_t g = 0; g < groups;) {
    const int64_t block = (first_group + g) / groups_a_block;
    const int64_t left = w.blocks() - block;
    __m256 scales[8];
    for (int64_t n = 0; n < 8; ++n) {
      const auto* row = reinterpret_cast<const typename Scale::Element*>(w.scales + n * w.scale_stride);
      prefetch_next_panel(reinterpret_cast<const std::byte*>(row + block), w.scale_stride);
      scales[n] = n < present && left > 0 ? load_first<Scale>(row + block, left) : _mm256_setzero_ps();
    }
    transpose_8x8(scales);
    for (int64_t b = 0; b < 8; ++b) {
      for (; g < groups && (first_group + g) / groups_a_block == block + b; ++g) {
        _mm256_store_ps(reinterpret_cast<float*>(packed + g * group_bytes), scales[b]);
      }
    }
  }
}

// 32 columns of rows `row` and row + 4, the first 16 of both in `low`, the others in `high`; zeros for rows from
// `present` on and beyond the last column.
template <int kBits, bool kZero>
inline void unpack_two(const Int8Weight& w, int64_t row, int64_t present, int64_t column, __m256i& low, __m256i& high) {
  const std::byte* a = w.data + row * w.data_stride;
  const std::byte* b = a + 4 * w.data_stride;
  if (kBits == 4 && !kZero && row + 4 < present && column + 32 <= w.k) {
    const auto load = [column](const std::byte* p) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + column / 2));
    };
    const __m256i packed = _mm256_set_m128i(load(b), load(a));
    const __m256i nibble = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    const __m256i even = _mm256_and_si256(packed, nibble);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
    low = _mm256_sub_epi8(_mm256_unpacklo_epi8(even, odd), eight);
    high = _mm256_sub_epi8(_mm256_unpackhi_epi8(even, odd), eight);
    return;
  }
  const bool inside = column < w.k;
  const __m256i zero = _mm256_setzero_si256();
  const __m256i first = inside && row < present ? unpack32<kBits, kZero>(w, a, row, column) : zero;
  const __m256i second = inside && row + 4 < present ? unpack32<kBits, kZero>(w, b, row + 4, column) : zero;
  low = _mm256_permute2x128_si256(first, second, 0x20);
  high = _mm256_permute2x128_si256(first, second, 0x31);
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
          prefetch_next_panel(part.data + n * part.data_stride + column * kBits / 8, part.data_stride);
      }
      __m256i low[4], high[4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) unpack_two<kBits, kZero>(part, n, present, column, low[n], high[n]);
      store16(low);
      if (column + 16 < begin + depth) store16(high);
    }
    if (w.scale_type == DType::kF32) {
      pack_scales<F32>(part, present, begin, depth / group, packed + v * 32, group_bytes);
    } else if (w.scale_type == DType::kBF16) {
      pack_scales<BF16>(part, present, begin, depth / group, packed + v * 32, group_bytes);
    } else {
      pack_scales<F16>(part, present, begin, depth / group, packed + v * 32, group_bytes);
    }
  }
}

void pack(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  if (w.bits == 8) {
    pack_values<8, false>(w, cols, begin, depth, packed);
    if (w.group() != kInt8Pad) return;
    for (int64_t g = 0; g < depth / kInt8Pad; ++g) pair_steps(packed + g * kPanelCols * (8 + kInt8Pad));
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
                                      int8_gemv_one_avx2()};
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
