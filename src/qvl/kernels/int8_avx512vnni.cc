// Integer linear kernels for AVX-512 with VNNI: VPDPBUSD multiplies 64 pairs of bytes into 16 sums. GEMVs stand in
// int8_gemv_avx512vnni.cc and int8_few_rows_avx512vnni.cc.
//
// GEMM. Panel: for each group of columns [32] weight scales, [32] corrections, [group / 4][32][4] signed values. Tile:
// 6 rows x 32 outputs; x is unsigned (q + 128), what that adds is in the corrections.
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "qvl/kernels/table.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#include "qvl/kernels/products_avx512vnni.h"

namespace qvl::kernels {
namespace {

using namespace avx512;

__mmask64 first_bytes(int64_t n) {
  return n >= 64 ? ~__mmask64{0} : n <= 0 ? __mmask64{0} : (__mmask64{1} << n) - 1;
}

template <typename X, int kBits>
void quantize_codes(const void* x, int64_t k, int64_t group, int8_t* q, float* scales) {
  const typename X::Element* src = static_cast<const typename X::Element*>(x);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < int8_padded(k); g += group) {
    __m512i bits = _mm512_setzero_si512();
    __m512 least = _mm512_setzero_ps(), greatest = least;
    for (int64_t i = g; i < g + group; i += 16) {
      const __m512 v = X::load(src + i, first_lanes(std::clamp<int64_t>(k - i, 0, 16)));
      bits = _mm512_max_epu32(bits, _mm512_and_si512(_mm512_castps_si512(v), magnitude));
      if constexpr (kBits == 7) {
        least = _mm512_min_ps(least, v);
        greatest = _mm512_max_ps(greatest, v);
      }
    }
    const uint32_t absmax = _mm512_reduce_max_epu32(bits);
    float inverse;
    if constexpr (kBits == 7) {
      inverse = int7_inverse_scale(absmax, _mm512_reduce_min_ps(least), _mm512_reduce_max_ps(greatest), scales[g / group]);
    } else {
      inverse = int8_inverse_scale(absmax, group, scales[g / group]);
    }
    if (inverse == 0) {
      std::memset(q + g, 0, static_cast<size_t>(group));
      continue;
    }
    for (int64_t i = g; i < g + group; i += 16) {
      const __m512 v = _mm512_mul_ps(X::load(src + i, first_lanes(std::clamp<int64_t>(k - i, 0, 16))), _mm512_set1_ps(inverse));
      const __m512i rounded = _mm512_cvtps_epi32(v);  // to nearest even
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtsepi32_epi8(rounded));
    }
  }
}

template <typename X>
void quantize(const void* x, int64_t k, int64_t group, int bits, int8_t* q, float* scales) {
  bits == 7 ? quantize_codes<X, 7>(x, k, group, q, scales) : quantize_codes<X, 8>(x, k, group, q, scales);
}

constexpr int kTileRows = 6;
constexpr int kVectors = 2;
constexpr int kPanelCols = 16 * kVectors;

size_t panel_bytes(int64_t depth, int64_t group) {
  return static_cast<size_t>(depth / group * kPanelCols * (8 + group));
}

// 64 columns from `column` of one row, `p` pointing at the row, as signed bytes; zeros beyond the last. kWhole: all 64 are
// there.
template <int kBits, bool kZero, bool kWhole>
inline __m512i unpack64(const Int8Weight& w, const std::byte* p, int64_t row, int64_t column) {
  const int64_t left = kWhole ? 64 : w.k - column;
  if constexpr (kBits == 8) {
    const __m512i v = left >= 64 ? _mm512_loadu_si512(p + column) : _mm512_maskz_loadu_epi8(first_bytes(left), p + column);
    return _mm512_maskz_sub_epi8(first_bytes(left), v, _mm512_set1_epi8(static_cast<char>(128)));
  } else {
    const int64_t bytes = kWhole ? 32 : w.data_stride - column / 2;
    const std::byte* from = p + column / 2;
    const __m256i packed = bytes >= 32 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                                       : _mm256_maskz_loadu_epi8(static_cast<__mmask32>(first_bytes(bytes)), from);
    // Byte i in lanes of 16 bits, its high nibble moved to the upper byte.
    const __m512i wide = _mm512_cvtepu8_epi16(packed);
    const __m512i v = _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
    if constexpr (kZero) {
      alignas(64) uint8_t zeros[64];
      for (int64_t i = 0; i < 64; i += 16) {
        std::memset(zeros + i, i < left ? int8_zero_point(w, row, (column + i) / w.block) : 0, 16);
      }
      return _mm512_maskz_sub_epi8(first_bytes(left), v, _mm512_load_si512(zeros));
    }
    return _mm512_maskz_sub_epi8(first_bytes(left), v, _mm512_set1_epi8(8));
  }
}

