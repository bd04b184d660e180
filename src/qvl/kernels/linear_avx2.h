// Parts of the AVX2 linear table, each filled in by the file that holds the kernels (private to this room).
#pragma once

#if defined(__x86_64__)

#include "qvl/kernels/linear_kernels.h"

namespace qvl::kernels {

void set_gemm_avx2(LinearKernels& kernels);
void set_gemv_avx2(LinearKernels& kernels);
void set_finish_avx2(LinearKernels& kernels);

}  // namespace qvl::kernels

#endif  // __x86_64__
