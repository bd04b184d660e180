// Integer GEMV for AVX-512 with VNNI: weights are read once, unpacked once, and meet every row of x (int8_kernels.h, spec
// 6.4, 10).
//
// A step is 16 bytes of two sets of sixteen rows of weights, one row a lane: transposed by words of four bytes, vector i holds
// word i of every row, and meets word i of a row of x repeated in all lanes; what is repeated serves both sets. So no sum
// crosses lanes, and each output is summed in the order of tile() in int8_avx512vnni.cc: exactly within a group, then
// group after group. The bits are the GEMM's.
#include "qvl/kernels/int8_gemv_lanes.h"
#include "qvl/kernels/int8_kernels.h"

#if defined(__x86_64__)

// GCC 12 reports the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "qvl/kernels/table.h"
#include "qvl/kernels/vec_math_avx512.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

// After the target.
#include "qvl/kernels/products_avx512vnni.h"

namespace qvl::kernels {
namespace {

using namespace avx512;
using namespace gemv_lanes;

constexpr int kLanes = 16;  // rows of weights
constexpr int kSets = 2;
constexpr int64_t kMaxRows = 32;  // of x in one pass
constexpr int64_t kLineBytes = 64, kStepsOfALine = kLineBytes / kStepBytes;
// So many rows are more streams than processors foresee. While one panel of kSets * kLanes rows is multiplied, the next is asked
// for in address order into the second cache, and the next line of each row into the first. Where two panels do not fit, only
// lines of a row are, as far ahead as memory is.
constexpr int64_t kNextLine = kLineBytes, kFarLine = 4 * kLineBytes;
constexpr int64_t kScales = 16;   // blocks whose scales are loaded at once

// Prepared x, for each step. 4 bits: [16] even q, [16] odd q; 8 bits: [16] q. Then for each group of it what takes the zero
// point off the products, -8 or -128 times the sum of q, and its scale, or the exponent of that (takes_exponents).
template <int kBits>
constexpr int64_t record_bytes(bool halves) {
  return kBits == 8 ? 24 : halves ? 48 : 40;
}

size_t prepared_bytes(const Int8Weight& w) {
  return static_cast<size_t>(w.bits == 4 ? steps<4>(w.k) * record_bytes<4>(w.group() == 16)
                                         : steps<8>(w.k) * record_bytes<8>(false));
}

// Whether scales of x are powers of two and multiply by VSCALEFPS, as in int8_avx512vnni.cc.
bool takes_exponents(const Int8Weight& w) {
  return w.power_scales() && !cpu_features().slow_scalef;
}

// The sum of 16 signed bytes.
inline int32_t sum_bytes(__m128i v) {
  const __m128i four = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), v);
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

void prepare(const Int8Weight& w, const int8_t* q, const float* scales, std::byte* dst) {
  const int64_t group = w.group();
  const bool exponents = takes_exponents(w);
  const auto put_scale = [=](std::byte* to, int64_t i) {
    float scale = scales[i];
    if (exponents) scale = _mm_cvtss_f32(_mm_getexp_ss(_mm_setzero_ps(), _mm_set_ss(scale)));
    std::memcpy(to, &scale, sizeof(scale));
  };
  const auto load = [q](int64_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + i)); };
  if (w.bits == 8) {
    for (int64_t i = 0; i < w.k; i += kColumns<8>, dst += record_bytes<8>(false)) {
      std::memcpy(dst, q + i, 16);
      const int32_t correction = -128 * sum_bytes(load(i));
      std::memcpy(dst + 16, &correction, 4);
      put_scale(dst + 20, i / group);
    }
    return;
  }
  const int halves = group == 16 ? 2 : 1;
  const __m128i split = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  for (int64_t i = 0; i < w.k; i += kColumns<4>, dst += record_bytes<4>(halves == 2)) {
    const __m128i first = load(i), second = load(i + 16);
    const __m128i a = _mm_shuffle_epi8(first, split), b = _mm_shuffle_epi8(second, split);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm_unpacklo_epi64(a, b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 16), _mm_unpackhi_epi64(a, b));
    int32_t corrections[2] = {-8 * sum_bytes(first), -8 * sum_bytes(second)};
    if (halves == 1) corrections[0] += corrections[1];
    for (int64_t h = 0; h < halves; ++h) {
      std::memcpy(dst + 32 + 4 * h, &corrections[h], 4);
      put_scale(dst + 32 + 4 * (halves + h), i / group + h);
    }
  }
}

