// Peaks by inline assembly, so that no compiler folds the chains.
#include "qvl/kernels/machine_limits.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/kernels/attention_kernels.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

using Clock = std::chrono::steady_clock;

double wall_seconds() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// One kind of product: `body` starts `ops` operations in independent chains.
struct Chains {
  void (*run)(int64_t rounds) = nullptr;
  double ops = 0;
  const char* instruction = "";
};

constexpr int64_t kRounds = 5'000'000;

// Operations per second of the calling thread alone.
double rate_of(const Chains& chains) {
  if (!chains.run) return 0;
  chains.run(kRounds / 10);
  const double start = thread_cpu_seconds();
  chains.run(kRounds);
  return static_cast<double>(kRounds) * chains.ops / (thread_cpu_seconds() - start);
}

// Of all threads at once.
double rate_of(const Chains& chains, ThreadPool& pool, int repeats) {
  if (!chains.run) return 0;
  // Many short runs: on a shared machine some of them have it to themselves.
  constexpr int64_t kShort = kRounds / 5;
  double best = 0;
  for (int i = 0; i < 10 * repeats; ++i) {
    const double start = wall_seconds();
    pool.run([&](int) { chains.run(kShort); });
    best = std::max(best, static_cast<double>(kShort) * chains.ops * pool.threads() / (wall_seconds() - start));
  }
  return best;
}

// What any processor runs: four lanes of float, eight of 16 bits, as the compiler's baseline allows.
template <typename Lane>
void plain_chains(int64_t rounds) {
  typedef Lane Vec __attribute__((vector_size(16)));
  Vec sums[8] = {};
  Vec factor = {};
  asm volatile("" : "+m"(factor));
  for (int64_t i = 0; i < rounds; ++i) {
    for (Vec& sum : sums) sum = sum * factor + factor;
  }
  asm volatile("" ::"m"(sums));
}
constexpr Chains kPlainFloat{plain_chains<float>, 8 * 4 * 2, "plain C++, 4 floats"};
constexpr Chains kPlainInt{plain_chains<int16_t>, 8 * 8 * 2, "plain C++, 8 16-bit integers"};

#if defined(__x86_64__)

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

// Zeros in the factors: no chain meets denormal numbers.
void zero_factors() {
  asm volatile("vpxor %%xmm12, %%xmm12, %%xmm12\n\tvpxor %%xmm13, %%xmm13, %%xmm13" ::: "xmm12", "xmm13");
}

void fma512(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("vfmadd231ps", "zmm");
}
void fma256(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("vfmadd231ps", "ymm");
}
void dot_bf16(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("vdpbf16ps", "zmm");
}
void dot_int8(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("vpdpbusd", "zmm");
}
// These instructions do not accumulate: every product needs at least one addition of its sums.
#define QVL_PAIR(op, add, product, sum) \
  op " %%ymm12, %%ymm13, %%ymm" product "\n\t" add " %%ymm" product ", %%ymm" sum ", %%ymm" sum "\n\t"
