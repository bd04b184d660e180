// Norms, rotary embedding and attention for AVX2 with FMA. Attention of many bfloat16 rows multiplies 16-bit codes: twice
// as many products an instruction as float FMA, and twice as few bytes.
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
#pragma GCC target("avx2,fma,f16c")

#include "qvl/kernels/attention_vec_avx2.h"
// After the vector.
#include "qvl/kernels/attention_int16_simd.h"
#include "qvl/kernels/attention_table_simd.h"

namespace qvl::kernels {
namespace {

struct WordsAvx2 {
  using V = VecAvx2;
  using I = __m256i;
  // One row against eight vectors: each is loaded by the instruction that multiplies it, and of these the processor
  // takes more at a time than of separate loads.
  static constexpr int kRows = 1;
  static constexpr int kVecs = 8;

  QVL_INLINE I zero() { return _mm256_setzero_si256(); }
  QVL_INLINE I broadcast(int32_t word) { return _mm256_set1_epi32(word); }
  QVL_INLINE I dot(I sum, I both, const int32_t* words) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words))));
  }
  QVL_INLINE __m256 min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
  QVL_INLINE __m256 div(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
  QVL_INLINE __m256 to_float(I v) { return _mm256_cvtepi32_ps(v); }
  QVL_INLINE __m256 as_float(I v) { return _mm256_castsi256_ps(v); }
  QVL_INLINE void store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  // 16 codes in order, rounded to nearest even.
  QVL_INLINE I codes(__m256 low, __m256 high) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high)), 0xd8);
  }
  // Words whose lower halves are codes of `low`.
  QVL_INLINE I pairs(__m256 low, __m256 high) {
    return _mm256_blend_epi16(_mm256_cvtps_epi32(low), _mm256_slli_epi32(_mm256_cvtps_epi32(high), 16), 0xaa);
  }
};

}  // namespace

const AttentionKernels& attention_kernels_avx2() {
  static const AttentionKernels kernels = [] {
    AttentionKernels k = simd::attention_kernels<VecAvx2>();
    k.tile_bf16 = simd::attention_tile_int16<WordsAvx2, BFloat16>(k.tile_bf16.finish);
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
