// VPDPBUSD for the kernels of AVX-512 with VNNI. Include after the target pragma.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qvl::kernels {

// sum += products of four unsigned bytes with signed ones, a lane. Not the intrinsic: GCC 12 then moves sums to other registers and
// back in loops, and through memory where none is left.
static inline __attribute__((always_inline)) void add_products(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// The same with one word of signed bytes in all lanes.
static inline __attribute__((always_inline)) void add_products_of_word(__m512i& sum, __m512i unsigned_bytes, const int8_t* signed_word) {
  struct Word {
    int8_t bytes[4];
  };
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "m"(*reinterpret_cast<const Word*>(signed_word)));
}

}  // namespace qvl::kernels
