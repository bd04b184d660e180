// Which instruction sets may be used: the processor must have them and the operating system must save their
// registers (XCR0), else the first use would fault. On ARM the system tells both at once.
#include "qvl/kernels/table.h"

#include <unistd.h>

#include <algorithm>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace qvl::kernels {
namespace {

#if defined(__x86_64__)

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool bit(unsigned value, int index) {
  return (value >> index) & 1u;
}

// Extended control register 0: the register states that the operating system saves.
unsigned read_xcr0() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool is_intel() {
  const Registers r = cpuid(0, 0);  // "GenuineIntel" in b, d, c
  return r.b == 0x756e6547u && r.d == 0x49656e69u && r.c == 0x6c65746eu;
}

CpuFeatures detect() {
  CpuFeatures f;
  const Registers leaf1 = cpuid(1, 0);
  const bool osxsave = bit(leaf1.c, 27);
  if (!osxsave || !bit(leaf1.c, 28)) return f;  // no AVX
  const unsigned xcr0 = read_xcr0();
  const bool os_saves_ymm = (xcr0 & 0x06u) == 0x06u;
  const bool os_saves_zmm = (xcr0 & 0xe6u) == 0xe6u;  // and opmask, upper halves, upper sixteen
  const Registers leaf7 = cpuid(7, 0);
  const bool fma = bit(leaf1.c, 12), f16c = bit(leaf1.c, 29);
  f.avx2 = os_saves_ymm && fma && f16c && bit(leaf7.b, 5);
  const bool avx512f = bit(leaf7.b, 16), dq = bit(leaf7.b, 17), bw = bit(leaf7.b, 30), vl = bit(leaf7.b, 31);
  f.avx512 = f.avx2 && os_saves_zmm && avx512f && dq && bw && vl;
  f.avx512vnni = f.avx512 && bit(leaf7.c, 11);
  // Subleaf 1 exists only when subleaf 0 counts it.
  f.avx512bf16 = f.avx512 && leaf7.a >= 1 && bit(cpuid(7, 1).a, 5);
  f.slow_bf16_dot = f.slow_scalef = is_intel();
  return f;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
  const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
  CpuFeatures f;
  f.neon = (hwcap & HWCAP_ASIMD) != 0;
  f.neon_dotprod = f.neon && (hwcap & HWCAP_ASIMDDP) != 0;
  f.neon_i8mm = f.neon_dotprod && (hwcap2 & HWCAP2_I8MM) != 0;
  return f;
}

#else

CpuFeatures detect() {
  return {};
}

#endif

CpuFeatures detect_all() {
  CpuFeatures f = detect();
  // A hypervisor may tell nonsense: nothing below what every processor here has, nor a share of the last level.
  constexpr long kLeast = 256l << 10, kMost = 4l << 20;
  if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) {
    f.second_level_cache_bytes = static_cast<size_t>(std::clamp(bytes, kLeast, kMost));
  }
  return f;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect_all();
  return features;
}

}  // namespace qvl::kernels
