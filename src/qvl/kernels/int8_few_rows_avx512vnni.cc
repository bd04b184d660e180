// Integer GEMV of one to three rows of x for AVX-512 with VNNI, what a decode step waits for (int8_kernels.h, spec 6.4, 10).
//
// Four rows of weights meet 64 bytes of themselves at a time, as they lie: 128 columns of 4 bits, 64 of 8. A lane of 32 bits
// sums the products of 8 or 4 columns; the four vectors are then summed across and come out as one, in each quarter an output
// a lane, exactly. So the sums of groups are added in the order of int8_avx512vnni.cc's tiles and the bits are the same.
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"

#if defined(__x86_64__)

// GCC 12 reports the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

namespace qvl::kernels {
namespace {

using namespace avx512;

constexpr int kRows = 4;              // of weights
constexpr int64_t kVectorBytes = 64;  // of each of them
constexpr int64_t kScales = 16;       // groups whose scales are made at once
constexpr int kMaxRows = 3;           // of x; four are faster in int8_gemv_avx512vnni.cc
// Processors foresee four streams, and asking for what comes later only costs then; but not beside an x that fills the nearest
// cache.
constexpr int64_t kLongX = 8192, kPrefetchBytes = 2048;

template <int kBits>
constexpr int64_t kColumns = kVectorBytes * 8 / kBits;  // of a vector

// Prepared x, padded with zeros to whole vectors. For each vector of 4 bits [64] even q, [64] odd q, of 8 bits [64] q; then,
// by lanes, [16] what takes the zero point off the products: -8 or -128 times the sums of q. Behind all of them the scale of
// each group, padded with zeros to kScales.
template <int kBits>
constexpr int64_t kRecord = kBits == 4 ? 192 : 128;

int64_t vectors(const Int8Weight& w) {
  const int64_t columns = w.bits == 4 ? kColumns<4> : kColumns<8>;
  return (w.k + columns - 1) / columns;
}
int64_t records_bytes(const Int8Weight& w) {
  return vectors(w) * (w.bits == 4 ? kRecord<4> : kRecord<8>);
}
int64_t padded_groups(const Int8Weight& w) {
  return (int8_padded(w.k) / w.group() + kScales - 1) / kScales * kScales;
}

bool fits(const Int8Weight& w) {
  return w.zero_points == nullptr && w.group() >= 32;
}

size_t prepared_bytes(const Int8Weight& w) {
  return static_cast<size_t>(records_bytes(w) + padded_groups(w) * static_cast<int64_t>(sizeof(float)));
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const int64_t groups = int8_padded(w.k) / w.group();
  float* const to = reinterpret_cast<float*>(dst + records_bytes(w));
  std::memcpy(to, scales, sizeof(float) * static_cast<size_t>(groups));
  std::fill(to + groups, to + padded_groups(w), 0.0f);

  const __m512i ones = _mm512_set1_epi8(1);
  if (w.bits == 8) {
    for (int64_t v = 0; v < vectors(w); ++v, dst += kRecord<8>) {
      const __m512i x = _mm512_loadu_si512(q + v * kColumns<8>);
      _mm512_store_si512(dst, x);
      _mm512_store_si512(dst + 64, _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, x)), 7));
    }
    return;
  }
  // Bytes 0, 2, 4, ... of two vectors, or 1, 3, 5, ...
  const __m512i low = _mm512_set1_epi16(0xff);
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  for (int64_t v = 0; v < vectors(w); ++v, dst += kRecord<4>) {
    const __m512i a = _mm512_loadu_si512(q + v * kColumns<4>), b = _mm512_loadu_si512(q + v * kColumns<4> + 64);
    const __m512i even = _mm512_permutexvar_epi64(order, _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low)));
    const __m512i odd = _mm512_permutexvar_epi64(order, _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8)));
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, even), ones, odd);
    _mm512_store_si512(dst, even);
    _mm512_store_si512(dst + 64, odd);
    _mm512_store_si512(dst + 128, _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sums), 3));
  }
}

// The sums across of the lanes of each quarter of four vectors: lane n of a quarter is that of vector n.
inline __m512i sum_across(const __m512i (&v)[kRows]) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// A vector of each of four rows of weights as unsigned bytes; of 4 bits the even columns, then the odd ones.
template <int kBits>
struct Codes {
  inline Codes(const std::byte* p, int64_t stride) {
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      const __m512i v = _mm512_loadu_si512(p + n * stride);
      if constexpr (kBits == 4) {
        const __m512i nibble = _mm512_set1_epi8(15);
        first[n] = _mm512_and_si512(v, nibble);
        second[n] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
      } else {
        first[n] = v;
      }
    }
  }
  // Their products with x: each quarter has the rows' sums of its columns, exactly.
  inline __m512i products(const std::byte* x) const {
    const __m512i correction = _mm512_load_si512(x + kRecord<kBits> - 64);
    __m512i dots[kRows];
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      dots[n] = _mm512_dpbusd_epi32(correction, first[n], _mm512_load_si512(x));
      if constexpr (kBits == 4) dots[n] = _mm512_dpbusd_epi32(dots[n], second[n], _mm512_load_si512(x + 64));
    }
    return sum_across(dots);
  }

  __m512i first[kRows], second[kBits == 4 ? kRows : 1];
};

