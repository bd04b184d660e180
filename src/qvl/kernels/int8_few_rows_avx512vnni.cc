// Integer GEMV of one to three rows of x for AVX-512 with VNNI, what a decode step waits for (int8_kernels.h, spec 6.4, 10).
//
// Four rows of weights meet 64 bytes of themselves at a time, as they lie: 128 columns of 4 bits, 64 of 8. A lane of 32 bits
// sums the products of 8 or 4 columns; the four vectors are then summed across and come out as one, in each quarter an output
// a lane, exactly. So the sums of groups are added in the order of int8_avx512vnni.cc's tiles and the bits are the same.
//
// What a vector takes beside its products decides the pace: vectors of 512 bits take two turns of a unit, and the fewer
// instructions a line of weights takes, the further ahead the processor reads. So 4-bit weights in blocks of 32 with scales of a byte
// (by_codes), what `qvl export` writes, have a way of their own: no value of it is rounded before sums of groups are added.
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

// The columns of four vectors, the groups of which are 16 codes of a row's scales.
constexpr int64_t kSetVectors = kScales * 32 / kColumns<4>;

// Scales of x that are powers of two: a group's sum, at most 32 * 8 * 127, times the code of its scale is exact in 24 bits, and so
// is that times the scale of x.
bool by_codes(const Int8Weight& w) {
  return w.bits == 4 && w.block == 32 && w.scale_type == DType::kI8 && w.power_scales();
}

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

// Prepared x by codes: for each vector [64] even q, [64] odd q; then of each group what takes the zero point off, -8 times the sum
// of q, as int32, then its scale; all padded with zeros to whole sets.
constexpr int64_t kCodesRecord = 128;
struct CodesOfX {
  explicit CodesOfX(const Int8Weight& w) : groups(padded_groups(w)), corrections(groups / kScales * kSetVectors * kCodesRecord) {}
  int64_t scales() const { return corrections + groups * static_cast<int64_t>(sizeof(int32_t)); }
  int64_t bytes() const { return scales() + groups * static_cast<int64_t>(sizeof(float)); }

  int64_t groups;
  int64_t corrections;  // from here on, in bytes
};

size_t prepared_bytes(const Int8Weight& w) {
  if (by_codes(w)) return static_cast<size_t>(CodesOfX(w).bytes());
  return static_cast<size_t>(records_bytes(w) + padded_groups(w) * static_cast<int64_t>(sizeof(float)));
}

// q of the even columns of a vector of 4 bits, and of the odd ones.
inline void split_columns(const int8_t* q, __m512i& even, __m512i& odd) {
  const __m512i low = _mm512_set1_epi16(0xff);
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i a = _mm512_loadu_si512(q), b = _mm512_loadu_si512(q + 64);
  even = _mm512_permutexvar_epi64(order, _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low)));
  odd = _mm512_permutexvar_epi64(order, _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8)));
}
// By lanes, -8 times the sums of both.
inline __m512i zero_point_correction(__m512i even, __m512i odd) {
  const __m512i ones = _mm512_set1_epi8(1);
  const __m512i sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, even), ones, odd);
  return _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sums), 3);
}

