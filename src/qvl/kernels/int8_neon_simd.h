// Integer linear kernels for NEON over a dot product D (private to this room; int8_kernels.h, spec 6.4, 10). Include
// after the target pragma of the file that instantiates them; everything is a template or in that file's own namespace.
//
// NEON multiplies signed by signed bytes, so weights become signed while they are unpacked (nibbles stay 0..15, their
// zero point is taken off with the sums of x) and tiles take the 128 off x that linear_int8.cc added for x86.
//
// D:
//   dot(sum, a, b): each 32-bit lane plus four products; dot2(sum, a, b, c, d): plus those of a, b and of c, d
//   kUnit: values of one output that lie together in a panel; kTileRows, kVectors (of 4 outputs): the tile
//   group<kM>(x, x_stride, values, columns, sums): sums[m][v] of kM rows of x, unsigned, with one group of a panel
#pragma once

#include <arm_neon.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "qvl/kernels/int8_gemv_loop.h"
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"
#include "qvl/kernels/vec_math_neon.h"

namespace qvl::kernels {
namespace {
namespace int8_neon {

// 4 elements, zeros from `count` on.
template <typename T>
QVL_VEC_INLINE float32x4_t load_first(const typename T::Element* p, int64_t count) {
  return count >= 4 ? T::load(p) : count > 0 ? T::load_n(p, count) : vdupq_n_f32(0.0f);
}

// 16 bytes, zeros from `count` on.
QVL_VEC_INLINE int8x16_t load_bytes(const std::byte* p, int64_t count) {
  if (count >= 16) return vld1q_s8(reinterpret_cast<const int8_t*>(p));
  int8_t part[16] = {};
  if (count > 0) std::memcpy(part, p, static_cast<size_t>(count));
  return vld1q_s8(part);
}

template <typename X>
void quantize(const void* x, int64_t k, int64_t group, int bits, int8_t* q, float* scales) {
  const typename X::Element* src = static_cast<const typename X::Element*>(x);
  for (int64_t g = 0; g < int8_padded(k); g += group) {
    // As integers, so that a NaN is the largest value.
    uint32x4_t magnitudes = vdupq_n_u32(0);
    float32x4_t least = vdupq_n_f32(0), greatest = least;
    for (int64_t i = g; i < g + group; i += 4) {
      const float32x4_t v = load_first<X>(src + i, k - i);
      magnitudes = vmaxq_u32(magnitudes, vreinterpretq_u32_f32(vabsq_f32(v)));
      least = vminq_f32(least, v);
      greatest = vmaxq_f32(greatest, v);
    }
    const float inverse =
        bits == 7 ? int7_inverse_scale(vmaxvq_u32(magnitudes), vminvq_f32(least), vmaxvq_f32(greatest), scales[g / group])
                  : int8_inverse_scale(vmaxvq_u32(magnitudes), group, scales[g / group]);
    if (inverse == 0) {
      std::memset(q + g, 0, static_cast<size_t>(group));
      continue;
    }
    for (int64_t i = g; i < g + group; i += 8) {
      const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(load_first<X>(src + i, k - i), inverse));
      const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(load_first<X>(src + i + 4, k - i - 4), inverse));
      vst1_s8(q + i, vqmovn_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b))));
    }
  }
}

// ---- GEMV ----

// Prepared x, for each 32 columns: [32] q, [4] sums and [4] scales of the lanes. With weights of 4 bits q is [16] even,
// [16] odd columns, as the two nibbles of a byte are, and a lane is 8 columns; with 8 bits columns are in order and a
// half of the lanes stands for a half of the columns. Groups of 16 columns, the smallest, are half of the lanes each.
constexpr int64_t kColumns = 32, kRecord = 64;

