// placeholder until the AVX2 kernels land: the scalar ones.
#include "qvl/kernels/linear_kernels.h"

#if defined(__x86_64__)
namespace qvl::kernels {
const LinearKernels& linear_kernels_avx2() { return linear_kernels_scalar(); }
}  // namespace qvl::kernels
#endif
