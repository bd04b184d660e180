// Integer GEMV of one row of x for AVX2, what a decode step waits for (int8_kernels.h, spec 6.4, 10).
//
// Four rows of weights meet 32 bytes of themselves at a time, as they lie: 64 columns of 4 bits, 32 of 8. The four
// vectors of products are then summed across and come out as one, an output a lane, exactly: so the sums of groups are
// added in the order of int8_gemv_avx2.cc, which reads weights across rows because it has several rows of x to share the
// transpose. The bits are the same, in three quarters of the instructions.
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/int8_weight.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

#include "qvl/kernels/int8_vec_avx2.h"

namespace qvl::kernels {
namespace {

using namespace avx2;

constexpr int kRows = 4;              // of weights
constexpr int64_t kVectorBytes = 32;  // of each of them
constexpr int64_t kPrefetchBytes = 1024, kPrefetchScaleBytes = 256;

constexpr int64_t kHalf = 32;         // columns of 4 bits of each half of a vector
constexpr int64_t kScales = 8;        // blocks whose scales are loaded at once
constexpr int64_t kChunk = kScales * kHalf;

// Prepared x, padded with zeros to whole chunks: q (4 bits: for each vector [16] even, [16] even, [16] odd, [16] odd ones of
// the first and of the second half), then with 4 bits 8 * sum of q of each half, [4] times each, then the scale of each group.
int64_t padded(int64_t k) {
  return (k + kChunk - 1) / kChunk * kChunk;
}
int64_t prepared_sums(const Int8Weight& w) {
  return w.bits == 4 ? padded(w.k) / kHalf * 16 : 0;
}

bool fits(const Int8Weight& w) {
  return w.zero_points == nullptr && w.block >= kHalf;
}

size_t prepared_bytes(const Int8Weight& w) {
  return static_cast<size_t>(padded(w.k) + prepared_sums(w) + padded(w.k) / w.group() * 4);
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const int64_t columns = int8_padded(w.k);  // of q and scales
  std::byte* const sums = dst + padded(w.k);
  if (columns < padded(w.k)) std::memset(dst, 0, prepared_bytes(w));
  std::memcpy(sums + prepared_sums(w), scales, sizeof(float) * static_cast<size_t>(columns / w.group()));
  if (w.bits == 8) {
    std::memcpy(dst, q, static_cast<size_t>(columns));
    return;
  }
  for (int64_t half = 0; half < columns / kHalf; ++half) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + half * kHalf));
    const __m256i split = split_even_odd(v);
    int32_t halves[2];
    sum_halves(v, halves);
    std::byte* to = dst + half / 2 * 64 + half % 2 * 16;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(split));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 32), _mm256_extracti128_si256(split, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 16 * half), _mm_set1_epi32(8 * (halves[0] + halves[1])));
  }
}

template <bool kPairs>
inline __m256i add_lanes(__m256i a, __m256i b) {
  return kPairs ? _mm256_add_epi16(a, b) : _mm256_add_epi32(a, b);
}

// The sums across of four vectors whose 32-bit lanes hold what belongs together, 16-bit sums of two each or one of 32
// bits: in each half, lane n is that of vector n.
template <bool kPairs>
inline __m256i sum_across(const __m256i (&v)[kRows]) {
  const __m256i a = add_lanes<kPairs>(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
  const __m256i b = add_lanes<kPairs>(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
  return add_lanes<kPairs>(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

// The scales of 8 blocks of four rows times `factors`, a vector of the rows each; `count` of them are there.
template <typename Scale>
inline void load_scales(const std::byte* p, int64_t stride, int64_t count, __m256 factors, __m128 (&scales)[kScales]) {
  __m256 rows[kRows];
#pragma GCC unroll 4
  for (int n = 0; n < kRows; ++n) {
    const auto* row = reinterpret_cast<const typename Scale::Element*>(p + n * stride);
    rows[n] = _mm256_mul_ps(count >= kScales ? Scale::load(row) : Scale::load_n(row, count), factors);
  }
  const __m256 a = _mm256_unpacklo_ps(rows[0], rows[1]), b = _mm256_unpackhi_ps(rows[0], rows[1]);
  const __m256 c = _mm256_unpacklo_ps(rows[2], rows[3]), d = _mm256_unpackhi_ps(rows[2], rows[3]);
  const __m256 both[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee), _mm256_shuffle_ps(b, d, 0x44),
                          _mm256_shuffle_ps(b, d, 0xee)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    scales[i] = _mm256_castps256_ps128(both[i]);
    scales[i + 4] = _mm256_extractf128_ps(both[i], 1);
  }
}

inline __m256i load(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// The products of a vector of four rows, `stride` apart, with x, summed across: each half has the rows' sums of its
// columns, exactly. `sums`: those of x.
template <int kBits>
inline __m256i products(const std::byte* p, int64_t stride, const std::byte* x, const std::byte* sums) {
  __m256i dots[kRows];
  if constexpr (kBits == 4) {
    const __m256i nibble = _mm256_set1_epi8(15), first = load(x), second = load(x + kVectorBytes);
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      const __m256i v = load(p + n * stride);
      const __m256i even = _mm256_maddubs_epi16(_mm256_and_si256(v, nibble), first);
      const __m256i odd = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 4), nibble), second);
      dots[n] = _mm256_add_epi16(even, odd);
    }
    // Four sums of two products still fit 16 bits, twice: 15 * 127 * 2 * 2 * 4.
    return _mm256_sub_epi32(widen_pairs(sum_across<true>(dots)), load(sums));
  } else {
    const __m256i q = load(x);
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      const __m256i v = _mm256_xor_si256(load(p + n * stride), _mm256_set1_epi8(static_cast<char>(0x80)));
      dots[n] = widen_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(q, v)));
    }
    return sum_across<false>(dots);
  }
}

