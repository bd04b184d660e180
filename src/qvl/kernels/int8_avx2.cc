// Integer linear kernels for AVX2: VPMADDUBSW multiplies 32 pairs of bytes into 16-bit sums of two.
//
// Weights of 4 bits never overflow those sums: 255 * 15 * 2 four times over fits. Weights of 8 bits do, unless the sign
// moves from the weight to x first (128 * 127 * 2 fits). Otherwise as int8_avx512vnni.cc with half the lanes.
#include "qvl/kernels/int8_gemv_loop.h"
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

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

// Sums of two 16-bit products to 32 bits.
inline __m256i widen_pairs(__m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
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

// ---- GEMV ----

// Prepared x, 4 bits: for each 64 columns [32] even q, [32] odd q, [8] sums, [8] scales.
// 8 bits: for each 32 columns [32] q, [8] scales.
constexpr int64_t kRecord4 = 128, kRecord8 = 64;

size_t prepared_bytes(const Int8Weight& w) {
  return static_cast<size_t>(w.bits == 4 ? int8_padded(w.k) / 64 * kRecord4 : int8_padded(w.k) / 32 * kRecord8);
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const int64_t group = w.group();
  const int64_t lane_columns = w.bits == 4 ? 8 : 4;
  for (int64_t i = 0; i < int8_padded(w.k); i += 8 * lane_columns) {
    float lane_scales[8];
    int32_t sums[8];
    for (int64_t lane = 0; lane < 8; ++lane) {
      const int8_t* from = q + i + lane * lane_columns;
      lane_scales[lane] = scales[(i + lane * lane_columns) / group];
      sums[lane] = 0;
      for (int64_t j = 0; j < lane_columns; ++j) {
        sums[lane] += from[j];
        const int64_t to = w.bits == 4 ? j % 2 * 32 + lane * 4 + j / 2 : lane * 4 + j;
        dst[to] = static_cast<std::byte>(from[j]);
      }
    }
    if (w.bits == 4) {
      std::memcpy(dst + 64, sums, sizeof(sums));
      std::memcpy(dst + 96, lane_scales, sizeof(lane_scales));
      dst += kRecord4;
    } else {
      std::memcpy(dst + 32, lane_scales, sizeof(lane_scales));
      dst += kRecord8;
    }
  }
}

// 8 zero points from nibbles; `count` of them are there.
inline __m256i load_zero_points(const std::byte* p, int64_t count) {
  uint32_t nibbles = 0;
  std::memcpy(&nibbles, p, static_cast<size_t>(std::min<int64_t>(4, (count + 1) / 2)));
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(nibbles)), shifts),
                          _mm256_set1_epi32(15));
}

constexpr int64_t kPrefetchBytes = 2048;

// See int8_gemv_loop.h.
template <typename Scale, int kBits, bool kZero, int kN>
inline void gemv_rows(const std::byte* x, const Int8Weight& w, int64_t apart, float* c) {
  constexpr int64_t kColumns = kBits == 4 ? 64 : 32;  // of one vector of weights
  constexpr int64_t kRecord = kBits == 4 ? kRecord4 : kRecord8;
  const int shift = std::countr_zero(static_cast<uint64_t>(w.block));
  const __m128i shift_count = _mm_cvtsi32_si128(shift);
  const int64_t blocks = w.blocks();
  const int64_t columns_a_load = w.block * 8;  // that 8 scales cover
  const int64_t row_bytes = w.data_stride;
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i lane_columns = _mm256_slli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), kBits == 4 ? 3 : 2);

  __m256 acc[kN];
