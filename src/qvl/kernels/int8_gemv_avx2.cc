// Integer GEMV for AVX2: weights are read once, unpacked once, and meet every row of x (int8_kernels.h, spec 6.4, 10).
//
// A step is 16 bytes of eight rows of weights, one row a lane: transposed by words of four bytes, vector i holds word i
// of every row, and meets word i of a row of x repeated in all lanes. So no sum crosses lanes, and each output is summed
// in the order of tile() in int8_avx2.cc: exactly within a group, then group after group. The bits are the GEMM's.
//
// VPMADDUBSW adds two products in 16 bits. With weights of 4 bits the sums of 32 columns still fit (15 * 127 * 8 pairs);
// with 8 bits those of two do once the sign has moved from the weight to x (128 * 127 * 2), and are widened at once.
#include "qvl/kernels/int8_gemv_lanes.h"
#include "qvl/kernels/int8_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "qvl/kernels/vec_math_avx2.h"

#pragma GCC target("avx2,fma,f16c")

#include "qvl/kernels/int8_vec_avx2.h"

namespace qvl::kernels {
namespace {

using namespace avx2;
using namespace gemv_lanes;

constexpr int kLanes = 8;  // rows of weights
constexpr int64_t kMaxRows = 16;  // of x in one pass
constexpr int64_t kPrefetchBytes = 384, kPrefetchScaleBytes = 128;

// Prepared x, for each step. 4 bits: [16] even q, [16] odd q, then for each group of it 8 * sum of q; 8 bits: [16] q.
// Then a scale for each group of it.
template <int kBits>
constexpr int64_t record_bytes(bool halves) {
  return kBits == 8 ? 20 : halves ? 48 : 40;
}

size_t prepared_bytes(const Int8Weight& w) {
  return static_cast<size_t>(w.bits == 4 ? steps<4>(w.k) * record_bytes<4>(w.group() == 16)
                                         : steps<8>(w.k) * record_bytes<8>(false));
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const int64_t group = w.group();
  if (w.bits == 8) {
    for (int64_t i = 0; i < w.k; i += kColumns<8>, dst += record_bytes<8>(false)) {
      std::memcpy(dst, q + i, 16);
      std::memcpy(dst + 16, scales + i / group, 4);
    }
    return;
  }
  const int halves = group == 16 ? 2 : 1;
  for (int64_t i = 0; i < w.k; i += kColumns<4>, dst += record_bytes<4>(halves == 2)) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), split_even_odd(v));
    int32_t sums[2];
    sum_halves(v, sums);
    if (halves == 1) sums[0] += sums[1];
    for (int64_t h = 0; h < halves; ++h) {
      const int32_t sum8 = 8 * sums[h];
      std::memcpy(dst + 32 + 4 * h, &sum8, 4);
      std::memcpy(dst + 32 + 4 * (halves + h), scales + i / group + h, 4);
    }
  }
}

inline __m256 repeat_float(const std::byte* p) {
  return _mm256_castsi256_ps(repeat_four(p));
}

// 16 bytes of eight rows `stride` apart: vector i is word i of each of them.
inline void load_words(const std::byte* p, int64_t stride, __m256i (&words)[kWords]) {
  const auto two = [stride](const std::byte* row) __attribute__((always_inline)) {
    const auto* first = reinterpret_cast<const __m128i*>(row);
    const auto* second = reinterpret_cast<const __m128i*>(row + 4 * stride);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(first)), _mm_loadu_si128(second), 1);
  };
#pragma GCC unroll 4
  for (int i = 0; i < kWords; ++i) words[i] = two(p + i * stride);
  transpose_words(words);
}

// The scales of `count` blocks from `block` on, a vector of the eight rows each.
template <typename Scale>
inline void load_scales(const Int8Weight& w, int64_t apart, int64_t block, int64_t count, __m256 (&scales)[8]) {
  const int64_t stride = apart * w.scale_stride;
  const std::byte* p = w.scales + block * static_cast<int64_t>(sizeof(typename Scale::Element));
  const auto row = [p, stride](int64_t n) __attribute__((always_inline)) {
    return reinterpret_cast<const typename Scale::Element*>(p + n * stride);
  };
  // Two of the rows at a time, as many lines of each as they are in use.
  const std::byte* ahead = p + kPrefetchScaleBytes + block / 8 % 4 * 2 * stride;
  _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(ahead + stride), _MM_HINT_T0);
  __m256 rows[kLanes];
  if (count >= 8) {
#pragma GCC unroll 8
    for (int n = 0; n < kLanes; ++n) rows[n] = Scale::load(row(n));
  } else {
    for (int n = 0; n < kLanes; ++n) rows[n] = Scale::load_n(row(n), count);
  }
  transpose_8x8(rows);