// Scales of 16 groups of the four rows times those of kM rows of x, [kRows] each.
template <int kM>
class Scales {
 public:
  // From group `first` on; the rows' scales lie at `p`, `stride` bytes apart, those of x at `x_scales`, `x_stride` apart.
  template <typename Scale>
  inline void load(const std::byte* p, int64_t stride, int64_t first, int shift, int64_t blocks, const std::byte* x_scales,
                   int64_t x_stride) {
    // Groups share the scale of a block that is wider than they are.
    const int64_t block = first >> shift;
    const __mmask16 mask = first_lanes(std::min<int64_t>(kScales, blocks - block));
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i group = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first - (block << shift))));
    const __m512i index = _mm512_srl_epi32(group, _mm_cvtsi32_si128(shift));
    __m512 rows[kRows];
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      const auto* row = reinterpret_cast<const typename Scale::Element*>(p + n * stride);
      rows[n] = _mm512_permutexvar_ps(index, Scale::load(row + block, mask));
    }
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      const __m512 of_x = _mm512_loadu_ps(x_scales + m * x_stride);
      __m512 both[kRows];
#pragma GCC unroll 4
      for (int n = 0; n < kRows; ++n) both[n] = _mm512_mul_ps(rows[n], of_x);
      const __m512 a = _mm512_unpacklo_ps(both[0], both[1]), b = _mm512_unpackhi_ps(both[0], both[1]);
      const __m512 c = _mm512_unpacklo_ps(both[2], both[3]), d = _mm512_unpackhi_ps(both[2], both[3]);
      _mm512_store_ps(scales_[m], _mm512_shuffle_ps(a, c, 0x44));
      _mm512_store_ps(scales_[m] + 16, _mm512_shuffle_ps(a, c, 0xee));
      _mm512_store_ps(scales_[m] + 32, _mm512_shuffle_ps(b, d, 0x44));
      _mm512_store_ps(scales_[m] + 48, _mm512_shuffle_ps(b, d, 0xee));
    }
  }
  // Of the group `g` from the first one and row `m` of x.
  inline __m128 of(int m, int64_t g) const { return _mm_load_ps(scales_[m] + g % 4 * 16 + g / 4 * 4); }

 private:
  alignas(64) float scales_[kM][kScales * kRows];
};

