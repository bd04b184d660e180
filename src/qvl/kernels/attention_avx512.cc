// Norms, rotary embedding and attention for AVX-512 (F, BW, VL, DQ).
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
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")

#include "qvl/kernels/attention_vec_avx512.h"
// After the vector.
#include "qvl/kernels/attention_table_simd.h"

namespace qvl::kernels {

const AttentionKernels& attention_kernels_avx512() {
  static const AttentionKernels kernels = simd::attention_kernels<VecAvx512>();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __x86_64__