void prepare_codes(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const CodesOfX layout(w);
  std::byte* const end = dst + layout.bytes();
  auto* const corrections = reinterpret_cast<int32_t*>(dst + layout.corrections);
  auto* const to = reinterpret_cast<float*>(dst + layout.scales());
  for (int64_t v = 0; v < vectors(w); ++v, dst += kCodesRecord) {
    __m512i even, odd;
    split_columns(q + v * kColumns<4>, even, odd);
    _mm512_store_si512(dst, even);
    _mm512_store_si512(dst + 64, odd);
    const __m512i lanes = zero_point_correction(even, odd);
    const __m512i pairs = _mm512_add_epi32(lanes, _mm512_shuffle_epi32(lanes, _MM_PERM_CDAB));
    const __m512i groups = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_BADC));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(corrections + 4 * v), _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, groups)));
  }
  std::memset(dst, 0, static_cast<size_t>(reinterpret_cast<std::byte*>(corrections) - dst));
  std::fill(corrections + 4 * vectors(w), corrections + layout.groups, 0);
  const int64_t groups = int8_padded(w.k) / w.group();
  std::memcpy(to, scales, sizeof(float) * static_cast<size_t>(groups));
  std::fill(to + groups, reinterpret_cast<float*>(end), 0.0f);
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  if (by_codes(w)) return prepare_codes(w, q, scales, dst);
  const int64_t groups = int8_padded(w.k) / w.group();
  float* const to = reinterpret_cast<float*>(dst + records_bytes(w));
  std::memcpy(to, scales, sizeof(float) * static_cast<size_t>(groups));
  std::fill(to + groups, to + padded_groups(w), 0.0f);

  if (w.bits == 8) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t v = 0; v < vectors(w); ++v, dst += kRecord<8>) {
      const __m512i x = _mm512_loadu_si512(q + v * kColumns<8>);
      _mm512_store_si512(dst, x);
      _mm512_store_si512(dst + 64, _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, x)), 7));
    }
    return;
  }
  for (int64_t v = 0; v < vectors(w); ++v, dst += kRecord<4>) {
    __m512i even, odd;
    split_columns(q + v * kColumns<4>, even, odd);
    _mm512_store_si512(dst, even);
    _mm512_store_si512(dst + 64, odd);
    _mm512_store_si512(dst + 128, zero_point_correction(even, odd));
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

// Codes of the scales of 16 groups of four rows, a vector's four groups each: in each of them the rows' codes.
struct CodesOfScales {
  // `count` of the groups are there; the rows' codes lie at `p`, `stride` bytes apart.
  inline void load(const std::byte* p, int64_t stride, int64_t count) {
    const __mmask16 mask = first_lanes(count);
    const __m128i r0 = _mm_maskz_loadu_epi8(mask, p), r1 = _mm_maskz_loadu_epi8(mask, p + stride);
    const __m128i r2 = _mm_maskz_loadu_epi8(mask, p + 2 * stride), r3 = _mm_maskz_loadu_epi8(mask, p + 3 * stride);
    const __m128i a = _mm_unpacklo_epi8(r0, r1), b = _mm_unpackhi_epi8(r0, r1);
    const __m128i c = _mm_unpacklo_epi8(r2, r3), d = _mm_unpackhi_epi8(r2, r3);
    of[0] = _mm_unpacklo_epi16(a, c);
    of[1] = _mm_unpackhi_epi16(a, c);
    of[2] = _mm_unpacklo_epi16(b, d);
    of[3] = _mm_unpackhi_epi16(b, d);
  }

  __m128i of[kSetVectors];
};

// What sum_across gives, of lanes whose sums, and those of two neighbours, fit 16 bits.
inline __m512i short_sum_across(const __m512i (&v)[kRows]) {
  const __m512i ones = _mm512_set1_epi16(1);
  const __m512i a = _mm512_madd_epi16(_mm512_packs_epi32(v[0], v[1]), ones);
  const __m512i b = _mm512_madd_epi16(_mm512_packs_epi32(v[2], v[3]), ones);
  return _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones);
}

// What `four` does, by codes; kAsked: weights kPrefetchBytes ahead are asked for.
template <int kM, bool kAsked>
class FourByCodes {
 public:
  FourByCodes(const std::byte* x, int64_t x_stride, const Int8Weight& w, int64_t apart, int64_t ldc)
      : x_(x), x_stride_(x_stride), w_(w), apart_(apart), ldc_(ldc), stride_(apart * w.data_stride), scale_stride_(apart * w.scale_stride) {
    const CodesOfX layout(w);
    corrections_ = layout.corrections;
    to_scales_ = layout.scales() - layout.corrections;
  }

  // The rows from `row` on.
  inline void operator()(int64_t row, float* c) const {
    __m128 sums[kM];
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) sums[m] = _mm_setzero_ps();

    const std::byte* p = w_.data + row * w_.data_stride;
    const std::byte* const scales = w_.scales + row * w_.scale_stride;
    const int64_t whole = w_.data_stride / kSetBytes;
    for (int64_t i = 0; i < whole; ++i, p += kSetBytes) set<kAsked>(i, p, stride_, scales, sums);
    if (const auto left = static_cast<size_t>(w_.data_stride % kSetBytes); left != 0) {
      alignas(64) std::byte room[kRows][kSetBytes] = {};
      for (int64_t n = 0; n < kRows; ++n) std::memcpy(room[n], p + n * stride_, left);
      set<false>(whole, room[0], kSetBytes, scales, sums);
    }

