// Parts of the AVX-512 linear table, each filled in by the file that holds the kernels (private to this
// room).
#pragma once

#if defined(__x86_64__)

#include "qvl/kernels/linear_kernels.h"

namespace qvl::kernels {

void set_gemm_avx512(LinearKernels& kernels);
void set_gemv_avx512(LinearKernels& kernels);
void set_finish_avx512(LinearKernels& kernels);
// Replace the entries for bf16 weights with bf16 activations.
void set_gemm_avx512bf16(LinearKernels& kernels);
void set_gemv_avx512bf16(LinearKernels& kernels);

}  // namespace qvl::kernels

#endif  // __x86_64__