#pragma GCC unroll 4
  for (int n = 0; n < kN; ++n) acc[n] = _mm256_setzero_ps();
  int64_t byte = 0;
  for (int64_t first = 0; first < w.k; first += columns_a_load) {
    const int64_t block = first >> shift;
    __m256 scales[kN];
    __m256i zeros[kN];
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      const auto* row = reinterpret_cast<const typename Scale::Element*>(w.scales + n * apart * w.scale_stride);
      scales[n] = load_first<Scale>(row + block, blocks - block);
      zeros[n] = _mm256_set1_epi32(8);
      if constexpr (kZero) {
        zeros[n] = load_zero_points(w.zero_points + n * apart * w.zero_stride + block / 2, blocks - block);
      }
    }
    const int64_t end = std::min(w.k, first + columns_a_load);
    __m256i columns = lane_columns;
    for (int64_t column = first; column < end; column += kColumns) {
      const __m256i x0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(x));
      const __m256 x_scale = _mm256_load_ps(reinterpret_cast<const float*>(x + kRecord - 32));
      const __m256i index = _mm256_srl_epi32(columns, shift_count);
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) {
        const std::byte* p = w.data + n * apart * row_bytes + byte;
        _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes), _MM_HINT_T0);
        __m256i v = load_bytes(p, row_bytes - byte);
        __m256i dot;
        if constexpr (kBits == 4) {
          const __m256i x1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(x + 32));
          const __m256i x_sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(x + 64));
          const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(v, nibble), x0);
          const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 4), nibble), x1);
          const __m256i zero = kZero ? _mm256_permutevar8x32_epi32(zeros[n], index) : zeros[n];
          dot = _mm256_sub_epi32(widen_pairs(_mm256_add_epi16(low, high)), _mm256_mullo_epi32(zero, x_sum));
        } else {
          v = _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(0x80)));
          dot = widen_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(x0, v)));
        }
        const __m256 scale = _mm256_mul_ps(x_scale, _mm256_permutevar8x32_ps(scales[n], index));
        acc[n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc[n]);
      }
      x += kRecord;
      byte += 32;
      columns = _mm256_add_epi32(columns, _mm256_set1_epi32(static_cast<int>(kColumns)));
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < kN; ++n) c[n * apart] = sum_ps(acc[n]);
}

struct Avx2 {
  using F32 = avx2::F32;
  using BF16 = avx2::BF16;
  using F16 = avx2::F16;
  template <typename Scale, int kBits, bool kZero, int kN>
  static void rows(const std::byte* x, const Int8Weight& w, int64_t apart, float* c) {
    gemv_rows<Scale, kBits, kZero, kN>(x, w, apart, c);
  }
};

// ---- GEMM ----
// Panel: for each group of columns [16] weight scales, [16] corrections, [group / 4][16][4] signed values.

constexpr int kTileRows = 3;
constexpr int kVectors = 2;
constexpr int kPanelCols = 8 * kVectors;

size_t panel_bytes(int64_t depth, int64_t group) {
  return static_cast<size_t>(depth / group * kPanelCols * (8 + group));
}

void pack(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  const int64_t group = w.group();
  for (int64_t g = begin; g < begin + depth; g += group) {
    float* scales = reinterpret_cast<float*>(packed);
    int32_t* corrections = reinterpret_cast<int32_t*>(packed + kPanelCols * 4);
    std::byte* values = packed + kPanelCols * 8;
    packed = values + kPanelCols * group;
    const int64_t inside = std::clamp<int64_t>(w.k - g, 0, group);
    for (int64_t n = 0; n < kPanelCols; ++n) {
      const bool present = n < cols && inside > 0;
      scales[n] = present ? int8_scale(w, n, g / w.block) : 0.0f;
      // Values of one output, in order; then its words go where they belong.
      alignas(32) int8_t row[kInt8Pad] = {};
      int32_t sum = 0;
      if (present && w.bits == 4) {
        const std::byte* p = w.data + n * w.data_stride + g / 2;
        const __m128i zero = _mm_set1_epi8(static_cast<char>(int8_zero_point(w, n, g / w.block)));
        const __m128i nibble = _mm_set1_epi8(15);
        for (int64_t i = 0; i < group; i += 16) {  // a block is stored whole
          const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i / 2));
          const __m128i both =
              _mm_unpacklo_epi8(_mm_and_si128(v, nibble), _mm_and_si128(_mm_srli_epi16(v, 4), nibble));
          _mm_store_si128(reinterpret_cast<__m128i*>(row + i), _mm_sub_epi8(both, zero));
        }
        for (int64_t i = inside; i < group; ++i) row[i] = 0;
      } else if (present) {
        for (int64_t i = 0; i < inside; ++i) row[i] = static_cast<int8_t>(int8_value(w, n, g + i));
      }
      for (int64_t i = 0; i < inside; ++i) sum += row[i];
      corrections[n] = w.bits == 8 ? 0 : -128 * sum;  // tile() takes x signed with 8 bits
      for (int64_t i = 0; i < group; i += 4) std::memcpy(values + i * kPanelCols + n * 4, row + i, 4);
    }
  }
}

