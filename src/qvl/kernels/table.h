// The table of kernels that operators call through, one per instruction set, and how one is chosen at run
// time.
#pragma once

#include <string_view>

#include "qvl/kernels/attention_kernels.h"
#include "qvl/kernels/int8_kernels.h"
#include "qvl/kernels/linear_kernels.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/shortlist_kernels.h"

namespace qvl::kernels {

struct KernelTable {
  std::string_view name;
  const LinearKernels* linear;
  const AttentionKernels* attention;
  const Int8Kernels* int8;
  const ShortlistKernels* shortlist;
};

// What processor and operating system together let a program use.
struct CpuFeatures {
  bool avx2 = false;        // AVX2, FMA, F16C
  bool avx512 = false;      // AVX-512 F, BW, VL, DQ (and avx2)
  bool avx512vnni = false;  // AVX-512 VNNI (and avx512)
  bool avx512bf16 = false;  // AVX-512 BF16 (and avx512)
  // VDPBF16PS does less work per second than float FMA on widened values. Measured on Sapphire and Emerald
  // Rapids: one in two cycles against two FMA per cycle, 89 against 179 GFLOPS. AMD starts one per cycle,
  // like its FMA, and wins twofold.
  bool slow_bf16_dot = false;
  // VSCALEFPS is no faster than a multiplication. On Zen 4 it runs beside FMA and VPDPBUSD, with which a multiplication takes
  // turns (measured); on Intel's processors it takes turns too (by their port tables, not measured).
  bool slow_scalef = false;
  bool neon = false;          // 64-bit ARM: every one has it
  bool neon_dotprod = false;  // SDOT
  bool neon_i8mm = false;     // SMMLA (and neon_dotprod)
  // Of one core; 512 KiB where the system does not tell. What is cut by it has the same results.
  size_t second_level_cache_bytes = size_t{512} << 10;
};
const CpuFeatures& cpu_features();

}  // namespace qvl::kernels
