// Shortlist kernels for AVX-512 with VNNI: a vector holds a word of each row of a group, which meets a word of x in all lanes.
#include "qvl/kernels/shortlist_kernels.h"

#if defined(__x86_64__)

// GCC 12 reports the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstring>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#include "qvl/kernels/attention_vec_avx512.h"
#include "qvl/kernels/products_avx512vnni.h"
#include "qvl/kernels/shortlist_simd.h"

namespace qvl::kernels {
namespace {

struct Blocks {
  static constexpr int kParts = quant::kShortlistParts;
  static constexpr int64_t kApart = quant::kShortlistApart, kWord = quant::kShortlistWord, kVectorBytes = 64;

  // The codes of the second part and further stay where they are in their bytes, so products come 4, 16 and 64 times too large; of
  // a block they fit 32 bits, and are exact. Each part has sums of its own, since one chain would wait for itself.
  template <int N, typename Add>
  QVL_INLINE void coarse(const std::byte* codes, const int8_t* const (&q)[N], const Add& add) {
    const __m512i masks[kParts] = {_mm512_set1_epi8(3), _mm512_set1_epi8(3 << 2), _mm512_set1_epi8(3 << 4),
                                   _mm512_set1_epi8(static_cast<char>(3 << 6))};
    __m512i sums[N][kParts];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int k = 0; k < kParts; ++k) sums[n][k] = _mm512_setzero_si512();
    }
    for (int64_t word = 0; word < kApart; word += kWord, codes += kVectorBytes) {
      __m512i packed = _mm512_loadu_si512(codes);
      asm("" : "+v"(packed));  // once: GCC loads it for each mask otherwise
#pragma GCC unroll 4
      for (int k = 0; k < kParts; ++k) {
        const __m512i high = _mm512_and_si512(packed, masks[k]);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) add_products_of_word(sums[n][k], high, q[n] + k * kApart + word);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const __m512i low = _mm512_add_epi32(sums[n][0], _mm512_srai_epi32(sums[n][1], 2));
      const __m512i all = _mm512_add_epi32(low, _mm512_add_epi32(_mm512_srai_epi32(sums[n][2], 4), _mm512_srai_epi32(sums[n][3], 6)));
      add(n, 0, _mm512_cvtepi32_ps(all));
    }
  }

  QVL_INLINE __m512 fine(const std::byte* codes, const int8_t* q) {
    const __m512i packed = _mm512_loadu_si512(codes), low = _mm512_set1_epi8(3);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) {
      // Shifts of words bring bits of the neighbouring byte, which are masked.
      const __m512i four = _mm512_and_si512(_mm512_srli_epi16(packed, 2 * static_cast<unsigned>(k)), low);
      add_products(sum, four, _mm512_loadu_si512(q + k * kApart));
    }
    return _mm512_cvtepi32_ps(sum);
  }
};

}  // namespace

const ShortlistKernels& shortlist_kernels_avx512vnni() {
  return simd::shortlist_kernels<VecAvx512, Blocks>();
}

}  // namespace qvl::kernels

#endif  // __x86_64__