    const auto factor = [&](int64_t n) { return std::bit_cast<int32_t>(int8_row_factor(w_, row + n * apart_)); };
    const __m128 factors = _mm_castsi128_ps(_mm_setr_epi32(factor(0), factor(1), factor(2), factor(3)));
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) {
      float lanes[kRows];
      _mm_storeu_ps(lanes, _mm_mul_ps(sums[m], factors));
      for (int64_t n = 0; n < kRows; ++n) c[m * ldc_ + n * apart_] = lanes[n];
    }
  }

 private:
  static constexpr int64_t kSetBytes = kSetVectors * kVectorBytes;

  // The set `i` of each row, from p on, `stride` bytes apart; the rows' scales begin at `scales`.
  template <bool kAsks>
  inline __attribute__((always_inline)) void set(int64_t i, const std::byte* p, int64_t stride, const std::byte* scales, __m128 (&sums)[kM]) const {
    CodesOfScales codes;
    codes.load(scales + i * kScales, scale_stride_, std::min(kScales, w_.blocks() - i * kScales));
    const std::byte* x = x_ + i * kSetVectors * kCodesRecord;
    const std::byte* of_groups = x_ + corrections_ + i * kScales * static_cast<int64_t>(sizeof(float));
    const int64_t stride3 = 3 * stride;
#pragma GCC unroll 4
    for (int v = 0; v < kSetVectors; ++v, p += kVectorBytes, x += kCodesRecord, of_groups += sizeof(__m128)) {
      if constexpr (kAsks) {
        const auto* ahead = reinterpret_cast<const char*>(p + kPrefetchBytes);
        _mm_prefetch(ahead, _MM_HINT_T1);
        _mm_prefetch(ahead + stride, _MM_HINT_T1);
        _mm_prefetch(ahead + 2 * stride, _MM_HINT_T1);
        _mm_prefetch(ahead + stride3, _MM_HINT_T1);
      }
      const __m512i nibble = _mm512_set1_epi8(15);
      const __m512i packed[kRows] = {_mm512_loadu_si512(p), _mm512_loadu_si512(p + stride), _mm512_loadu_si512(p + 2 * stride),
                                     _mm512_loadu_si512(p + stride3)};
      __m512i first[kRows], second[kRows];
#pragma GCC unroll 4
      for (int n = 0; n < kRows; ++n) {
        first[n] = _mm512_and_si512(packed[n], nibble);
        second[n] = _mm512_and_si512(_mm512_srli_epi16(packed[n], 4), nibble);
      }
      const __m512i of_scales = _mm512_cvtepi8_epi32(codes.of[v]);
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        const std::byte* const q = x + m * x_stride_;
        const std::byte* const group = of_groups + m * x_stride_;
        // In one of the lanes of each group. With it that lane is at most 8 * 8 * 127 + 24 * 8 * 127 = 32,512, and so are two lanes
        // together; two others have 16 * 15 * 127.
        constexpr __mmask16 kOneOfEach = 0x8421;
        const __m512i correction = _mm512_maskz_broadcast_i32x4(kOneOfEach, _mm_load_si128(reinterpret_cast<const __m128i*>(group)));
        __m512i dots[kRows];
#pragma GCC unroll 4
        for (int n = 0; n < kRows; ++n) {
          dots[n] = _mm512_dpbusd_epi32(correction, first[n], _mm512_load_si512(q));
          dots[n] = _mm512_dpbusd_epi32(dots[n], second[n], _mm512_load_si512(q + 64));
        }
        const __m512 quarters = _mm512_cvtepi32_ps(_mm512_mullo_epi32(short_sum_across(dots), of_scales));
        const auto* const x_scales = reinterpret_cast<const float*>(group + to_scales_);
        const __m256 low = lower_half_ps(quarters), high = upper_half_ps(quarters);
        sums[m] = _mm_fmadd_ps(_mm256_castps256_ps128(low), _mm_set1_ps(x_scales[0]), sums[m]);
        sums[m] = _mm_fmadd_ps(_mm256_extractf128_ps(low, 1), _mm_set1_ps(x_scales[1]), sums[m]);
        sums[m] = _mm_fmadd_ps(_mm256_castps256_ps128(high), _mm_set1_ps(x_scales[2]), sums[m]);
        sums[m] = _mm_fmadd_ps(_mm256_extractf128_ps(high, 1), _mm_set1_ps(x_scales[3]), sums[m]);
      }
    }
  }

  const std::byte* x_;
  int64_t x_stride_;
  Int8Weight w_;
  int64_t apart_, ldc_, stride_, scale_stride_;
  int64_t corrections_, to_scales_;
};

template <typename Scale, int kBits, int kGroup, int kM>
void run_rows(const std::byte* x, int64_t x_stride, int64_t m, const Int8Weight& w, int64_t n, float* c, int64_t ldc) {
  if constexpr (kM > 1) {
    if (m < kM) return run_rows<Scale, kBits, kGroup, kM - 1>(x, x_stride, m, w, n, c, ldc);
  }
  // Of the four rows that lie `apart` rows apart, from each of `count` rows on.
  const auto fours = [&](int64_t first, int64_t count, int64_t apart) {
    if constexpr (std::is_same_v<Scale, I8> && kBits == 4 && kGroup == 32) {
      if (by_codes(w)) {
        const auto all = [&](const auto& four_by_codes) {
          for (int64_t j = first; j < first + count; ++j) four_by_codes(j, c + j);
        };
        const bool asks = kM * CodesOfX(w).bytes() > kLongX;
        asks ? all(FourByCodes<kM, true>(x, x_stride, w, apart, ldc)) : all(FourByCodes<kM, false>(x, x_stride, w, apart, ldc));
        return;
      }
    }
    for (int64_t j = first; j < first + count; ++j) four<Scale, kBits, kGroup, kM>(x, x_stride, w.rows_from(j), apart, c + j, ldc);
  };
  // Four streams, each in address order: memory serves streams of different pages faster than one.
  fours(0, n / kRows, n / kRows);
  if (n >= kRows && n % kRows != 0) {
    fours(n - kRows, 1, 1);  // some of them again: the same bits
  } else if (n < kRows) {
    fours(0, n, 0);  // one row four times
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