inline __m512i repeat_four(const std::byte* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof(four));
  return _mm512_set1_epi32(four);
}
inline __m512 repeat_float(const std::byte* p) {
  return _mm512_castsi512_ps(repeat_four(p));
}

// Always inlined: GCC takes a function that only asks for one without effects, and leaves its calls out.
__attribute__((always_inline)) inline void ask_second_cache(const std::byte* p, int64_t bytes) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < bytes; i += kLineBytes) _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T1);
}

// 64 bytes of sixteen rows `stride` apart, of which `left` are there, zeros behind them: vector i is word i of each of them.
// What lies `ahead` of them is asked for. A line of a row is touched once: rows may be so far apart that the nearest cache
// holds no two steps of all.
inline void load_words(const std::byte* p, int64_t stride, int64_t left, int64_t ahead, __m512i* words) {
  __m512 rows[kLanes];
  if (left >= kLineBytes) [[likely]] {
#pragma GCC unroll 16
    for (int n = 0; n < kLanes; ++n) {
      rows[n] = _mm512_loadu_ps(p + n * stride);
      _mm_prefetch(reinterpret_cast<const char*>(p + n * stride + ahead), _MM_HINT_T0);
    }
  } else {
    for (int n = 0; n < kLanes; ++n) {
      alignas(64) std::byte room[kLineBytes] = {};
      std::memcpy(room, p + n * stride, static_cast<size_t>(left));
      rows[n] = _mm512_load_ps(room);
    }
  }
  transpose_16x16(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) _mm512_store_si512(words + i, _mm512_castps_si512(rows[i]));
}

// The scales of the blocks of `mask` from `block` on, a vector of the sixteen rows each.
template <typename Scale>
inline void load_scales(const Int8Weight& w, int64_t apart, int64_t block, __mmask16 mask, __m512 (&scales)[kScales]) {
#pragma GCC unroll 16
  for (int n = 0; n < kLanes; ++n) {
    scales[n] = Scale::load(reinterpret_cast<const typename Scale::Element*>(w.scales + n * apart * w.scale_stride) + block, mask);
  }
  transpose_16x16(scales);
}

// Their zero points.
void load_zero_points(const Int8Weight& w, int64_t apart, int64_t block, int64_t count, __m512i (&zeros)[kScales]) {
  const std::byte* p = w.zero_points + block / 2;
  alignas(64) uint32_t rows[2][kLanes] = {};
  for (int n = 0; n < kLanes; ++n) {
    uint32_t nibbles[2] = {};
    std::memcpy(nibbles, p + n * apart * w.zero_stride, static_cast<size_t>((count + 1) / 2));
    rows[0][n] = nibbles[0];
    rows[1][n] = nibbles[1];
  }
  for (unsigned b = 0; b < kScales; ++b) {
    zeros[b] = _mm512_and_si512(_mm512_srli_epi32(_mm512_load_si512(rows[b / 8]), 4 * (b % 8)), _mm512_set1_epi32(15));
  }
}

