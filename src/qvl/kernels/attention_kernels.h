// The building blocks of norms, rotary embedding and attention for one instruction set.
#pragma once

namespace qvl::kernels {

struct AttentionKernels {};

inline const AttentionKernels& attention_kernels_scalar() {
  static const AttentionKernels kernels;
  return kernels;
}
#if defined(__x86_64__)
inline const AttentionKernels& attention_kernels_avx2() { return attention_kernels_scalar(); }
inline const AttentionKernels& attention_kernels_avx512() { return attention_kernels_scalar(); }
inline const AttentionKernels& attention_kernels_avx512bf16() { return attention_kernels_scalar(); }
#endif

}  // namespace qvl::kernels
