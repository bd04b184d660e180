// Weighted sums of byte rows and byte transposes; see resize_kernels.h. Spec 3.3.
//
// The x86 versions take two rows at a time: their bytes are interleaved and widened to pairs of int16, and
// one multiply-add instruction gives both products and their sum in 32 bits, so the result is exact. All
// shuffles stay inside 128-bit lanes and the final packs undo them, which makes the three versions the same
// text.
#include "qvl/image/resize_kernels.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "qvl/base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qvl::image {
namespace {

// Chunks of a fixed length, so that compilers for other processors turn the loops into vector code.
template <int64_t kChunk>
void weighted_chunk(const uint8_t* src, int64_t src_stride_bytes, int32_t count, const int16_t* weight,
                    int precision_bits, uint8_t* dst) {
  std::array<int32_t, kChunk> sum;
  sum.fill(precision_bits > 0 ? 1 << (precision_bits - 1) : 0);
  for (int32_t j = 0; j < count; ++j) {
    const uint8_t* row = src + j * src_stride_bytes;
    const int32_t w = weight[j];
    for (int64_t x = 0; x < kChunk; ++x) sum[static_cast<size_t>(x)] += w * row[x];
  }
  for (int64_t x = 0; x < kChunk; ++x) {
    dst[x] = static_cast<uint8_t>(std::clamp(sum[static_cast<size_t>(x)] >> precision_bits, 0, 255));
  }
}

void weighted_rows_scalar(const uint8_t* src, int64_t src_stride_bytes, int32_t count, const int16_t* weight,
                          int precision_bits, uint8_t* dst, int64_t length) {
  int64_t x = 0;
  for (; x + 32 <= length; x += 32) {
    weighted_chunk<32>(src + x, src_stride_bytes, count, weight, precision_bits, dst + x);
  }
  for (; x < length; ++x)
    weighted_chunk<1>(src + x, src_stride_bytes, count, weight, precision_bits, dst + x);
}

#if defined(__x86_64__)

int32_t weight_pair(const int16_t* weight) {
  int32_t pair;
  std::memcpy(&pair, weight, sizeof(pair));
  return pair;
}

void weighted_rows_sse2(const uint8_t* src, int64_t src_stride_bytes, int32_t count, const int16_t* weight,
                        int precision_bits, uint8_t* dst, int64_t length) {
  constexpr int64_t kWidth = 16;
  if (length < kWidth) {
    weighted_rows_scalar(src, src_stride_bytes, count, weight, precision_bits, dst, length);
    return;
  }
  const __m128i zero = _mm_setzero_si128();
  const __m128i half = _mm_set1_epi32(precision_bits > 0 ? 1 << (precision_bits - 1) : 0);
  const __m128i shift = _mm_cvtsi32_si128(precision_bits);
  // The last vector may overlap the one before it; it then computes the same bytes again.
  for (int64_t x = 0;; x = std::min(x + kWidth, length - kWidth)) {
    __m128i s0 = half, s1 = half, s2 = half, s3 = half;
    for (int32_t j = 0; j < count; j += 2) {
      const uint8_t* row = src + j * src_stride_bytes + x;
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
      const __m128i b =
          j + 1 < count ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + src_stride_bytes)) : a;
      const __m128i w = _mm_set1_epi32(weight_pair(weight + j));
      const __m128i lo = _mm_unpacklo_epi8(a, b);
      const __m128i hi = _mm_unpackhi_epi8(a, b);
      s0 = _mm_add_epi32(s0, _mm_madd_epi16(_mm_unpacklo_epi8(lo, zero), w));
      s1 = _mm_add_epi32(s1, _mm_madd_epi16(_mm_unpackhi_epi8(lo, zero), w));
      s2 = _mm_add_epi32(s2, _mm_madd_epi16(_mm_unpacklo_epi8(hi, zero), w));
      s3 = _mm_add_epi32(s3, _mm_madd_epi16(_mm_unpackhi_epi8(hi, zero), w));
    }
    const __m128i lo = _mm_packs_epi32(_mm_sra_epi32(s0, shift), _mm_sra_epi32(s1, shift));
    const __m128i hi = _mm_packs_epi32(_mm_sra_epi32(s2, shift), _mm_sra_epi32(s3, shift));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + x), _mm_packus_epi16(lo, hi));
    if (x + kWidth >= length) break;
  }
}

