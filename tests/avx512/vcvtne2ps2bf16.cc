// Ends with 0 where VCVTNE2PS2BF16 does what its specification says: the second operand's floats rounded in the lower half
// of the result, the first one's in the upper half. Bochs 3.0 fills the upper half from beyond the end of the first operand,
// as its cpu/avx/avx512_bf16.cc reads element n there, not n - 16.
#include <immintrin.h>

#include <cstdint>
#include <cstdio>

__attribute__((target("avx512f,avx512bw,avx512bf16"))) int main() {
  alignas(64) float high[16], low[16];
  for (int i = 0; i < 16; ++i) {
    high[i] = static_cast<float>(100 + i);  // integers that bfloat16 holds
    low[i] = static_cast<float>(1 + i);
  }
  alignas(64) uint16_t got[32];
  _mm512_store_si512(got, (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(high), _mm512_load_ps(low)));
  int wrong = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t bits = static_cast<uint32_t>(got[i]) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    if (value != (i < 16 ? low[i] : high[i - 16])) {
      std::printf("element %d: %g for %g\n", i, static_cast<double>(value),
                  static_cast<double>(i < 16 ? low[i] : high[i - 16]));
      ++wrong;
    }
  }
  return wrong == 0 ? 0 : 1;
}