inline __m128i low_half(__m256i v) {
  return _mm256_castsi256_si128(v);
}
inline __m128i high_half(__m256i v) {
  return _mm256_extracti128_si256(v, 1);
}

// As all kernels of AVX2 add the sum of a group. `scale`: of weights and x together.
inline __m128 add_group(__m128 sum, __m128i dot, __m128 scale) {
  return _mm_fmadd_ps(_mm_cvtepi32_ps(dot), scale, sum);
}

// Where `bytes` of four rows from byte `at` on can be read, and how far apart: in place, or in `room`, zeros behind the
// end of the rows.
struct Rows {
  const std::byte* first;
  int64_t stride;
};
inline Rows whole(const Int8Weight& w, int64_t stride, int64_t at, int64_t bytes, std::byte* room) {
  const std::byte* p = w.data + at;
  const int64_t left = w.data_stride - at;
  if (left >= bytes) [[likely]] return {p, stride};
  std::memset(room, 0, static_cast<size_t>(kRows * bytes));
  for (int64_t n = 0; n < kRows; ++n) std::memcpy(room + n * bytes, p + n * stride, static_cast<size_t>(left));
  return {room, bytes};
}

// Asks for what comes later in two of the rows, from `p` on.
inline void prefetch_two(const std::byte* p, int64_t stride) {
  _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes + stride), _MM_HINT_T0);
}