#define QVL_PAIRS(op, add)                                                                              \
  asm volatile(QVL_PAIR(op, add, "8", "0") QVL_PAIR(op, add, "9", "1") QVL_PAIR(op, add, "10", "2")     \
                   QVL_PAIR(op, add, "11", "3") QVL_PAIR(op, add, "8", "4") QVL_PAIR(op, add, "9", "5") \
                       QVL_PAIR(op, add, "10", "6") QVL_PAIR(op, add, "11", "7")::                      \
                           : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",    \
                             "xmm9", "xmm10", "xmm11")
void maddubs256(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_PAIRS("vpmaddubsw", "vpaddw");
}
void maddwd256(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_PAIRS("vpmaddwd", "vpaddd");
}
#undef QVL_PAIRS
#undef QVL_PAIR
void dot_int16(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("vpdpwssd", "zmm");
}

// Sums of four products, those of `product` and `other`, widened and added; four of such chains.
#define QVL_WIDEN(product, other, sum)                                                                   \
  "vpaddw %%ymm" other ", %%ymm" product ", %%ymm" product "\n\tvpmaddwd %%ymm12, %%ymm" product          \
  ", %%ymm" product "\n\tvpaddd %%ymm" product ", %%ymm" sum ", %%ymm" sum "\n\t"
#define QVL_FOUR_CHAINS(step)                                                                            \
  asm volatile(step("8", "9", "0") step("10", "11", "1") step("8", "9", "2") step("10", "11", "3")::     \
                   : "xmm0", "xmm1", "xmm2", "xmm3", "xmm8", "xmm9", "xmm10", "xmm11")

// Of bytes that may have any value: the sign moves to the other factor, and 16 bits hold the sums of two products at the
// most (int8_wide_avx2.h).
void signed_maddubs256(int64_t rounds) {
  zero_factors();
#define QVL_SIGNED(product, other, sum)                                                                  \
  "vpsignb %%ymm12, %%ymm13, %%ymm" product "\n\tvpsignb %%ymm12, %%ymm13, %%ymm" other                  \
  "\n\tvpmaddubsw %%ymm" product ", %%ymm13, %%ymm" product "\n\tvpmaddubsw %%ymm" other                \
  ", %%ymm13, %%ymm" other "\n\t" QVL_WIDEN(product, other, sum)
  for (int64_t i = 0; i < rounds; ++i) QVL_FOUR_CHAINS(QVL_SIGNED);
#undef QVL_SIGNED
}

// Of any bytes with codes of 7 bits, 0 to 128 (int8_seven_avx2.cc).
void seven_maddubs256(int64_t rounds) {
  zero_factors();
#define QVL_SEVEN(product, other, sum)                                                                   \
  "vpmaddubsw %%ymm12, %%ymm13, %%ymm" product "\n\tvpmaddubsw %%ymm13, %%ymm12, %%ymm" other "\n\t"     \
  QVL_WIDEN(product, other, sum)
  for (int64_t i = 0; i < rounds; ++i) QVL_FOUR_CHAINS(QVL_SEVEN);
#undef QVL_SEVEN
}
#undef QVL_FOUR_CHAINS
#undef QVL_WIDEN

constexpr Chains kFma512{fma512, 12 * 16 * 2, "FMA, 512 bits"};
constexpr Chains kFma256{fma256, 12 * 8 * 2, "FMA, 256 bits"};
constexpr Chains kDotBf16{dot_bf16, 12 * 32 * 2, "VDPBF16PS, 512 bits"};
constexpr Chains kDotInt8{dot_int8, 12 * 64 * 2, "VPDPBUSD, 512 bits"};
constexpr Chains kMaddubs{maddubs256, 8 * 32 * 2, "VPMADDUBSW, 256 bits"};
constexpr Chains kMaddwd{maddwd256, 8 * 16 * 2, "VPMADDWD, 256 bits"};
constexpr Chains kDotInt16{dot_int16, 12 * 32 * 2, "VPDPWSSD, 512 bits"};
constexpr Chains kSignedMaddubs{signed_maddubs256, 8 * 32 * 2, "VPSIGNB and VPMADDUBSW, 256 bits"};
constexpr Chains kSevenMaddubs{seven_maddubs256, 8 * 32 * 2, "VPMADDUBSW and VPMADDWD, 256 bits"};

bool wide(std::string_view table) {
  return table.starts_with("avx512") && cpu_features().avx512;
}

Chains float_chains(std::string_view table) {
  if (wide(table)) return kFma512;
  return table != "scalar" && cpu_features().avx2 ? kFma256 : kPlainFloat;
}
Chains int8_chains(std::string_view table) {
  if (wide(table) && cpu_features().avx512vnni) return kDotInt8;
  return table != "scalar" && cpu_features().avx2 ? kMaddubs : kPlainInt;
}
Chains int16_chains(std::string_view table) {
  if (wide(table) && cpu_features().avx512vnni) return kDotInt16;
  return table != "scalar" && cpu_features().avx2 ? kMaddwd : kPlainInt;
}
Chains int8_wide_chains(std::string_view table) {
  const Chains chains = int8_chains(table);
  return chains.run == maddubs256 ? kSignedMaddubs : chains;
}
Chains int8_seven_chains(std::string_view table) {
  const Chains chains = int8_chains(table);
  return chains.run == maddubs256 ? kSevenMaddubs : chains;
}
Chains bf16_dot_chains() {
  return cpu_features().avx512bf16 ? kDotBf16 : Chains{};
}

#elif defined(__aarch64__)

// `op` on twelve accumulators; `t` is their arrangement, `f` that of the factors.
#define QVL_CHAIN(op, n, t, f) op " v" n "." t ", v12." f ", v13." f "\n\t"
#define QVL_CHAINS(op, t, f)                                                                                    \
  asm volatile(QVL_CHAIN(op, "0", t, f) QVL_CHAIN(op, "1", t, f) QVL_CHAIN(op, "2", t, f)                       \
                   QVL_CHAIN(op, "3", t, f) QVL_CHAIN(op, "4", t, f) QVL_CHAIN(op, "5", t, f)                   \
                       QVL_CHAIN(op, "6", t, f) QVL_CHAIN(op, "7", t, f) QVL_CHAIN(op, "8", t, f)               \
                           QVL_CHAIN(op, "9", t, f) QVL_CHAIN(op, "10", t, f) QVL_CHAIN(op, "11", t, f)::       \
                   : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11")

void zero_factors() {
  asm volatile("movi v12.16b, #0\n\tmovi v13.16b, #0" ::: "v12", "v13");
}

void fmla(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("fmla", "4s", "4s");
}
void smlal(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("smlal", "8h", "8b");
}
__attribute__((target("arch=armv8.2-a+dotprod"))) void sdot(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("sdot", "4s", "16b");
}
__attribute__((target("arch=armv8.2-a+dotprod+i8mm"))) void smmla(int64_t rounds) {
  zero_factors();
  for (int64_t i = 0; i < rounds; ++i) QVL_CHAINS("smmla", "4s", "16b");
}

constexpr Chains kFmla{fmla, 12 * 4 * 2, "FMLA, 128 bits"};
constexpr Chains kSmlal{smlal, 12 * 8 * 2, "SMLAL, 128 bits"};
constexpr Chains kSdot{sdot, 12 * 16 * 2, "SDOT, 128 bits"};
constexpr Chains kSmmla{smmla, 12 * 32 * 2, "SMMLA, 128 bits"};

Chains float_chains(std::string_view table) {
  return table == "scalar" ? kPlainFloat : kFmla;
}
Chains int8_chains(std::string_view table) {
  if (table == "neon_i8mm") return kSmmla;
  if (table == "neon_dotprod") return kSdot;
  return table == "scalar" ? kPlainInt : kSmlal;
}
Chains int8_wide_chains(std::string_view table) {
  return int8_chains(table);
}
Chains int8_seven_chains(std::string_view table) {
  return int8_chains(table);
}
Chains int16_chains(std::string_view) {
  return kPlainInt;
}
Chains bf16_dot_chains() {
  return {};
}

#else

Chains float_chains(std::string_view) {
  return kPlainFloat;
}
Chains int8_chains(std::string_view) {
  return kPlainInt;
}
Chains int8_wide_chains(std::string_view table) {
  return int8_chains(table);
}
Chains int8_seven_chains(std::string_view table) {
  return int8_chains(table);
}
Chains int16_chains(std::string_view) {
  return kPlainInt;
}
Chains bf16_dot_chains() {
  return {};
}

#endif

// Sums `bytes` (a multiple of 64 * kStreams) read as kStreams runs side by side, `ahead` bytes of prefetch each,
// into the first cache or (kSecond) the second. As wide as the baseline instruction set goes.
template <int kStreams, bool kSecond>
uint64_t sum_bytes(const std::byte* p, int64_t bytes, int64_t ahead) {
  typedef uint64_t Vec __attribute__((vector_size(16)));
  const int64_t run = bytes / kStreams;
  Vec a = {}, b = {}, c = {}, d = {};
  for (int64_t i = 0; i < run; i += 64) {
    for (int s = 0; s < kStreams; ++s) {
      const Vec* v = reinterpret_cast<const Vec*>(p + s * run + i);
      if (ahead > 0) __builtin_prefetch(p + s * run + i + ahead, 0, kSecond ? 2 : 3);
      a += v[0];
      b += v[1];
      c += v[2];
      d += v[3];
    }
  }
  const Vec sum = a + b + c + d;
  return sum[0] + sum[1];
}

struct ReadPattern {
  uint64_t (*sum)(const std::byte*, int64_t, int64_t);
  int streams;
  int64_t ahead;
  bool second;
};
// No single pattern is the fastest everywhere (SPEED.md): the limit is the best of these.
constexpr std::array<ReadPattern, 6> kReadPatterns = {{{sum_bytes<1, false>, 1, 0, false},
                                                       {sum_bytes<1, false>, 1, 4096, false},
                                                       {sum_bytes<4, false>, 4, 0, false},
                                                       {sum_bytes<4, false>, 4, 1024, false},
                                                       {sum_bytes<4, false>, 4, 4096, false},
                                                       {sum_bytes<4, true>, 4, 4096, true}}};

// Each thread reads a contiguous part in pieces of this size.
constexpr int64_t kPieceBytes = 1 << 20;

void raise(Peak& peak, const Peak& other) {
  if (other.per_second > peak.per_second) peak = other;
}

}  // namespace

double thread_cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double peak_fma_gflops(std::string_view table) {
  return rate_of(float_chains(table)) * 1e-9;
}
double peak_bf16_dot_gflops() {
  return rate_of(bf16_dot_chains()) * 1e-9;
}
double peak_int8_gops(std::string_view table) {
  return rate_of(int8_chains(table)) * 1e-9;
}
double peak_int16_gops(std::string_view table) {
  return rate_of(int16_chains(table)) * 1e-9;
}

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

void ReadRate::raise_to(const ReadRate& other) {
  if (other.bytes_per_second > bytes_per_second) *this = other;
}

void MachineLimits::raise_to(const MachineLimits& other) {
  read.raise_to(other.read);
  raise(int8, other.int8);
  raise(int8_wide, other.int8_wide);
  raise(int8_seven, other.int8_seven);
  raise(bf16, other.bf16);
  raise(fp32, other.fp32);
  raise(attention, other.attention);
}

void measure_read_limit(std::span<const std::byte> bytes, ThreadPool& pool, int repeats, ReadRate& limit) {
  measure_read_limit({&bytes, 1}, pool, repeats, limit);
}

void measure_read_limit(std::span<const std::span<const std::byte>> runs, ThreadPool& pool, int repeats, ReadRate& limit) {
  // What every pattern reads in whole steps.
  constexpr int64_t kStepBytes = 4 * 64;
  const auto share = [&](std::span<const std::byte> run) {
    return static_cast<int64_t>(run.size()) / pool.threads() / kStepBytes * kStepBytes;
  };
  int64_t bytes = 0;
  for (const std::span<const std::byte> run : runs) bytes += share(run) * pool.threads();
  if (bytes < kPieceBytes * pool.threads() || repeats < 1) {
    fail(ErrorCode::kInvalidArgument, "read limit", "bytes and repeats", "1 MiB for each thread, 1", cat(bytes, " bytes, ", repeats));
  }
  const auto once = [&](const ReadPattern& pattern) {
    const double start = wall_seconds();
    pool.run([&](int thread) {
      uint64_t sum = 0;
      for (const std::span<const std::byte> run : runs) {
        const int64_t mine = share(run);
        const std::byte* part = run.data() + thread * mine;
        for (int64_t done = 0; done < mine; done += kPieceBytes)
          sum += pattern.sum(part + done, std::min(kPieceBytes, mine - done), pattern.ahead);
      }
      asm volatile("" ::"r"(sum));
    });
    const double rate = static_cast<double>(bytes) / (wall_seconds() - start);
    if (rate <= limit.bytes_per_second) return rate;
    limit.bytes_per_second = rate;
    limit.pattern = cat(pattern.streams, pattern.streams == 1 ? " stream" : " streams",
                              pattern.ahead == 0 ? std::string(", no prefetch")
                                                 : cat(", prefetch ", pattern.ahead, " B ahead into the ",
                                                       pattern.second ? "second" : "first", " cache"));
    return rate;
  };
  // All of them once, then those that may win.
  std::array<std::pair<double, const ReadPattern*>, kReadPatterns.size()> seen;
  for (size_t i = 0; i < seen.size(); ++i) seen[i] = {once(kReadPatterns[i]), &kReadPatterns[i]};
  std::sort(seen.begin(), seen.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (int i = 1; i < repeats; ++i) {
    for (size_t best = 0; best < 2; ++best) once(*seen[best].second);
  }
}

MachineLimits measure_machine_limits(const KernelTable& table, ThreadPool& pool, const LimitOptions& options) {
  AlignedBuffer buffer(options.buffer_bytes);
  // Each thread writes what it reads, so that the pages are its own where that matters.
  pool.run([&](int thread) {
    const size_t part = buffer.size_bytes() / static_cast<size_t>(pool.threads());
    std::memset(buffer.data() + part * static_cast<size_t>(thread), 1, part);
  });
  MachineLimits out;
  measure_read_limit({buffer.data(), buffer.size_bytes()}, pool, options.repeats, out.read);
  const auto peak = [&](const Chains& chains) {
    return Peak{rate_of(chains, pool, options.repeats), chains.instruction};
  };
  out.fp32 = peak(float_chains(table.name));
  out.int8 = peak(int8_chains(table.name));
  const auto int8_peak = [&](const Chains& chains) {
    return chains.run == int8_chains(table.name).run ? out.int8 : peak(chains);
  };
  out.int8_wide = int8_peak(int8_wide_chains(table.name));
  out.int8_seven = int8_peak(int8_seven_chains(table.name));
  // bf16 weights may always be widened and multiplied as floats.
  out.bf16 = out.fp32;
  if (table.name == "avx512bf16") raise(out.bf16, peak(bf16_dot_chains()));
  out.attention = table.attention->tile_bf16.int16 ? peak(int16_chains(table.name)) : out.bf16;
  return out;
}

}  // namespace qvl::kernels
