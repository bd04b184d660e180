// Peaks by inline assembly, so that no compiler folds the chains.
#include "machine_peak.h"

#include <time.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "qvl/kernels/table.h"

namespace qvl::bench {

double thread_cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

#if defined(__x86_64__)

namespace {

// Accumulations per second of `chains` independent chains, over about 50 ms.
template <typename Body>
double rate_of(int chains, const Body& body) {
  constexpr int64_t kRounds = 10'000'000;
  const double start = thread_cpu_seconds();
  for (int64_t i = 0; i < kRounds; ++i) body();
  return static_cast<double>(kRounds) * chains / (thread_cpu_seconds() - start);
}

}  // namespace

#define QVL_CHAINS(op, reg)                                                                             \
  asm volatile(op " %%" reg "12, %%" reg "13, %%" reg "0\n\t" op " %%" reg "12, %%" reg "13, %%" reg    \
                  "1\n\t" op " %%" reg "12, %%" reg "13, %%" reg "2\n\t" op " %%" reg "12, %%" reg      \
                  "13, %%" reg "3\n\t" op " %%" reg "12, %%" reg "13, %%" reg "4\n\t" op " %%" reg      \
                  "12, %%" reg "13, %%" reg "5\n\t" op " %%" reg "12, %%" reg "13, %%" reg "6\n\t" op   \
                  " %%" reg "12, %%" reg "13, %%" reg "7\n\t" op " %%" reg "12, %%" reg "13, %%" reg    \
                  "8\n\t" op " %%" reg "12, %%" reg "13, %%" reg "9\n\t" op " %%" reg "12, %%" reg      \
                  "13, %%" reg "10\n\t" op " %%" reg "12, %%" reg "13, %%" reg "11\n\t" ::              \
                      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                        "xmm10", "xmm11")

double peak_fma_gflops(std::string_view table) {
  const kernels::CpuFeatures& cpu = kernels::cpu_features();
  if (table.starts_with("avx512") && cpu.avx512) {
    asm volatile("vpxord %%zmm12, %%zmm12, %%zmm12\n\tvpxord %%zmm13, %%zmm13, %%zmm13" ::: "xmm12", "xmm13");
    return rate_of(12, [] { QVL_CHAINS("vfmadd231ps", "zmm"); }) * 32e-9;
  }
  if (cpu.avx2) {
    asm volatile("vxorps %%ymm12, %%ymm12, %%ymm12\n\tvxorps %%ymm13, %%ymm13, %%ymm13" ::: "xmm12", "xmm13");
    return rate_of(12, [] { QVL_CHAINS("vfmadd231ps", "ymm"); }) * 16e-9;
  }
  return 0;
}

double peak_bf16_dot_gflops() {
  if (!kernels::cpu_features().avx512bf16) return 0;
  asm volatile("vpxord %%zmm12, %%zmm12, %%zmm12\n\tvpxord %%zmm13, %%zmm13, %%zmm13" ::: "xmm12", "xmm13");
  return rate_of(12, [] { QVL_CHAINS("vdpbf16ps", "zmm"); }) * 64e-9;
}

double peak_int8_gops() {
  if (!kernels::cpu_features().avx512vnni) return 0;
  asm volatile("vpxord %%zmm12, %%zmm12, %%zmm12\n\tvpxord %%zmm13, %%zmm13, %%zmm13" ::: "xmm12", "xmm13");
  return rate_of(12, [] { QVL_CHAINS("vpdpbusd", "zmm"); }) * 128e-9;
}

#else

double peak_int8_gops() {
  return 0;
}
double peak_fma_gflops(std::string_view) {
  return 0;
}
double peak_bf16_dot_gflops() {
  return 0;
}

#endif

double read_gb_per_s(size_t size_bytes) {
  std::vector<uint64_t> buffer(size_bytes / 8, 1);
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const double start = thread_cpu_seconds();
    uint64_t sums[8] = {};
    for (size_t i = 0; i + 8 <= buffer.size(); i += 8) {
      for (size_t j = 0; j < 8; ++j) sums[j] += buffer[i + j];
    }
    uint64_t sum = 0;
    for (uint64_t s : sums) sum += s;
    asm volatile("" ::"r"(sum));
    const double rate = static_cast<double>(buffer.size() * 8) / (thread_cpu_seconds() - start) * 1e-9;
    if (rate > best) best = rate;
  }
  return best;
}

}  // namespace qvl::bench