size_t prepared_bytes(const Int8Weight& w) {
  return static_cast<size_t>(int8_padded(w.k) / kColumns * kRecord);
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const int64_t group = w.group();
  for (int64_t i = 0; i < int8_padded(w.k); i += kColumns, q += kColumns, dst += kRecord) {
    float lane_scales[4];
    int32_t sums[4] = {};
    for (int64_t j = 0; j < kColumns; ++j) {
      sums[j / 8] += q[j];
      dst[w.bits == 4 ? j % 2 * 16 + j / 2 : j] = static_cast<std::byte>(q[j]);
    }
    for (int64_t lane = 0; lane < 4; ++lane) lane_scales[lane] = scales[(i + lane * 8) / group];
    std::memcpy(dst + 32, sums, sizeof(sums));
    std::memcpy(dst + 48, lane_scales, sizeof(lane_scales));
  }
}

// The scales of two blocks, each for half of the lanes; the second may not be there.
template <typename Scale>
QVL_VEC_INLINE float32x4_t two_scales(const typename Scale::Element* p, bool both) {
  const float32x4_t v = Scale::load_n(p, both ? 2 : 1);
  return vzip1q_f32(v, v);
}

template <typename Scale>
QVL_VEC_INLINE float one_scale(const typename Scale::Element* p) {
  return vgetq_lane_f32(Scale::load_n(p, 1), 0);
}

QVL_VEC_INLINE int32_t zero_nibble(const std::byte* p, int64_t block) {
  return std::to_integer<int32_t>(p[block / 2]) >> (block % 2 * 4) & 15;
}

constexpr int64_t kPrefetchBytes = 1024;

// See int8_gemv_loop.h. kNarrow: blocks of 16 columns.
template <typename D, typename Scale, int kBits, bool kZero, bool kNarrow, int kM, int kN>
inline void gemv_rows(const std::byte* x, int64_t x_stride, const Int8Weight& w, int64_t apart, float* c,
                      int64_t ldc) {
  const int shift = std::countr_zero(static_cast<uint64_t>(w.block));
  const int64_t blocks = w.blocks();
  const int64_t row_bytes = w.data_stride;
  const int8x16_t nibble = vdupq_n_s8(15);
  const int8x16_t flip = vdupq_n_s8(-128);  // uint8 around 128 to int8

  float32x4_t acc[kM][kN];
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) acc[m][n] = vdupq_n_f32(0.0f);
  }
  int64_t byte = 0;
  for (int64_t column = 0; column < w.k; column += kColumns, x += kRecord) {
    const int64_t block = column >> shift;
    const bool both = block + 1 < blocks;
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      const std::byte* p = w.data + n * apart * row_bytes + byte;
      __builtin_prefetch(p + kPrefetchBytes);
      const auto* scales =
          reinterpret_cast<const typename Scale::Element*>(w.scales + n * apart * w.scale_stride) + block;
      float32x4_t wide_scale = vdupq_n_f32(0.0f);
      float scale = 0;
      if constexpr (kNarrow) {
        wide_scale = two_scales<Scale>(scales, both);
      } else {
        scale = one_scale<Scale>(scales);
      }
      int8x16_t first, second;  // of the two halves of prepared x
      int32x4_t zero = vdupq_n_s32(8);
      if constexpr (kBits == 4) {
        const int8x16_t v = load_bytes(p, row_bytes - byte);
        first = vandq_s8(v, nibble);
        second = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4));
        if constexpr (kZero) {
          const std::byte* zeros = w.zero_points + n * apart * w.zero_stride;
          zero = vdupq_n_s32(zero_nibble(zeros, block));
          if constexpr (kNarrow) {
            zero = vcombine_s32(vget_low_s32(zero), vdup_n_s32(both ? zero_nibble(zeros, block + 1) : 0));
          }
        }
      } else {
        first = veorq_s8(load_bytes(p, row_bytes - byte), flip);
        second = veorq_s8(load_bytes(p + 16, row_bytes - byte - 16), flip);
      }
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        const std::byte* record = x + m * x_stride;
        const int8_t* q = reinterpret_cast<const int8_t*>(record);
        const int8x16_t x0 = vld1q_s8(q), x1 = vld1q_s8(q + 16);
        const float32x4_t x_scales = vld1q_f32(reinterpret_cast<const float*>(record + 48));
        float32x4_t both_scales;
        if constexpr (kNarrow) {
          both_scales = vmulq_f32(x_scales, wide_scale);
        } else {
          both_scales = vmulq_n_f32(x_scales, scale);
        }
        const int32x4_t none = vdupq_n_s32(0);
        if constexpr (kBits == 4) {
          const int32x4_t x_sums = vld1q_s32(reinterpret_cast<const int32_t*>(record + 32));
          const int32x4_t dot = D::dot2(vnegq_s32(vmulq_s32(zero, x_sums)), first, x0, second, x1);
          acc[m][n] = vfmaq_f32(acc[m][n], vcvtq_f32_s32(dot), both_scales);
        } else if constexpr (kNarrow) {
          acc[m][n] = vfmaq_laneq_f32(acc[m][n], vcvtq_f32_s32(D::dot(none, first, x0)), both_scales, 0);
          acc[m][n] = vfmaq_laneq_f32(acc[m][n], vcvtq_f32_s32(D::dot(none, second, x1)), both_scales, 2);
        } else {
          const int32x4_t dot = D::dot2(none, first, x0, second, x1);
          acc[m][n] = vfmaq_f32(acc[m][n], vcvtq_f32_s32(dot), both_scales);
        }
      }
    }
    byte += kColumns * kBits / 8;
  }
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      const float sum = vaddvq_f32(acc[m][n]);
      c[m * ldc + n * apart] = std::is_same_v<Scale, neon::I8> ? sum * int8_row_factor(w, n * apart) : sum;
    }
  }
}

