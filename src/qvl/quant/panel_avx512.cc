// The panel kernel for AVX-512: all sixteen lanes in one register.
#include "qvl/quant/panel_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms inside GCC 12's own headers (GCC bug 105593)
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")

#include "qvl/quant/panel_kernels_impl.h"

namespace qvl::quant {
namespace {

struct Vec16 {
  using F = __m512;
  using I = __m512i;
  static constexpr int kWidth = 16;
  static constexpr size_t kTogether = 4;
  static constexpr int64_t kTile = 16;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static __mmask16 gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static F select(__mmask16 mask, F a, F b) { return _mm512_mask_blend_ps(mask, b, a); }
  static I zero_int() { return _mm512_setzero_si512(); }
  static I set1_int(int32_t v) { return _mm512_set1_epi32(v); }
  static I bits(F a) { return _mm512_castps_si512(a); }
  static I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
  static I truncate(F a) { return _mm512_cvttps_epi32(a); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
  static I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
  static I shift_left(I a, int count) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(count)); }
  static void store_int(uint32_t* p, I v) { _mm512_storeu_si512(p, v); }

  static F load_row(const std::byte* p, DType type) {
    if (type == DType::kF32) return _mm512_loadu_ps(p);
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if (type == DType::kF16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  // 16 rows of 16 columns to panel[16][16].
  static void load_tile(const std::byte* from, int64_t stride_bytes, DType type, float* panel) {
    F r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = load_row(from + i * stride_bytes, type);
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // r[4g + c]: column 4j + c of rows 4g to 4g + 3 in 128-bit lane j
    for (int i = 0; i < 16; i += 4) {
      r[i + 0] = _mm512_shuffle_ps(t[i + 0], t[i + 2], 0x44);
      r[i + 1] = _mm512_shuffle_ps(t[i + 0], t[i + 2], 0xee);
      r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int c = 0; c < 4; ++c) {
      const F a = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x88), b = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xdd);
      const F d = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x88),
              e = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xdd);
      store(panel + (c + 0) * kPanelRows, _mm512_shuffle_f32x4(a, d, 0x88));
      store(panel + (c + 4) * kPanelRows, _mm512_shuffle_f32x4(b, e, 0x88));
      store(panel + (c + 8) * kPanelRows, _mm512_shuffle_f32x4(a, d, 0xdd));
      store(panel + (c + 12) * kPanelRows, _mm512_shuffle_f32x4(b, e, 0xdd));
    }
  }
};

}  // namespace

PanelResult quantize_panel_avx512(const PanelTask& task) {
  return quantize_panel<Vec16>(task);
}

}  // namespace qvl::quant

#endif  // __x86_64__
