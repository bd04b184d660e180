// The panel kernel for AVX2: eight lanes.
#include "qvl/quant/panel_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#pragma GCC target("avx2,f16c")

#include "qvl/quant/panel_kernels_impl.h"

namespace qvl::quant {
namespace {

struct Vec8 {
  using F = __m256;
  using I = __m256i;
  static constexpr int kWidth = 8;
  static constexpr size_t kTogether = 2;
  static constexpr int64_t kTile = 8;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
  static F gt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static F select(F mask, F a, F b) { return _mm256_blendv_ps(b, a, mask); }
  static I zero_int() { return _mm256_setzero_si256(); }
  static I set1_int(int32_t v) { return _mm256_set1_epi32(v); }
  static I bits(F a) { return _mm256_castps_si256(a); }
  static I max_int(I a, I b) { return _mm256_max_epi32(a, b); }
  static I truncate(F a) { return _mm256_cvttps_epi32(a); }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
  static I bit_xor(I a, I b) { return _mm256_xor_si256(a, b); }
  static I shift_left(I a, int count) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(count)); }
  static void store_int(uint32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

  static F load_row(const std::byte* p, DType type) {
    if (type == DType::kF32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (type == DType::kF16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }

  // 16 rows of 8 columns to panel[8][16].
  static void load_tile(const std::byte* from, int64_t stride_bytes, DType type, float* panel) {
    for (int half = 0; half < 2; ++half) {
      F r[8], t[8];
      for (int i = 0; i < 8; ++i) r[i] = load_row(from + (8 * half + i) * stride_bytes, type);
      for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        r[i + 0] = _mm256_shuffle_ps(t[i + 0], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i + 0], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
      }
      for (int i = 0; i < 4; ++i) {
        store(panel + i * kPanelRows + 8 * half, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        store(panel + (i + 4) * kPanelRows + 8 * half, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
      }
    }
  }
};

}  // namespace

PanelResult quantize_panel_avx2(const PanelTask& task) {
  return quantize_panel<Vec8>(task);
}

}  // namespace qvl::quant

#endif  // __x86_64__
