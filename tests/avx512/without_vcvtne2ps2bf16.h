// Included before attention_avx512bf16.cc in kernels_bf16_test: VCVTNE2PS2BF16 by two VCVTNEPS2BF16, for an emulator that
// gets the upper half of the former wrong (vcvtne2ps2bf16.cc). A macro, so that it is expanded below the file's own target
// pragma.
#pragma once

#include <immintrin.h>

#define _mm512_cvtne2ps_pbh(high, low)                                                                  \
  ((__m512bh)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(low)),              \
                                (__m256i)_mm512_cvtneps_pbh(high), 1))