// The scales of 16 outputs from the first of `w`, `present` of them there, in every group of the panel.
template <typename Scale>
void pack_scales(const Int8Weight& w, int64_t present, int64_t begin, int64_t groups, std::byte* packed,
                 int64_t group_bytes) {
  const int64_t groups_a_block = w.block / w.group();
  const int64_t first_group = begin / w.group();
  __m512 factors = _mm512_setzero_ps();
  if constexpr (std::is_same_v<Scale, I8>) {
    alignas(64) float of_rows[16] = {};
    int8_row_factors(w, 1, present, of_rows);
    factors = _mm512_load_ps(of_rows);
  }
  for (int64_t g = 0; g < groups;) {
    const int64_t block = (first_group + g) / groups_a_block;
    const int64_t left = w.blocks() - block;
    __m512 scales[16];
    for (int64_t n = 0; n < 16; ++n) {
      const auto* row = reinterpret_cast<const typename Scale::Element*>(w.scales + n * w.scale_stride);
      // Those of the next panel.
      _mm_prefetch(reinterpret_cast<const char*>(w.scales + (n + kPanelCols) * w.scale_stride) + block * static_cast<int64_t>(sizeof(*row)), _MM_HINT_T0);
      scales[n] = n < present && left > 0 ? Scale::load(row + block, first_lanes(std::min<int64_t>(16, left)))
                                          : _mm512_setzero_ps();
    }
    transpose_16x16(scales);
    if constexpr (std::is_same_v<Scale, I8>) {
      for (__m512& of_rows : scales) of_rows = _mm512_mul_ps(of_rows, factors);
    }
    for (int64_t b = 0; b < 16; ++b) {
      for (; g < groups && (first_group + g) / groups_a_block == block + b; ++g) {
        _mm512_store_ps(reinterpret_cast<float*>(packed + g * group_bytes), scales[b]);
      }
    }
  }
}

template <int kBits, bool kZero>
void pack_values(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  const int64_t group = w.group();
  const int64_t group_bytes = kPanelCols * (8 + group), group_words = group / 4;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t present = std::clamp<int64_t>(cols - 16 * v, 0, 16);
    std::byte* to = packed + v * 64;  // of the group
    __m512i sums = _mm512_setzero_si512();
    int64_t word = 0;  // of the group
    for (int64_t column = begin; column < begin + depth; column += 64) {
      const int64_t end = std::min(column + 64, begin + depth);
      __m512 words[16];
      const std::byte* p = w.data + 16 * v * w.data_stride;
      // The rows of a panel are too many streams for the processor to foresee: ask for those of the next one.
      const std::byte* ahead = p + kPanelCols * w.data_stride + column * kBits / 8;
      if (present == 16 && column + 64 <= w.k) [[likely]] {
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n, p += w.data_stride, ahead += w.data_stride) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
          words[n] = _mm512_castsi512_ps(unpack64<kBits, kZero, true>(w, p, 16 * v + n, column));
        }
      } else {
        for (int64_t n = 0; n < 16; ++n, p += w.data_stride) {
          const bool inside = n < present && column < w.k;
          words[n] = _mm512_castsi512_ps(inside ? unpack64<kBits, kZero, false>(w, p, 16 * v + n, column) : _mm512_setzero_si512());
        }
      }
      transpose_16x16(words);
      // Word i of all 16 outputs: columns column + 4 i .. + 3.
      for (int64_t i = 0; i < (end - column) / 4; ++i) {
        const __m512i values = _mm512_castps_si512(words[i]);
        _mm512_store_si512(to + kPanelCols * 8 + word * kVectors * 64, values);
        sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(static_cast<char>(128)), values);
        if (++word == group_words) {
          // x has 128 too much: minus 128 times the sum of the weights.
          _mm512_store_si512(to + kPanelCols * 4, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
          sums = _mm512_setzero_si512();
          word = 0;
          to += group_bytes;
        }
      }
    }
    const Int8Weight part = w.rows_from(16 * v);
    if (w.scale_type == DType::kF32) {
      pack_scales<F32>(part, present, begin, depth / group, packed + v * 64, group_bytes);
    } else if (w.scale_type == DType::kI8) {
      pack_scales<I8>(part, present, begin, depth / group, packed + v * 64, group_bytes);
    } else if (w.scale_type == DType::kBF16) {
      pack_scales<BF16>(part, present, begin, depth / group, packed + v * 64, group_bytes);
    } else {
      pack_scales<F16>(part, present, begin, depth / group, packed + v * 64, group_bytes);
    }
  }
}

