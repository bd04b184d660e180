// Shortlist kernels for AVX2: VPMADDUBSW adds products of two codes in 16 bits, which those of half a block never leave.
#include "qvl/kernels/shortlist_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#pragma GCC target("avx2,fma,f16c")

#include "qvl/kernels/attention_vec_avx2.h"
#include "qvl/kernels/shortlist_simd.h"

namespace qvl::kernels {
namespace {

struct Blocks {
  static constexpr int kParts = quant::kShortlistParts;
  static constexpr int64_t kApart = quant::kShortlistApart, kWord = quant::kShortlistWord, kBytes = 32;

  QVL_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  QVL_INLINE __m256i pairs(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

  // One half of the group's rows after the other. 16 bits hold a lane's products of two parts: 32 times 2 * 3 * 127.
  template <int N, typename Add>
  QVL_INLINE void coarse(const std::byte* codes, const int8_t* const (&q)[N], const Add& add) {
    const __m256i low = _mm256_set1_epi8(3);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i sums[N][2];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[n][0] = sums[n][1] = _mm256_setzero_si256();
      const std::byte* words = codes + half * kBytes;
      for (int64_t word = 0; word < kApart; word += kWord, words += 2 * kBytes) {
        const __m256i packed = load(words);
#pragma GCC unroll 4
        for (int k = 0; k < kParts; ++k) {
          // Shifts of words bring bits of the neighbouring byte, which are masked.
          const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 2 * k), low);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            int32_t x;
            std::memcpy(&x, q[n] + k * kApart + word, sizeof(x));
            sums[n][k / 2] = _mm256_add_epi16(sums[n][k / 2], _mm256_maddubs_epi16(high, _mm256_set1_epi32(x)));
          }
        }
      }
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) add(n, half, _mm256_cvtepi32_ps(_mm256_add_epi32(pairs(sums[n][0]), pairs(sums[n][1]))));
    }
  }

  QVL_INLINE __m256 fine(const std::byte* codes, const int8_t* q) {
    const __m256i low = _mm256_set1_epi8(3);
    __m256i sums = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2 * kBytes; half += kBytes) {
      const __m256i packed = load(codes + half);
#pragma GCC unroll 4
      for (int k = 0; k < kParts; ++k) {
        const __m256i four = _mm256_and_si256(_mm256_srli_epi16(packed, 2 * k), low);
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(four, load(q + k * kApart + half)));
      }
    }
    return _mm256_cvtepi32_ps(pairs(sums));
  }
};

}  // namespace

const ShortlistKernels& shortlist_kernels_avx2() {
  return simd::shortlist_kernels<VecAvx2, Blocks>();
}

}  // namespace qvl::kernels

#endif  // __x86_64__