__attribute__((target("avx2"))) void weighted_rows_avx2(const uint8_t* src, int64_t src_stride_bytes,
                                                        int32_t count, const int16_t* weight,
                                                        int precision_bits, uint8_t* dst, int64_t length) {
  constexpr int64_t kWidth = 32;
  if (length < kWidth) {
    weighted_rows_sse2(src, src_stride_bytes, count, weight, precision_bits, dst, length);
    return;
  }
  const __m256i zero = _mm256_setzero_si256();
  const __m256i half = _mm256_set1_epi32(precision_bits > 0 ? 1 << (precision_bits - 1) : 0);
  const __m128i shift = _mm_cvtsi32_si128(precision_bits);
  for (int64_t x = 0;; x = std::min(x + kWidth, length - kWidth)) {
    __m256i s0 = half, s1 = half, s2 = half, s3 = half;
    for (int32_t j = 0; j < count; j += 2) {
      const uint8_t* row = src + j * src_stride_bytes + x;
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      const __m256i b =
          j + 1 < count ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + src_stride_bytes)) : a;
      const __m256i w = _mm256_set1_epi32(weight_pair(weight + j));
      const __m256i lo = _mm256_unpacklo_epi8(a, b);
      const __m256i hi = _mm256_unpackhi_epi8(a, b);
      s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(_mm256_unpacklo_epi8(lo, zero), w));
      s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(_mm256_unpackhi_epi8(lo, zero), w));
      s2 = _mm256_add_epi32(s2, _mm256_madd_epi16(_mm256_unpacklo_epi8(hi, zero), w));
      s3 = _mm256_add_epi32(s3, _mm256_madd_epi16(_mm256_unpackhi_epi8(hi, zero), w));
    }
    const __m256i lo = _mm256_packs_epi32(_mm256_sra_epi32(s0, shift), _mm256_sra_epi32(s1, shift));
    const __m256i hi = _mm256_packs_epi32(_mm256_sra_epi32(s2, shift), _mm256_sra_epi32(s3, shift));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + x), _mm256_packus_epi16(lo, hi));
    if (x + kWidth >= length) break;
  }
}

__attribute__((target("avx512f,avx512bw"))) void weighted_rows_avx512(const uint8_t* src,
                                                                      int64_t src_stride_bytes, int32_t count,
                                                                      const int16_t* weight,
                                                                      int precision_bits, uint8_t* dst,
                                                                      int64_t length) {
  constexpr int64_t kWidth = 64;
  if (length < kWidth) {
    weighted_rows_sse2(src, src_stride_bytes, count, weight, precision_bits, dst, length);
    return;
  }
  const __m512i zero = _mm512_setzero_si512();
  const __m512i half = _mm512_set1_epi32(precision_bits > 0 ? 1 << (precision_bits - 1) : 0);
  const __m128i shift = _mm_cvtsi32_si128(precision_bits);
  for (int64_t x = 0;; x = std::min(x + kWidth, length - kWidth)) {
    __m512i s0 = half, s1 = half, s2 = half, s3 = half;
    for (int32_t j = 0; j < count; j += 2) {
      const uint8_t* row = src + j * src_stride_bytes + x;
      const __m512i a = _mm512_loadu_si512(row);
      const __m512i b = j + 1 < count ? _mm512_loadu_si512(row + src_stride_bytes) : a;
      const __m512i w = _mm512_set1_epi32(weight_pair(weight + j));
      const __m512i lo = _mm512_unpacklo_epi8(a, b);
      const __m512i hi = _mm512_unpackhi_epi8(a, b);
      s0 = _mm512_add_epi32(s0, _mm512_madd_epi16(_mm512_unpacklo_epi8(lo, zero), w));
      s1 = _mm512_add_epi32(s1, _mm512_madd_epi16(_mm512_unpackhi_epi8(lo, zero), w));
      s2 = _mm512_add_epi32(s2, _mm512_madd_epi16(_mm512_unpacklo_epi8(hi, zero), w));
      s3 = _mm512_add_epi32(s3, _mm512_madd_epi16(_mm512_unpackhi_epi8(hi, zero), w));
    }
    const __m512i lo = _mm512_packs_epi32(_mm512_sra_epi32(s0, shift), _mm512_sra_epi32(s1, shift));
    const __m512i hi = _mm512_packs_epi32(_mm512_sra_epi32(s2, shift), _mm512_sra_epi32(s3, shift));
    _mm512_storeu_si512(dst + x, _mm512_packus_epi16(lo, hi));
    if (x + kWidth >= length) break;
  }
}

#endif  // __x86_64__

using Bytes16 = uint8_t __attribute__((vector_size(16)));

