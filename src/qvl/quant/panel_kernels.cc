#include "qvl/quant/panel_kernels.h"

#include <string>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::quant {

std::span<const Isa> available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found{Isa::kPortable};
#if defined(__x86_64__)
    // These ask the operating system's register mask as well.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    if (avx2) found.push_back(Isa::kAvx2);
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(Isa::kAvx512);
    }
#endif
    return found;
  }();
  return isas;
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

PanelKernel panel_kernel(Isa isa) {
  for (Isa available : available_isas()) {
    if (available != isa) continue;
    switch (isa) {
      case Isa::kPortable:
        return quantize_panel_portable;
#if defined(__x86_64__)
      case Isa::kAvx2:
        return quantize_panel_avx2;
      case Isa::kAvx512:
        return quantize_panel_avx512;
#else
      default:
        break;
#endif
    }
  }
  fail(ErrorCode::kUnsupported, "quantizer", "instruction set", "one that this processor has",
       std::string(isa_name(isa)));
}

}  // namespace qvl::quant