void pack(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  if (w.bits == 8) {
    pack_values<8, false>(w, cols, begin, depth, packed);
  } else {
    w.zero_points != nullptr ? pack_values<4, true>(w, cols, begin, depth, packed)
                             : pack_values<4, false>(w, cols, begin, depth, packed);
  }
}

// kChunk: columns between two turns of the inner loop; the group or, kMore, a part of it. kScalef: scales of x are powers of
// two, and scales are multiplied by VSCALEFPS. It gives the bits of a multiplication, which would take turns with VPDPBUSD and FMA.
template <int kM, int kChunk, bool kMore, bool kScalef>
inline void tile_rows(const Int8TileArgs& t) {
  __m512 acc[kM][kVectors];
#pragma GCC unroll 6
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      acc[m][v] = t.accumulate ? _mm512_load_ps(t.c + m * kPanelCols + 16 * v) : _mm512_setzero_ps();
    }
  }
  const uint8_t* x = t.x;
  const std::byte* p = t.packed;
  for (int64_t g = 0; g < t.groups; ++g) {
    const std::byte* group = p;
    p += kPanelCols * 8;
    __m512i dot[kM][kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m512i correction = _mm512_load_si512(group + kPanelCols * 4 + v * 64);
#pragma GCC unroll 6
      for (int m = 0; m < kM; ++m) dot[m][v] = correction;
    }
    for (int64_t i = 0; i < (kMore ? t.group : kChunk); i += kChunk) {
#pragma GCC unroll 8
      for (int s = 0; s < kChunk / 4; ++s) {
        __m512i w[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(p + (s * kVectors + v) * 64);
#pragma GCC unroll 6
        for (int m = 0; m < kM; ++m) {
          int32_t four;
          std::memcpy(&four, x + m * t.x_stride + i + 4 * s, sizeof(four));
          const __m512i xs = _mm512_set1_epi32(four);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) add_products(dot[m][v], xs, w[v]);
        }
      }
      p += kVectors * (kChunk / 4) * 64;
    }
    x += t.group;
    __m512 scales[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) scales[v] = _mm512_load_ps(reinterpret_cast<const float*>(group + v * 64));
#pragma GCC unroll 6
    for (int m = 0; m < kM; ++m) {
      const __m512 x_scale = _mm512_set1_ps(t.x_scales[m * t.x_scale_stride + g]);
      const __m512 exponent = _mm512_getexp_ps(x_scale);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const __m512 both = kScalef ? _mm512_scalef_ps(scales[v], exponent) : _mm512_mul_ps(scales[v], x_scale);
        acc[m][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m][v]), both, acc[m][v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) _mm512_store_ps(t.c + m * kPanelCols + 16 * v, acc[m][v]);
  }
}

template <int kM, bool kScalef>
inline void tile_narrow(const Int8TileArgs& t) {
  t.group == 16 ? tile_rows<kM, 16, false, kScalef>(t) : tile_rows<kM, 32, false, kScalef>(t);
}

template <int kM>
inline void tile_group(const Int8TileArgs& t) {
  if (t.group > 32) return tile_rows<kM, 32, true, false>(t);
  t.power_scales && !cpu_features().slow_scalef ? tile_narrow<kM, true>(t) : tile_narrow<kM, false>(t);
}

void tile(const Int8TileArgs& t) {
  switch (t.rows) {
    case 1: return tile_group<1>(t);
    case 2: return tile_group<2>(t);
    case 3: return tile_group<3>(t);
    case 4: return tile_group<4>(t);
    case 5: return tile_group<5>(t);
    default: return tile_group<6>(t);
  }
}

}  // namespace

const Int8Kernels& int8_kernels_avx512vnni() {
  static const Int8Kernels kernels = {quantize<F32>,
                                      quantize<BF16>,
                                      int8_gemv_avx512vnni(),
                                      {kTileRows, kPanelCols, false, panel_bytes, pack, tile},
                                      int8_few_rows_avx512vnni(),
                                      {}};
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