// Sums of `rows` rows of x, x_stride apart, with the panel's rows of w: [rows][kSets * kLanes].
template <int kBits, bool kZero, Groups kGroups, bool kExponents>
void lanes(const std::byte* x, int64_t x_stride, int64_t rows, const Int8Weight& w, Panel panel, float* out) {
  constexpr bool kHalves = kGroups == Groups::kHalf;
  constexpr int64_t kRecord = record_bytes<kBits>(kHalves);
  constexpr int64_t kPanelRows = kSets * kLanes;
  const int64_t apart = panel.apart, stride = apart * w.data_stride, blocks = w.blocks(), group = w.group();
  const int64_t panel_bytes = kPanelRows * w.data_stride, scale_bytes = kPanelRows * w.scale_stride;
  const __m512i nibble = _mm512_set1_epi8(15), none = _mm512_setzero_si512();
  const bool fits = apart == 1 && 2 * panel_bytes <= static_cast<int64_t>(cpu_features().second_level_cache_bytes);
  const int64_t line_ahead = fits ? kNextLine : kFarLine;
  // Of the scales so much a step, in whole lines, that all are asked for.
  const int64_t scale_step = (scale_bytes / steps<kBits>(w.k) / kLineBytes + 1) * kLineBytes;
  if (fits && panel.first) {
    ask_second_cache(w.scales, scale_bytes);
    ask_second_cache(w.data, panel_bytes);
  }

  __m512 sums[kMaxRows][kSets];
  __m512i dots[kGroups == Groups::kSteps ? kMaxRows : 1][kSets];
  for (int64_t m = 0; m < rows; ++m) {
    for (int s = 0; s < kSets; ++s) {
      sums[m][s] = _mm512_setzero_ps();
      if constexpr (kGroups == Groups::kSteps) dots[m][s] = none;
    }
  }

  __m512 scales[kSets][kScales];
  __m512i zeros[kSets][kZero ? kScales : 1];
  __m512i line[kSets][kLanes];
  int64_t steps_done = 0;
  // One step; `last` of its group. `b` is the block, counted from the first of the loaded scales.
  const auto step = [&](int64_t b, bool last) __attribute__((always_inline)) {
    const int64_t of_line = steps_done % kStepsOfALine;
    if (of_line == 0) {
      const int64_t at = steps_done * kStepBytes;
      for (int s = 0; s < kSets; ++s) load_words(w.data + s * kLanes * stride + at, stride, w.data_stride - at, line_ahead, line[s]);
    }
    if (fits && panel.more) {
      ask_second_cache(w.data + panel_bytes + steps_done * kPanelRows * kStepBytes, kPanelRows * kStepBytes);
      const int64_t at = steps_done * scale_step;
      if (at < scale_bytes) ask_second_cache(w.scales + scale_bytes + at, scale_step);
    }
    ++steps_done;
    __m512i words[kSets][kWords], high[kSets][kWords];
#pragma GCC unroll 2
    for (int s = 0; s < kSets; ++s) {
#pragma GCC unroll 4
      for (int i = 0; i < kWords; ++i) {
        words[s][i] = _mm512_load_si512(line[s] + of_line * kWords + i);
        if constexpr (kBits == 4) {
          high[s][i] = _mm512_and_si512(_mm512_srli_epi16(words[s][i], 4), nibble);
          words[s][i] = _mm512_and_si512(words[s][i], nibble);
        }
      }
    }
    // dot += products of words [begin, end) with a row of x at `q`, without the zero points; of group `half`.
    const auto products = [&](__m512i (&dot)[kSets], const std::byte* q, int begin, int end, int half) __attribute__((always_inline)) {
      const __m512i correction = repeat_four(q + (kBits == 4 ? 32 + 4 * half : 16));
#pragma GCC unroll 2
      for (int s = 0; s < kSets; ++s) {
        // It has the usual zero point, 8, in it.
        const __m512i own = kZero ? _mm512_srai_epi32(_mm512_mullo_epi32(zeros[s][kZero ? b + half : 0], correction), 3) : correction;
        dot[s] = _mm512_add_epi32(dot[s], own);
      }
#pragma GCC unroll 4
      for (int i = begin; i < end; ++i) {
        const __m512i even = repeat_four(q + 4 * i);
#pragma GCC unroll 2
        for (int s = 0; s < kSets; ++s) add_products(dot[s], words[s][i], even);
        if constexpr (kBits == 4) {
          const __m512i odd = repeat_four(q + 16 + 4 * i);
#pragma GCC unroll 2
          for (int s = 0; s < kSets; ++s) add_products(dot[s], high[s][i], odd);
        }
      }
    };
    const auto add = [&](__m512 (&total)[kSets], const __m512i (&dot)[kSets], int64_t block, const std::byte* x_scale)
                         __attribute__((always_inline)) {
      const __m512 of_x = repeat_float(x_scale);
#pragma GCC unroll 2
      for (int s = 0; s < kSets; ++s) {
        const __m512 both = kExponents ? _mm512_scalef_ps(scales[s][block], of_x) : _mm512_mul_ps(scales[s][block], of_x);
        total[s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[s]), both, total[s]);
      }
    };
    const std::byte* q = x;
#pragma GCC unroll 1
    for (int64_t m = 0; m < rows; ++m, q += x_stride) {
      __m512i dot[kSets] = {none, none};
      if constexpr (kHalves) {
        products(dot, q, 0, 2, 0);
        add(sums[m], dot, b, q + 40);
        dot[0] = dot[1] = none;
        products(dot, q, 2, 4, 1);
        add(sums[m], dot, b + 1, q + 44);
      } else if constexpr (kGroups == Groups::kOne) {
        products(dot, q, 0, kWords, 0);
        add(sums[m], dot, b, q + kRecord - 4);
      } else {
#pragma GCC unroll 2
        for (int s = 0; s < kSets; ++s) dot[s] = dots[m][s];
        products(dot, q, 0, kWords, 0);
#pragma GCC unroll 2
        for (int s = 0; s < kSets; ++s) dots[m][s] = last ? none : dot[s];
        if (last) add(sums[m], dot, b, q + kRecord - 4);
      }
    }
    x += kRecord;
  };

  for (int64_t block = 0; block < blocks; block += kScales) {
    const int64_t count = std::min(kScales, blocks - block);
    const __mmask16 mask = first_lanes(count);
    for (int s = 0; s < kSets; ++s) {
      const Int8Weight set = w.rows_from(s * kLanes * apart);
      if (w.scale_type == DType::kF32) load_scales<F32>(set, apart, block, mask, scales[s]);
      if (w.scale_type == DType::kBF16) load_scales<BF16>(set, apart, block, mask, scales[s]);
      if (w.scale_type == DType::kF16) load_scales<F16>(set, apart, block, mask, scales[s]);
      if (w.scale_type == DType::kI8) load_scales<I8>(set, apart, block, mask, scales[s]);
      if constexpr (kZero) load_zero_points(set, apart, block, count, zeros[s]);
    }
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
  for (int64_t m = 0; m < rows; ++m) {
    for (int s = 0; s < kSets; ++s) _mm512_store_ps(out + (m * kSets + s) * kLanes, sums[m][s]);
  }
}

// See int8_gemv_lanes.h.
struct Avx512Vnni {
  static constexpr int64_t kOutputs = kSets * kLanes, kRows = kMaxRows;
  static constexpr bool kSideBySide = true;

  template <int kBits, bool kZero, Groups kGroups>
  static void sums(const std::byte* x, int64_t x_stride, int64_t rows, const Int8Weight& w, Panel panel, float* out) {
    takes_exponents(w) ? lanes<kBits, kZero, kGroups, true>(x, x_stride, rows, w, panel, out)
                       : lanes<kBits, kZero, kGroups, false>(x, x_stride, rows, w, panel, out);
  }
};

}  // namespace

const Int8GemvKernel& int8_gemv_avx512vnni() {
  static const Int8GemvKernel kernel = {prepared_bytes, prepare, run<Avx512Vnni>, 2 * kMaxRows};
  return kernel;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
