// Parts of the NEON linear table, each filled in by the file that holds the kernels (private to this room).
#pragma once

#if defined(__aarch64__)

#include "qvl/kernels/linear_kernels.h"

namespace qvl::kernels {

void set_gemm_neon(LinearKernels& kernels);
void set_gemv_neon(LinearKernels& kernels);
void set_finish_neon(LinearKernels& kernels);

}  // namespace qvl::kernels

#endif  // __aarch64__
