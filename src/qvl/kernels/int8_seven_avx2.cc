// Tiles of 8-bit weights against x in codes of 7 bits for AVX2 (int8_kernels.h, spec 6.4, 10).
//
// x is unsigned without a sign having to move from anywhere: q minus the least code of its group, 0..128. VPMADDUBSW's sum
// of two products always fits 16 bits then, a sum of four wherever the positive weights of the four sum to at most 255 and
// the negative ones to at least -256 (int8_step_pairs_avx2.h). What was taken from x comes back as the least code times the
// sum of the group's weights. That is two thirds of the instructions that signed x takes.
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

#include "qvl/kernels/int8_pack_avx2.h"
#include "qvl/kernels/int8_step_pairs_avx2.h"
#include "qvl/kernels/int8_vec_avx2.h"

namespace qvl::kernels {
namespace {

using namespace avx2;

// Panel: for each group of columns [32] weight scales, [32] sums of the weights, StepOrder, then the steps in that order,
// [32][4] values each.
constexpr int kTileRows = 12;
constexpr int kSumRows = 2;  // whose sums registers hold
constexpr int kVectors = 4;
constexpr int kPanelCols = 8 * kVectors;
constexpr int64_t kStepBytes = 32 * kVectors;
constexpr int64_t kSumsOffset = kPanelCols * 4, kOrderOffset = 2 * kSumsOffset;
constexpr int64_t kStepsOffset = kOrderOffset + sizeof(StepOrder);
constexpr int64_t kGroupBytes = kStepsOffset + kWideSteps * kStepBytes;

bool fits(const Int8Weight& w) {
  return w.bits == 8 && w.x_bits == 7 && w.zero_points == nullptr && w.group() == kInt8Pad;
}

void shift(int8_t* q, int64_t padded_k, int32_t* least) {
  for (int64_t g = 0; g < padded_k / kInt8Pad; ++g, q += kInt8Pad) {
    __m256i v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + 32 * i));
    const __m256i halves = _mm256_min_epi8(_mm256_min_epi8(v[0], v[1]), _mm256_min_epi8(v[2], v[3]));
    const __m128i lanes = _mm_min_epi8(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    // As unsigned bytes 128 above: of two neighbours the lesser, then the least of eight.
    const __m128i flipped = _mm_xor_si128(lanes, _mm_set1_epi8(static_cast<char>(0x80)));
    const __m128i words = _mm_min_epu8(_mm_and_si128(flipped, _mm_set1_epi16(0xff)), _mm_srli_epi16(flipped, 8));
    least[g] = _mm_extract_epi16(_mm_minpos_epu16(words), 0) - 128;
    const __m256i all = _mm256_set1_epi8(static_cast<char>(least[g]));
    for (int i = 0; i < 4; ++i)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 32 * i), _mm256_sub_epi8(v[i], all));
  }
}

size_t panel_bytes(int64_t depth, int64_t) {
  return static_cast<size_t>(depth / kInt8Pad * kGroupBytes);
}

// Of each two neighbouring weights of a step, the sum of the positive ones and that of the negative ones.
struct SignedSums {
  SignedSums() = default;
  explicit SignedSums(const std::byte* step) {
    const __m256i ones = _mm256_set1_epi8(1), zero = _mm256_setzero_si256();
    for (int v = 0; v < kVectors; ++v) {
      const __m256i w = load_vector(step + 32 * v);
      above[v] = _mm256_maddubs_epi16(ones, _mm256_max_epi8(w, zero));
      below[v] = _mm256_maddubs_epi16(ones, _mm256_min_epi8(w, zero));
    }
  }
  __m256i above[kVectors], below[kVectors];
};
inline bool fit_together(const SignedSums& a, const SignedSums& b) {
  __m256i most = _mm256_setzero_si256(), least = most;
  for (int v = 0; v < kVectors; ++v) {
    most = _mm256_max_epi16(most, _mm256_add_epi16(a.above[v], b.above[v]));
    least = _mm256_min_epi16(least, _mm256_add_epi16(a.below[v], b.below[v]));
  }
  const __m256i over = _mm256_or_si256(_mm256_cmpgt_epi16(most, _mm256_set1_epi16(255)),     // 128 * 255 < 2^15
                                       _mm256_cmpgt_epi16(_mm256_set1_epi16(-256), least));  // 128 * 256 = 2^15
  return _mm256_testz_si256(over, over);
}