// c[n * apart], 0 <= n < 4: x with the four rows of w that lie `apart` rows apart. kOnce: groups of 32 columns, half of a
// vector of 4-bit weights or a vector of 8-bit ones; else groups are whole vectors.
template <typename Scale, int kBits, bool kOnce>
inline void four(const std::byte* x, const Int8Weight& w, int64_t apart, float* c) {
  constexpr int64_t kXBytes = kBits == 4 ? 64 : 32;  // of x that meet a vector
  const int64_t stride = apart * w.data_stride, scale_stride = apart * w.scale_stride;
  const std::byte* sums = x + padded(w.k);
  const auto* x_scales = reinterpret_cast<const float*>(sums + prepared_sums(w));
  const int64_t blocks = w.blocks();

  __m128 sum = _mm_setzero_ps();
  __m128 scales[kScales];
  const auto load_next_scales = [&](int64_t block, __m256 factors) __attribute__((always_inline)) {
    const std::byte* p = w.scales + block * static_cast<int64_t>(sizeof(typename Scale::Element));
    _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchScaleBytes + block / kScales % 4 * scale_stride), _MM_HINT_T0);
    load_scales<Scale>(p, scale_stride, std::min(kScales, blocks - block), factors, scales);
  };
  if constexpr (kOnce) {
    constexpr int64_t kBytes = kChunk * kBits / 8;
    constexpr int kVectors = kBytes / kVectorBytes;
    std::byte room[kRows * kBytes];
    const std::byte* at = w.data;
    for (int64_t block = 0; block < blocks; block += kScales, at += kBytes) {
      load_next_scales(block, _mm256_loadu_ps(x_scales));
      const Rows rows = whole(w, stride, at - w.data, kBytes, room);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        prefetch_two(at + v / 2 * 2 * kVectorBytes + v % 2 * 2 * stride, stride);
        const __m256i dot = products<kBits>(rows.first + v * kVectorBytes, rows.stride, x + v * kXBytes, sums + v * kVectorBytes);
        if constexpr (kBits == 4) {
          sum = add_group(sum, low_half(dot), scales[2 * v]);
          sum = add_group(sum, high_half(dot), scales[2 * v + 1]);
        } else {
          sum = add_group(sum, _mm_add_epi32(low_half(dot), high_half(dot)), scales[v]);
        }
      }
      x += kVectors * kXBytes;
      sums += kVectors * kVectorBytes;
      x_scales += kScales;
    }
  } else {
    const int64_t groups = (w.k + w.group() - 1) / w.group(), groups_a_block = w.block / w.group();
    const int64_t bytes = w.group() * kBits / 8;
    std::byte room[kRows * kInt8Pad];
    const std::byte* at = w.data;
    for (int64_t g = 0, block = 0, next_block = 0; g < groups; ++g, at += bytes) {
      if (g == next_block) {
        if (block % kScales == 0) load_next_scales(block, _mm256_set1_ps(1));
        ++block;
        next_block += groups_a_block;
      }
      const Rows rows = whole(w, stride, at - w.data, bytes, room);
      __m256i dot = _mm256_setzero_si256();
      for (int64_t i = 0; i < bytes; i += kVectorBytes, x += kXBytes, sums += kVectorBytes) {
        prefetch_two(at + i / 64 * 64 + i / kVectorBytes % 2 * 2 * stride, stride);
        dot = _mm256_add_epi32(dot, products<kBits>(rows.first + i, rows.stride, x, sums));
      }
      const __m128 scale = _mm_mul_ps(scales[(block - 1) % kScales], _mm_set1_ps(x_scales[g]));
      sum = add_group(sum, _mm_add_epi32(low_half(dot), high_half(dot)), scale);
    }
  }
  if constexpr (std::is_same_v<Scale, I8>) {
    float factors[kRows];
    int8_row_factors(w, apart, kRows, factors);
    sum = _mm_mul_ps(sum, _mm_loadu_ps(factors));
  }
  float lanes[kRows];
  _mm_storeu_ps(lanes, sum);
  for (int64_t n = 0; n < kRows; ++n) c[n * apart] = lanes[n];
}

template <typename Scale, int kBits, bool kOnce>
void run_format(const std::byte* x, const Int8Weight& w, int64_t n, float* c) {
  // Four streams, each in address order: memory serves streams of different pages faster than one.
  const int64_t apart = n / kRows;
  for (int64_t j = 0; j < apart; ++j) four<Scale, kBits, kOnce>(x, w.rows_from(j), apart, c + j);
  if (n >= kRows && n % kRows != 0) {
    four<Scale, kBits, kOnce>(x, w.rows_from(n - kRows), 1, c + n - kRows);  // some of them again: the same bits
  } else if (n < kRows) {
    for (int64_t j = 0; j < n; ++j) four<Scale, kBits, kOnce>(x, w.rows_from(j), 0, c + j);  // one row four times
  }
}

template <typename Scale>
void run_scale(const std::byte* x, const Int8Weight& w, int64_t n, float* c) {
  const bool once = w.group() == kHalf;
  if (w.bits == 4) {
    once ? run_format<Scale, 4, true>(x, w, n, c) : run_format<Scale, 4, false>(x, w, n, c);
  } else {
    once ? run_format<Scale, 8, true>(x, w, n, c) : run_format<Scale, 8, false>(x, w, n, c);
  }
}

void run(const std::byte* x, int64_t, int64_t, const Int8Weight& w, int64_t n, float* c, int64_t) {
  if (w.scale_type == DType::kF32) run_scale<F32>(x, w, n, c);
  if (w.scale_type == DType::kBF16) run_scale<BF16>(x, w, n, c);
  if (w.scale_type == DType::kF16) run_scale<F16>(x, w, n, c);
  if (w.scale_type == DType::kI8) run_scale<I8>(x, w, n, c);
}

}  // namespace

const Int8FewRowsKernel& int8_few_rows_avx2() {
  static const Int8FewRowsKernel kernel = {fits, 1, {prepared_bytes, prepare, run, 0}};
  return kernel;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
