// Until the vector kernels are in: every x86 table attends by the scalar kernels.
#include "qvl/kernels/attention_kernels.h"
#if defined(__x86_64__)
namespace qvl::kernels {
const AttentionKernels& attention_kernels_avx2() { return attention_kernels_scalar(); }
const AttentionKernels& attention_kernels_avx512() { return attention_kernels_scalar(); }
const AttentionKernels& attention_kernels_avx512bf16() { return attention_kernels_scalar(); }
}  // namespace qvl::kernels
#endif
