// Unpacking rows of integer weights into the panels of AVX2's tiles (private to this room). Include after the target pragma.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"
#include "qvl/kernels/vec_math_avx2.h"

namespace qvl::kernels::avx2 {

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

// The rows of a panel are too many streams for the processor to foresee: asks for those of the next one, `rows` further on.
inline void prefetch_next_panel(const std::byte* p, int64_t row_bytes, int64_t rows) {
  _mm_prefetch(reinterpret_cast<const char*>(p + rows * row_bytes), _MM_HINT_T0);
}

// The scales of 8 outputs from the first of `w`, `present` of them there, in every group of a panel of `panel_cols`.
template <typename Scale>
void pack_scales(const Int8Weight& w, int64_t present, int64_t begin, int64_t groups, std::byte* packed,
                 int64_t group_bytes, int64_t panel_cols) {
  const int64_t groups_a_block = w.block / w.group();
  const int64_t first_group = begin / w.group();
  __m256 factors = _mm256_setzero_ps();
  if constexpr (std::is_same_v<Scale, I8>) {
    alignas(32) float of_rows[8] = {};
    int8_row_factors(w, 1, present, of_rows);
    factors = _mm256_load_ps(of_rows);
  }
  for (int64_t g = 0; g < groups;) {
    const int64_t block = (first_group + g) / groups_a_block;
    const int64_t left = w.blocks() - block;
    __m256 scales[8];
    for (int64_t n = 0; n < 8; ++n) {
      const auto* row = reinterpret_cast<const typename Scale::Element*>(w.scales + n * w.scale_stride);
      prefetch_next_panel(reinterpret_cast<const std::byte*>(row + block), w.scale_stride, panel_cols);
      scales[n] = n < present && left > 0 ? load_first<Scale>(row + block, left) : _mm256_setzero_ps();
    }
    transpose_8x8(scales);
    if constexpr (std::is_same_v<Scale, I8>) {
      for (__m256& of_rows : scales) of_rows = _mm256_mul_ps(of_rows, factors);
    }
    for (int64_t b = 0; b < 8; ++b) {
      for (; g < groups && (first_group + g) / groups_a_block == block + b; ++g) {
        _mm256_store_ps(reinterpret_cast<float*>(packed + g * group_bytes), scales[b]);
      }
    }
  }
}

inline void pack_scales(const Int8Weight& w, int64_t present, int64_t begin, int64_t groups, std::byte* packed,
                        int64_t group_bytes, int64_t panel_cols) {
  if (w.scale_type == DType::kF32) {
    pack_scales<F32>(w, present, begin, groups, packed, group_bytes, panel_cols);
  } else if (w.scale_type == DType::kI8) {
    pack_scales<I8>(w, present, begin, groups, packed, group_bytes, panel_cols);
  } else if (w.scale_type == DType::kBF16) {
    pack_scales<BF16>(w, present, begin, groups, packed, group_bytes, panel_cols);
  } else {
    pack_scales<F16>(w, present, begin, groups, packed, group_bytes, panel_cols);
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

}  // namespace qvl::kernels::avx2