template <typename D>
struct Gemv {
  using F32 = neon::F32;
  using BF16 = neon::BF16;
  using F16 = neon::F16;
  using I8 = neon::I8;
  template <typename Scale, int kBits, bool kZero, int kM, int kN>
  static void rows(const std::byte* x, int64_t x_stride, const Int8Weight& w, int64_t apart, float* c, int64_t ldc) {
    w.block < kColumns ? gemv_rows<D, Scale, kBits, kZero, true, kM, kN>(x, x_stride, w, apart, c, ldc)
                       : gemv_rows<D, Scale, kBits, kZero, false, kM, kN>(x, x_stride, w, apart, c, ldc);
  }
};

// ---- GEMM ----
// Panel: for each group of columns [panel_cols] weight scales, [group / kUnit][panel_cols][kUnit] signed values.

template <typename D>
constexpr int64_t kPanelCols = 4 * D::kVectors;

template <typename D>
size_t panel_bytes(int64_t depth, int64_t group) {
  return static_cast<size_t>(depth / group * kPanelCols<D> * (4 + group));
}

template <typename D>
void pack(const Int8Weight& w, int64_t cols, int64_t begin, int64_t depth, std::byte* packed) {
  constexpr int64_t kCols = kPanelCols<D>, kUnit = D::kUnit;
  const int64_t group = w.group();
  const int8x16_t nibble = vdupq_n_s8(15);
  for (int64_t g = begin; g < begin + depth; g += group) {
    float* scales = reinterpret_cast<float*>(packed);
    std::byte* values = packed + kCols * 4;
    packed = values + kCols * group;
    const int64_t inside = std::clamp<int64_t>(w.k - g, 0, group);
    for (int64_t n = 0; n < kCols; ++n) {
      const bool present = n < cols && inside > 0;
      scales[n] = present ? int8_scale(w, n, g / w.block) : 0.0f;
      // Values of one output, in order; then its units go where they belong.
      int8_t row[kInt8Pad] = {};
      if (present && w.bits == 4) {
        const std::byte* p = w.data + n * w.data_stride + g / 2;
        const int8x16_t zero = vdupq_n_s8(static_cast<int8_t>(int8_zero_point(w, n, g / w.block)));
        for (int64_t i = 0; i < group; i += 32) {  // a block is stored whole
          const int8x16_t v = load_bytes(p + i / 2, (group - i) / 2);
          const int8x16_t low = vsubq_s8(vandq_s8(v, nibble), zero);
          const int8x16_t high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4)), zero);
          vst1q_s8(row + i, vzip1q_s8(low, high));
          if (i + 16 < group) vst1q_s8(row + i + 16, vzip2q_s8(low, high));
        }
      } else if (present) {
        const std::byte* p = w.data + n * w.data_stride + g;
        const int8x16_t flip = vdupq_n_s8(-128);
        for (int64_t i = 0; i < inside; i += 16) vst1q_s8(row + i, veorq_s8(load_bytes(p + i, inside - i), flip));
      }
      std::memset(row + inside, 0, static_cast<size_t>(kInt8Pad - inside));
      for (int64_t i = 0; i < group; i += kUnit) std::memcpy(values + i * kCols + n * kUnit, row + i, kUnit);
    }
  }
}