// c[m * ldc + n * apart], 0 <= m < kM, 0 <= n < 4: kM rows of x, x_stride bytes apart, with the four rows of w that lie
// `apart` rows apart, whose groups have kGroup columns.
template <typename Scale, int kBits, int kGroup, int kM>
inline void four(const std::byte* x, int64_t x_stride, const Int8Weight& w, int64_t apart, float* c, int64_t ldc) {
  constexpr int64_t kVectorsOfScales = kScales * kGroup / kColumns<kBits>;
  const int64_t stride = apart * w.data_stride, scale_stride = apart * w.scale_stride;
  const std::byte* x_scales = x + records_bytes(w);
  const int64_t blocks = w.blocks(), all = vectors(w);
  const int shift = std::countr_zero(static_cast<uint64_t>(w.block / kGroup));

  __m128 sums[kM];
#pragma GCC unroll 4
  for (int m = 0; m < kM; ++m) sums[m] = _mm_setzero_ps();
  Scales<kM> scales;
  __m512i halves[kM];  // of a group of two vectors
  // Products with row m of x of the vector v from the first of the scales.
  const auto take = [&](int m, __m512i dot, int64_t v) __attribute__((always_inline)) {
    // A sum of products of one group.
    const auto add = [&](__m128 group, int64_t g) __attribute__((always_inline)) {
      sums[m] = _mm_fmadd_ps(group, scales.of(m, g), sums[m]);
    };
    if constexpr (kColumns<kBits> == 4 * kGroup) {
      const __m512 quarters = _mm512_cvtepi32_ps(dot);
      add(_mm512_castps512_ps128(quarters), 4 * v);
      add(_mm512_extractf32x4_ps(quarters, 1), 4 * v + 1);
      add(_mm512_extractf32x4_ps(quarters, 2), 4 * v + 2);
      add(_mm512_extractf32x4_ps(quarters, 3), 4 * v + 3);
    } else if constexpr (kColumns<kBits> == 2 * kGroup) {
      const __m512 pairs = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, _mm512_shuffle_i64x2(dot, dot, 0xb1)));
      add(_mm512_castps512_ps128(pairs), 2 * v);
      add(_mm512_extractf32x4_ps(pairs, 2), 2 * v + 1);
    } else {
      constexpr int64_t kVectors = kGroup / kColumns<kBits>;
      static_assert(kVectors == 1 || kVectors == 2);
      if (kVectors == 2 && v % 2 == 0) {
        halves[m] = dot;
        return;
      }
      if (kVectors == 2) dot = _mm512_add_epi32(dot, halves[m]);
      const __m256i pair = _mm256_add_epi32(_mm512_castsi512_si256(dot), _mm512_extracti64x4_epi64(dot, 1));
      const __m128i one = _mm_add_epi32(_mm256_castsi256_si128(pair), _mm256_extracti128_si256(pair, 1));
      add(_mm_cvtepi32_ps(one), v / kVectors);
    }
  };
  const auto vector = [&](const std::byte* p, int64_t distance, int64_t v) __attribute__((always_inline)) {
    const Codes<kBits> codes(p, distance);
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) take(m, codes.products(x + m * x_stride), v);
    x += kRecord<kBits>;
  };

  const std::byte* p = w.data;
  const bool asks = kM * records_bytes(w) > kLongX;
  const auto next = [&](int64_t v) __attribute__((always_inline)) {
    if (asks) {
#pragma GCC unroll 4
      for (int n = 0; n < kRows; ++n) _mm_prefetch(reinterpret_cast<const char*>(p + n * stride + kPrefetchBytes), _MM_HINT_T1);
    }
    vector(p, stride, v);
    p += kVectorBytes;
  };
  const int64_t whole = std::min(all, w.data_stride / kVectorBytes);
  for (int64_t v = 0; v < all;) {
    const int64_t group = v * kColumns<kBits> / kGroup;
    scales.template load<Scale>(w.scales, scale_stride, group, shift, blocks, x_scales + group * static_cast<int64_t>(sizeof(float)), x_stride);
    const int64_t end = std::min(whole - v, kVectorsOfScales);
    int64_t i = 0;
    if (end == 4) {
#pragma GCC unroll 4
      for (; i < 4; ++i) next(i);
    } else {
      for (; i < end; ++i) next(i);
    }
    v += i;
    if (i < kVectorsOfScales && v < all) {  // the last one, not whole
      alignas(64) std::byte room[kRows][kVectorBytes] = {};
      const auto left = static_cast<size_t>(w.data_stride % kVectorBytes);
      for (int64_t n = 0; n < kRows; ++n) std::memcpy(room[n], p + n * stride, left);
      vector(room[0], kVectorBytes, i);
      ++v;
      ++i;
    }
    if constexpr (kGroup > kColumns<kBits>) {
      if (i % 2 == 1) {  // the second half of the last group is not there
        for (int m = 0; m < kM; ++m) take(m, _mm512_setzero_si512(), i);
      }
    }
  }
  if constexpr (std::is_same_v<Scale, I8>) {
    float factors[kRows];
    int8_row_factors(w, apart, kRows, factors);
    for (int m = 0; m < kM; ++m) sums[m] = _mm_mul_ps(sums[m], _mm_loadu_ps(factors));
  }
  for (int m = 0; m < kM; ++m) {
    float lanes[kRows];
    _mm_storeu_ps(lanes, sums[m]);
    for (int64_t n = 0; n < kRows; ++n) c[m * ldc + n * apart] = lanes[n];
  }
}

template <typename Scale, int kBits, int kGroup, int kM>
void run_rows(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  if constexpr (kM > 1) {
    if (m < kM) return run_rows<Scale, kBits, kGroup, kM - 1>(x, x_stride, m, w, n, c, ldc);
  }
  const auto at = [&](int64_t j, int64_t apart) __attribute__((always_inline)) {
    four<Scale, kBits, kGroup, kM>(x, x_stride, w.rows_from(j), apart, c + j, ldc);
  };
  // Four streams, each in address order: memory serves streams of different pages faster than one.
  const int64_t apart = n / kRows;
  for (int64_t j = 0; j < apart; ++j) at(j, apart);
  if (n >= kRows && n % kRows != 0) {
    at(n - kRows, 1);  // some of them again: the same bits
  } else if (n < kRows) {
    for (int64_t j = 0; j < n; ++j) at(j, 0);  // one row four times
  }
}

template <typename Scale, int kBits>
void run_bits(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  switch (w.group()) {
    case 32: return run_rows<Scale, kBits, 32, kMaxRows>(x, x_stride, m, w, n, c, ldc);
    case 64: return run_rows<Scale, kBits, 64, kMaxRows>(x, x_stride, m, w, n, c, ldc);
    default: return run_rows<Scale, kBits, 128, kMaxRows>(x, x_stride, m, w, n, c, ldc);
  }
}

template <typename Scale>
void run_scale(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  w.bits == 4 ? run_bits<Scale, 4>(x, x_stride, m, w, n, c, ldc) : run_bits<Scale, 8>(x, x_stride, m, w, n, c, ldc);
}

void run(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  if (w.scale_type == DType::kF32) run_scale<F32>(x, x_stride, m, w, n, c, ldc);
  if (w.scale_type == DType::kBF16) run_scale<BF16>(x, x_stride, m, w, n, c, ldc);
  if (w.scale_type == DType::kF16) run_scale<F16>(x, x_stride, m, w, n, c, ldc);
  if (w.scale_type == DType::kI8) run_scale<I8>(x, x_stride, m, w, n, c, ldc);
}

}  // namespace

const Int8FewRowsKernel& int8_few_rows_avx512vnni() {
  static const Int8FewRowsKernel kernel = {fits, kMaxRows, {prepared_bytes, prepare, run, 0}};
  return kernel;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
