// Norms, rotary embedding and attention for AVX-512 with VNNI. All as for AVX-512 but for attention of many bfloat16 rows,
// which multiplies 16-bit codes by VPDPWSSD: twice as many products an instruction as float FMA.
#include "qvl/kernels/attention_kernels.h"

#if defined(__x86_64__)

// GCC 12 reports the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "qvl/base/dtype.h"

// Until the end of the file: templates are instantiated there. Functions of the standard library must not be
// instantiated here, a linker might keep this copy for everyone.
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#include "qvl/kernels/attention_vec_avx512.h"
// After the vector.
#include "qvl/kernels/attention_int16_simd.h"

namespace qvl::kernels {
namespace {

struct WordsAvx512Vnni {
  using V = VecAvx512;
  using I = __m512i;
  // 4 x 4 accumulators hide the latency of the instruction, which repeats a row's word itself.
  static constexpr int kRows = 4;
  static constexpr int kVecs = 4;

  QVL_INLINE I zero() { return _mm512_setzero_si512(); }
  QVL_INLINE I broadcast(int32_t word) { return _mm512_set1_epi32(word); }
  QVL_INLINE I dot(I sum, I both, const int32_t* words) {
    return _mm512_dpwssd_epi32(sum, _mm512_loadu_si512(words), both);
  }
  QVL_INLINE __m512 min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
  QVL_INLINE __m512 div(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
  QVL_INLINE __m512 to_float(I v) { return _mm512_cvtepi32_ps(v); }
  QVL_INLINE __m512 as_float(I v) { return _mm512_castsi512_ps(v); }
  QVL_INLINE void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  // 32 codes in order, rounded to nearest even.
  QVL_INLINE I codes(__m512 low, __m512 high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(low))),
                              _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(high)), 1);
  }
  // Words whose lower halves are codes of `low`.
  QVL_INLINE I pairs(__m512 low, __m512 high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_cvtps_epi32(low), _mm512_slli_epi32(_mm512_cvtps_epi32(high), 16));
  }
};

}  // namespace

const AttentionKernels& attention_kernels_avx512vnni() {
  static const AttentionKernels kernels = [] {
    AttentionKernels k = attention_kernels_avx512();
    k.tile_bf16 = simd::attention_tile_int16<WordsAvx512Vnni, BFloat16>(k.tile_bf16.finish);
    k.tile_int8 = attention_tile_int8_avx512vnni();
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