#pragma GCC unroll 8
  for (int b = 0; b < 8; ++b) scales[b] = rows[b];
}

// Their zero points.
void load_zero_points(const Int8Weight& w, int64_t apart, int64_t block, int64_t count, __m256i (&zeros)[8]) {
  const std::byte* p = w.zero_points + block / 2;
  uint32_t rows[kLanes] = {};
  for (int n = 0; n < kLanes; ++n) {
    std::memcpy(&rows[n], p + n * apart * w.zero_stride, static_cast<size_t>((count + 1) / 2));
  }
  const __m256i nibbles = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows));
  for (int b = 0; b < 8; ++b) {
    zeros[b] = _mm256_and_si256(_mm256_srl_epi32(nibbles, _mm_cvtsi32_si128(4 * b)), _mm256_set1_epi32(15));
  }
}

// Sums of `rows` rows of x, x_stride apart, with the eight rows of w that lie `apart` rows apart: [rows][8]. kSingle:
// one row of x, whose sums stay in registers.
template <int kBits, bool kZero, Groups kGroups, bool kSingle>
void lanes(const std::byte* x, int64_t x_stride, int64_t rows, const Int8Weight& w, int64_t apart, __m256* sums) {
  constexpr bool kHalves = kGroups == Groups::kHalf;
  constexpr int64_t kRecord = record_bytes<kBits>(kHalves);
  const int64_t stride = apart * w.data_stride, blocks = w.blocks(), group = w.group();
  const __m256i nibble = _mm256_set1_epi8(15);

  __m256 sum = _mm256_setzero_ps();
  __m256i dot_so_far = _mm256_setzero_si256();
  __m256i dots[kGroups == Groups::kSteps ? kMaxRows : 1];
  if constexpr (!kSingle) {
    for (int64_t m = 0; m < rows; ++m) {
      sums[m] = _mm256_setzero_ps();
      if constexpr (kGroups == Groups::kSteps) dots[m] = _mm256_setzero_si256();
    }
  }

  __m256 scales[8];
  __m256i zeros[8];
  std::byte tail[kLanes][kStepBytes];
  int64_t at = 0;  // byte of the rows
  // One step; `last` of its group. `b` is the block, counted from the first of the loaded scales.
  const auto step = [&](int64_t b, bool last) __attribute__((always_inline)) {
    const std::byte* p = w.data + at;
    int64_t distance = stride;
    // The rows of a line take turns.
    const std::byte* ahead = p + kPrefetchBytes + at / kStepBytes % 4 * 2 * stride;
    _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(ahead + stride), _MM_HINT_T0);
    if (const int64_t left = w.data_stride - at; left < kStepBytes) [[unlikely]] {
      std::memset(tail, 0, sizeof(tail));
      for (int n = 0; n < kLanes; ++n) std::memcpy(tail[n], p + n * stride, static_cast<size_t>(left));
      p = tail[0];
      distance = kStepBytes;
    }
    at += kStepBytes;
    __m256i first[kWords], second[kWords];
    load_words(p, distance, second);
#pragma GCC unroll 4
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kBits == 4) {
        first[i] = _mm256_and_si256(second[i], nibble);
        second[i] = _mm256_and_si256(_mm256_srli_epi16(second[i], 4), nibble);
      } else {
        second[i] = _mm256_xor_si256(second[i], _mm256_set1_epi8(static_cast<char>(0x80)));
        first[i] = _mm256_abs_epi8(second[i]);
      }
    }
    // Products of words [begin, end) with a row of x at `q`; of group `half`.
    const auto products = [&](const std::byte* q, int begin, int end, int half) __attribute__((always_inline)) {
      if constexpr (kBits == 4) {
        __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = begin; i < end; ++i) {
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(first[i], repeat_four(q + 4 * i)));
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(second[i], repeat_four(q + 16 + 4 * i)));
        }
        __m256i correction = repeat_four(q + 32 + 4 * half);
        if constexpr (kZero) {
          // Both fit 16 bits.
          correction = _mm256_srai_epi32(_mm256_madd_epi16(zeros[b + half], correction), 3);
        }
        return _mm256_sub_epi32(widen_pairs(pairs), correction);
      } else {
        __m256i dot = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = begin; i < end; ++i) {
          const __m256i xs = _mm256_sign_epi8(repeat_four(q + 4 * i), second[i]);
          dot = _mm256_add_epi32(dot, widen_pairs(_mm256_maddubs_epi16(first[i], xs)));
        }
        return dot;
      }
    };
    const auto add = [&](__m256 total, __m256i dot, __m256 scale, const std::byte* x_scale)
        __attribute__((always_inline)) {
      return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scale, repeat_float(x_scale)), total);
    };
    const auto row = [&](const std::byte* q, __m256& total, __m256i& dot) __attribute__((always_inline)) {
      if constexpr (kHalves) {
        total = add(total, products(q, 0, 2, 0), scales[b], q + 40);
        total = add(total, products(q, 2, 4, 1), scales[b + 1], q + 44);
      } else if constexpr (kGroups == Groups::kOne) {
        total = add(total, products(q, 0, kWords, 0), scales[b], q + kRecord - 4);
      } else {
        const __m256i all = _mm256_add_epi32(dot, products(q, 0, kWords, 0));
        dot = all;
        if (last) {
          total = add(total, all, scales[b], q + kRecord - 4);
          dot = _mm256_setzero_si256();
        }
      }
    };
    if constexpr (kSingle) {
      row(x, sum, dot_so_far);
    } else {
      const std::byte* q = x;
#pragma GCC unroll 1
      for (int64_t m = 0; m < rows; ++m, q += x_stride) row(q, sums[m], dots[kGroups == Groups::kSteps ? m : 0]);
    }
    x += kRecord;
  };

  for (int64_t block = 0; block < blocks; block += 8) {
    const int64_t count = std::min<int64_t>(8, blocks - block);
    if (w.scale_type == DType::kF32) load_scales<F32>(w, apart, block, count, scales);
    if (w.scale_type == DType::kBF16) load_scales<BF16>(w, apart, block, count, scales);
    if (w.scale_type == DType::kF16) load_scales<F16>(w, apart, block, count, scales);
    if (w.scale_type == DType::kI8) load_scales<I8>(w, apart, block, count, scales);
    if constexpr (kZero) load_zero_points(w, apart, block, count, zeros);
    if constexpr (kHalves) {
      for (int64_t b = 0; b < count; b += 2) step(b, true);
    } else {
      for (int64_t b = 0; b < count; ++b) {
        if constexpr (kGroups == Groups::kOne) {
          step(b, true);
          continue;
        }
        const int64_t end = std::min(w.k, (block + b + 1) * w.block);
        for (int64_t column = (block + b) * w.block; column < end;) {
          const int64_t group_end = std::min(end, column + group);
          while (column < group_end) {
            column += kColumns<kBits>;
            step(b, column >= group_end);
          }
        }
      }
    }
  }
  if constexpr (kSingle) sums[0] = sum;
}

// See int8_gemv_lanes.h.
struct Avx2 {
  static constexpr int64_t kOutputs = kLanes, kRows = kMaxRows;
  static constexpr bool kSideBySide = false;

  template <int kBits, bool kZero, Groups kGroups>
  static void sums(const std::byte* x, int64_t x_stride, int64_t rows, const Int8Weight& w, Panel panel, float* out) {
    const int64_t apart = panel.apart;
    __m256 all[kMaxRows];
    if (rows == 1) {
      lanes<kBits, kZero, kGroups, true>(x, x_stride, 1, w, apart, all);
    } else {
      lanes<kBits, kZero, kGroups, false>(x, x_stride, rows, w, apart, all);
    }
    for (int64_t i = 0; i < rows; ++i) _mm256_store_ps(out + i * kLanes, all[i]);
  }
};

}  // namespace

const Int8GemvKernel& int8_gemv_avx2() {
  static const Int8GemvKernel kernel = {prepared_bytes, prepare, run<Avx2>, kMaxRows};
  return kernel;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