// One stage of the 16x16 byte transpose: rows i and i+8 are interleaved. Four stages make the transpose.
inline void interleave_stage(const Bytes16* in, Bytes16* out) {
  for (int i = 0; i < 8; ++i) {
    out[2 * i] =
        __builtin_shufflevector(in[i], in[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    out[2 * i + 1] = __builtin_shufflevector(in[i], in[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                             14, 30, 15, 31);
  }
}

// dst[c][r] = src[r][c] for a 16x16 block, of which rows below `src_rows` are read (the last is repeated) and
// rows below `dst_rows` are written.
inline void transpose_16x16(const uint8_t* src, int64_t src_stride_bytes, int64_t src_rows, uint8_t* dst,
                            int64_t dst_stride_bytes, int64_t dst_rows) {
  Bytes16 a[16], b[16];
  for (int64_t r = 0; r < 16; ++r) {
    std::memcpy(&a[r], src + std::min(r, src_rows - 1) * src_stride_bytes, 16);
  }
  interleave_stage(a, b);
  interleave_stage(b, a);
  interleave_stage(a, b);
  interleave_stage(b, a);
  for (int64_t r = 0; r < std::min<int64_t>(16, dst_rows); ++r)
    std::memcpy(dst + r * dst_stride_bytes, &a[r], 16);
}

}  // namespace

std::string_view resize_isa_name(ResizeIsa isa) {
  switch (isa) {
    case ResizeIsa::kScalar:
      return "scalar";
    case ResizeIsa::kSse2:
      return "sse2";
    case ResizeIsa::kAvx2:
      return "avx2";
    case ResizeIsa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

std::span<const ResizeIsa> available_resize_isas() {
#if defined(__x86_64__)
  static constexpr std::array kAll = {ResizeIsa::kScalar, ResizeIsa::kSse2, ResizeIsa::kAvx2,
                                      ResizeIsa::kAvx512};
  const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0;
  return std::span(kAll).first(avx512 ? 4 : avx2 ? 3 : 2);
#else
  static constexpr std::array kAll = {ResizeIsa::kScalar};
  return kAll;
#endif
}

WeightedRowsKernel weighted_rows_kernel(ResizeIsa isa) {
  const std::span<const ResizeIsa> available = available_resize_isas();
  if (std::find(available.begin(), available.end(), isa) == available.end()) {
    fail(ErrorCode::kUnsupported, "resize",
         "instruction set " + std::string(resize_isa_name(isa)) + " cannot run on this processor");
  }
  switch (isa) {
#if defined(__x86_64__)
    case ResizeIsa::kSse2:
      return weighted_rows_sse2;
    case ResizeIsa::kAvx2:
      return weighted_rows_avx2;
    case ResizeIsa::kAvx512:
      return weighted_rows_avx512;
#endif
    default:
      return weighted_rows_scalar;
  }
}

void transpose_to_columns(const uint8_t* src, int64_t src_stride_bytes, int64_t rows, int64_t columns,
                          uint8_t* dst) {
  for (int64_t r0 = 0; r0 < rows; r0 += 16) {
    const uint8_t* block_rows = src + r0 * src_stride_bytes;
    const int64_t n = rows - r0;
    if (columns >= 16) {
      // As in the kernels, the last block may overlap.
      for (int64_t c = 0;; c = std::min(c + 16, columns - 16)) {
        transpose_16x16(block_rows + c, src_stride_bytes, n, dst + c * 64 + r0, 64, 16);
        if (c + 16 >= columns) break;
      }
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < std::min<int64_t>(16, n); ++r) {
          dst[c * 64 + r0 + r] = block_rows[r * src_stride_bytes + c];
        }
      }
    }
  }
}

void transpose_to_rows(const uint8_t* src, int64_t rows, int64_t columns, uint8_t* dst,
                       int64_t dst_stride_bytes) {
  for (int64_t r0 = 0; r0 < rows; r0 += 16) {
    uint8_t* block_rows = dst + r0 * dst_stride_bytes;
    const int64_t n = rows - r0;
    if (columns >= 16) {
      for (int64_t c = 0;; c = std::min(c + 16, columns - 16)) {
        transpose_16x16(src + c * 64 + r0, 64, 16, block_rows + c, dst_stride_bytes, n);
        if (c + 16 >= columns) break;
      }
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < std::min<int64_t>(16, n); ++r) {
          block_rows[r * dst_stride_bytes + c] = src[c * 64 + r0 + r];
        }
      }
    }
  }
}

}  // namespace qvl::image