// 16 values of x as they were before 128 was added.
QVL_VEC_INLINE int8x16_t load_x(const uint8_t* x) {
  return veorq_s8(vreinterpretq_s8_u8(vld1q_u8(x)), vdupq_n_s8(-128));
}

// D::group for panels of words of 4 values, each of which meets the same word of x in all lanes.
template <typename D, int kM>
QVL_VEC_INLINE void group_of_words(const uint8_t* x, int64_t x_stride, const std::byte* values, int64_t columns,
                                   int32x4_t (&sums)[kM][D::kVectors]) {
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < D::kVectors; ++v) sums[m][v] = vdupq_n_s32(0);
  }
  const int8_t* w = reinterpret_cast<const int8_t*>(values);
  for (int64_t i = 0; i < columns; i += 16) {
    int8x16_t xs[kM];
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) xs[m] = load_x(x + m * x_stride + i);
    const auto step = [&]<int kWord>() __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int v = 0; v < D::kVectors; ++v, w += 16) {
        const int8x16_t word = vld1q_s8(w);
#pragma GCC unroll 4
        for (int m = 0; m < kM; ++m) sums[m][v] = D::template dot_word<kWord>(sums[m][v], word, xs[m]);
      }
    };
    step.template operator()<0>();
    step.template operator()<1>();
    step.template operator()<2>();
    step.template operator()<3>();
  }
}

template <typename D, int kM>
inline void tile_rows(const Int8TileArgs& t) {
  constexpr int64_t kCols = kPanelCols<D>;
  if (!t.accumulate) std::memset(t.c, 0, sizeof(float) * kM * kCols);
  const uint8_t* x = t.x;
  const std::byte* p = t.packed;
  for (int64_t g = 0; g < t.groups; ++g, x += t.group, p += kCols * (4 + t.group)) {
    int32x4_t sums[kM][D::kVectors];
    D::template group<kM>(x, t.x_stride, p + kCols * 4, t.group, sums);
#pragma GCC unroll 4
    for (int v = 0; v < D::kVectors; ++v) {
      const float32x4_t scale = vld1q_f32(reinterpret_cast<const float*>(p) + 4 * v);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        float* c = t.c + m * kCols + 4 * v;
        const float32x4_t both = vmulq_n_f32(scale, t.x_scales[m * t.x_scale_stride + g]);
        vst1q_f32(c, vfmaq_f32(vld1q_f32(c), vcvtq_f32_s32(sums[m][v]), both));
      }
    }
  }
}

template <typename D, int kM = 1>
void tile(const Int8TileArgs& t) {
  if constexpr (kM < D::kTileRows) {
    if (t.rows > kM) return tile<D, kM + 1>(t);
  }
  tile_rows<D, kM>(t);
}

template <typename D>
Int8Kernels kernels() {
  return {quantize<neon::F32>,
          quantize<neon::BF16>,
          {prepared_bytes, prepare, int8_gemv<Gemv<D>>},
          {D::kTileRows, static_cast<int>(kPanelCols<D>), false, panel_bytes<D>, pack<D>, tile<D>}};
}

}  // namespace int8_neon
}  // namespace
}  // namespace qvl::kernels