void pack(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  const int64_t groups = depth / kInt8Pad;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t present = std::clamp<int64_t>(cols - 8 * v, 0, 8);
    const Int8Weight part = w.rows_from(8 * v);
    for (int64_t g = 0; g < groups; ++g) {
      std::byte* const group = packed + g * kGroupBytes + v * 32;
      __m256i sums = _mm256_setzero_si256();
      for (int64_t n = 0; n < present; ++n)
        prefetch_next_panel(part.data + n * part.data_stride + begin + g * kInt8Pad, part.data_stride, kPanelCols);
      for (int64_t at = 0; at < kInt8Pad; at += 32) {
        __m256i words[2][4];  // 16 columns each
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n)
          unpack_two<8, false>(part, n, present, begin + g * kInt8Pad + at, words[0][n], words[1][n]);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          transpose_words(words[h]);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(group + kStepsOffset + (at / 4 + h * 4 + i) * kStepBytes),
                               words[h][i]);
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), words[h][i]));
          }
        }
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(group + kSumsOffset), widen_pairs(sums));
    }
    pack_scales(part, present, begin, groups, packed + v * 32, kGroupBytes, kPanelCols);
  }
  for (int64_t g = 0; g < groups; ++g) {
    std::byte* const group = packed + g * kGroupBytes;
    pair_steps<SignedSums, kStepBytes>(group + kStepsOffset, group + kOrderOffset);
  }
}

// c[kM, 32] += one group of columns: x at its first one, x_scale and least of the rows x_scale_stride apart.
template <int kM>
inline void add_group(const uint8_t* x, int64_t x_stride, const float* x_scale, const int32_t* least, int64_t x_scale_stride,
                      const std::byte* group, float* c) {
  __m256i dot[kM][kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const __m256i sums = load_vector(group + kSumsOffset + 32 * v);
    // Sums of 128 weights and codes fit 16 bits: products of the lower halves, the upper ones meet zeros.
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m)
      dot[m][v] = _mm256_madd_epi16(sums, _mm256_set1_epi32(least[m * x_scale_stride] & 0xffff));
  }
  const StepOrder& order = step_order(group + kOrderOffset);
  const int pairs = order.pairs, singles = order.singles;
  const uint8_t* step = order.step;
  const std::byte* p = group + kStepsOffset;
  for (int i = 0; i < pairs; ++i, step += 2, p += 2 * kStepBytes) {
    const uint8_t* const first = x + 4 * static_cast<int64_t>(step[0]);
    const uint8_t* const second = x + 4 * static_cast<int64_t>(step[1]);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const __m256i xs = repeat_four(first + m * x_stride), others = repeat_four(second + m * x_stride);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m256i a = _mm256_maddubs_epi16(xs, load_vector(p + 32 * v));
        const __m256i b = _mm256_maddubs_epi16(others, load_vector(p + kStepBytes + 32 * v));
        dot[m][v] = _mm256_add_epi32(dot[m][v], widen_pairs(_mm256_add_epi16(a, b)));
        stay_in_order(dot[m][v]);
      }
    }
  }
  for (int i = 0; i < singles; ++i, ++step, p += kStepBytes) {
    const uint8_t* const columns = x + 4 * static_cast<int64_t>(*step);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const __m256i xs = repeat_four(columns + m * x_stride);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        dot[m][v] = _mm256_add_epi32(dot[m][v], widen_pairs(_mm256_maddubs_epi16(xs, load_vector(p + 32 * v))));
        stay_in_order(dot[m][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const __m256 scale = _mm256_load_ps(reinterpret_cast<const float*>(group + v * 32));
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      float* const sums = c + m * kPanelCols + 8 * v;
      const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x_scale[m * x_scale_stride]));
      _mm256_store_ps(sums, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[m][v]), both, _mm256_load_ps(sums)));
    }
  }
}

template <int kM>
inline void add_rows(const Int8TileArgs& t, int row, int64_t g) {
  add_group<kM>(t.x + row * t.x_stride + g * kInt8Pad, t.x_stride, t.x_scales + row * t.x_scale_stride + g,
                t.x_least + row * t.x_scale_stride + g, t.x_scale_stride, t.packed + g * kGroupBytes, t.c + row * kPanelCols);
}

// A group of columns after the other: 4 KB that all rows meet while the first-level cache has them.
void tile(const Int8TileArgs& t) {
  if (!t.accumulate) std::memset(t.c, 0, sizeof(float) * static_cast<size_t>(t.rows * kPanelCols));
  for (int64_t g = 0; g < t.groups; ++g) {
    int row = 0;
    for (; row + kSumRows <= t.rows; row += kSumRows) add_rows<kSumRows>(t, row, g);
    if (t.rows - row == 1) add_rows<1>(t, row, g);
    if (t.rows - row == 2) add_rows<2>(t, row, g);
  }
}

}  // namespace

const Int8SevenBitKernel& int8_seven_avx2() {
  static const Int8SevenBitKernel kernel = {fits, shift, {kTileRows, kPanelCols, false, panel_bytes, pack, tile}};
  return kernel;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