template <bool kWide, int kM>
inline void tile_rows(const Int8TileArgs& t) {
  if (!t.accumulate) std::memset(t.c, 0, sizeof(float) * kM * kPanelCols);
  const uint8_t* x = t.x;
  const std::byte* p = t.packed;
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  for (int64_t g = 0; g < t.groups; ++g) {
    const std::byte* group = p;
    p += kPanelCols * 8;
    __m256i dot[kM][kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m256i correction =
          _mm256_load_si256(reinterpret_cast<const __m256i*>(group + kPanelCols * 4 + v * 32));
#pragma GCC unroll 3
      for (int m = 0; m < kM; ++m) dot[m][v] = correction;
    }
    for (int64_t i = 0; i < t.group; i += 16) {
      __m256i pairs[kM][kVectors];
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) {
        __m256i w[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          w[v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(p + (s * kVectors + v) * 32));
        }
#pragma GCC unroll 3
        for (int m = 0; m < kM; ++m) {
          int32_t four;
          std::memcpy(&four, x + m * t.x_stride + i + 4 * s, sizeof(four));
          const __m256i xs = _mm256_set1_epi32(four);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            if constexpr (kWide) {
              const __m256i product =
                  _mm256_maddubs_epi16(_mm256_abs_epi8(w[v]), _mm256_sign_epi8(_mm256_xor_si256(xs, flip), w[v]));
              dot[m][v] = _mm256_add_epi32(dot[m][v], widen_pairs(product));
            } else {
              const __m256i product = _mm256_maddubs_epi16(xs, w[v]);
              pairs[m][v] = s == 0 ? product : _mm256_add_epi16(pairs[m][v], product);
            }
          }
        }
      }
      if constexpr (!kWide) {
#pragma GCC unroll 3
        for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) dot[m][v] = _mm256_add_epi32(dot[m][v], widen_pairs(pairs[m][v]));
        }
      }
      p += kVectors * 4 * 32;
    }
    x += t.group;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const __m256 scale = _mm256_load_ps(reinterpret_cast<const float*>(group + v * 32));
#pragma GCC unroll 3
      for (int m = 0; m < kM; ++m) {
        float* c = t.c + m * kPanelCols + 8 * v;
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(t.x_scales[m * t.x_scale_stride + g]));
        _mm256_store_ps(c, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[m][v]), both, _mm256_load_ps(c)));
      }
    }
  }
}

template <int kM>
inline void tile_width(const Int8TileArgs& t) {
  t.wide ? tile_rows<true, kM>(t) : tile_rows<false, kM>(t);
}

void tile(const Int8TileArgs& t) {
  switch (t.rows) {
    case 1: return tile_width<1>(t);
    case 2: return tile_width<2>(t);
    default: return tile_width<3>(t);
  }
}

}  // namespace

const Int8Kernels& int8_kernels_avx2() {
  static const Int8Kernels kernels = {quantize<F32>,
                                      quantize<BF16>,
                                      {prepared_bytes, prepare, int8_gemv<Avx2>},
                                      {kTileRows, kPanelCols, panel_bytes, pack, tile}};
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
