// Norms, rotary embedding and attention for AVX-512 with BF16. All as for AVX-512 but for attention on
// bfloat16 activations, which runs on VDPBF16PS: two products per lane of operands that are half as large,
// with the weights of the values rounded to bfloat16. Twice as fast as float FMA on AMD's processors, half as
// fast on Intel's, where the default is the AVX-512 table (CpuFeatures::slow_bf16_dot).
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
#include "qvl/kernels/table.h"

// Until the end of the file: templates are instantiated there. Functions of the standard library must not be
// instantiated here, a linker might keep this copy for everyone.
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

#include "qvl/kernels/attention_vec_avx512.h"
// After the vector.
#include "qvl/kernels/attention_tile_simd.h"

namespace qvl::kernels {
namespace {

// Products of words that hold two bfloat16.
struct DotBf16 {
  using F = __m512;
  static constexpr int kUnit = 2;
  static constexpr int kKeyTile = 128;
  static constexpr bool kWeightsInPlace = false;

  QVL_INLINE F mac(F sum, F a, F b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

  // The sum is that of the rounded weights, so that they add up to one in the result.
  QVL_INLINE F keep_weights(float* scores, float* weights, int64_t vectors, F scale, F max, F sum) {
    const auto weight = [=](int64_t j) {
      return simd::exp2_nonpositive<VecAvx512>(_mm512_fmsub_ps(_mm512_loadu_ps(scores + j * 16), scale, max));
    };
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int64_t j = 0; j < vectors; j += 2) {
      const F low = weight(j), high = j + 1 < vectors ? weight(j + 1) : _mm512_setzero_ps();
      const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
      _mm512_storeu_ps(weights + j * 8, (__m512)both);
      sum = _mm512_dpbf16_ps(sum, both, ones);
    }
    return sum;
  }
};

using Kernel = simd::Tile<VecAvx512, DotBf16>;

// A row of an even number of bfloat16 as words.
const float* row_words(const void* src, int64_t element) {
  return reinterpret_cast<const float*>(static_cast<const BFloat16*>(src) + element);
}

void pack_query(const void* src, int64_t hd, void* dst) {
  std::memcpy(dst, src, static_cast<size_t>(hd) * sizeof(BFloat16));
}

void pack_keys(const void* src, int64_t stride, int64_t first, int64_t count, int64_t hd, void* tile) {
  Kernel::transpose_rows([=](int64_t key) { return row_words(src, key * stride); }, count, hd / 2,
                         static_cast<float*>(tile) + first);
}

void pack_values(const void* src, int64_t stride, int64_t first, int64_t count, int64_t hd, void* tile) {
  const auto* p = static_cast<const BFloat16*>(src);
  const int64_t out_stride = round_up(hd, kAttentionLanes), padded = round_up(count, kAttentionLanes);
  float* dst = static_cast<float*>(tile) + first / 2 * out_stride;
  for (int64_t key = 0; key < padded; key += 2, dst += out_stride) {
    for (int64_t d = 0; d < hd; d += 16) {
      const __mmask16 mask = hd - d < 16 ? static_cast<__mmask16>((1u << (hd - d)) - 1u) : __mmask16{0xffff};
      const auto row = [=](int64_t i) {
        return _mm512_cvtepu16_epi32(
            _mm256_maskz_loadu_epi16(i < count ? mask : __mmask16{0}, p + i * stride + d));
      };
      _mm512_storeu_si512(dst + d, _mm512_or_si512(row(key), _mm512_slli_epi32(row(key + 1), 16)));
    }
  }
}

}  // namespace

const AttentionKernels& attention_kernels_avx512bf16() {
  static const AttentionKernels kernels = [] {
    AttentionKernels k = attention_kernels_avx512();
    k.tile_bf16 = simd::attention_tile<Kernel>(pack_query, pack_keys, pack_values, Kernel::finish<BFloat16>);
    if (cpu_features().avx512vnni) k.tile_int8 = attention_tile_int8_avx512vnni();
    return k;
  }();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
