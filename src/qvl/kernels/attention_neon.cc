// Norms, rotary embedding and attention for NEON.
#include "qvl/kernels/attention_kernels.h"

#if defined(__aarch64__)

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "qvl/kernels/attention_vec_neon.h"
// After the vector.
#include "qvl/kernels/attention_table_simd.h"

namespace qvl::kernels {

const AttentionKernels& attention_kernels_neon() {
  static const AttentionKernels kernels = simd::attention_kernels<VecNeon>();
  return kernels;
}

}  // namespace qvl::kernels

#endif  // __aarch64__
