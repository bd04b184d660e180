// What this machine can do at most, measured: the denominators of the shares that `qvl bench` and the benchmarks
// print. Chains of independent instructions by inline assembly for arithmetic, several read patterns for memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {

// CPU seconds of the calling thread: on a shared machine steadier than wall clock for one thread.
double thread_cpu_seconds();

// Operations (a multiplication and an addition are two) per second of one thread, in CPU seconds, over some 10 ms.
// 0 where the instructions do not exist.
double peak_fma_gflops(std::string_view table);  // float FMA of the table's vector width
double peak_bf16_dot_gflops();                   // VDPBF16PS
double peak_int8_gops(std::string_view table);   // VPDPBUSD, SMMLA, ..., or VPMADDUBSW and an addition of its sums
double peak_int16_gops(std::string_view table);  // VPDPWSSD, or VPMADDWD and an addition of its sums

// GB/s (10^9 bytes) of one thread that reads a buffer of `size_bytes` again and again, in CPU seconds.
double read_gb_per_s(size_t size_bytes);

struct Peak {
  double per_second = 0;    // operations, all threads together
  std::string instruction;  // "VPDPBUSD", "FMA (256 bits)"
};

// How fast all threads of a pool together read, wall clock.
struct ReadRate {
  double bytes_per_second = 0;
  std::string pattern;  // the fastest one: "4 streams, prefetch 4096 B ahead"

  void raise_to(const ReadRate& other);
};

// Of all threads of a pool together, wall clock: what the products of a kernel table could reach if they did nothing
// but multiply, and their weights if nothing had to be done with them.
struct MachineLimits {
  ReadRate read;
  Peak int8;       // the fastest products of bytes there are: with weights of 4 bits
  Peak int8_wide;  // with weights of 8 bits, whose products take more instructions on AVX2; elsewhere the same
  Peak int8_seven;  // with weights of 8 bits and activations of 7; as above
  Peak bf16, fp32;
  Peak attention;  // of bf16 activations: products of 16-bit codes where the table multiplies those, else as bf16

  // The larger of both in each figure: on a shared machine a limit is the best that was ever seen.
  void raise_to(const MachineLimits& other);
};

struct LimitOptions {
  size_t buffer_bytes = size_t{512} << 20;  // several times the last cache; at least 1 MiB for each thread
  int repeats = 3;                          // of everything; the best counts
};

// About a second with the defaults on 20 GB/s. `table` says which instructions count; those of the scalar table are
// plain C++. Throws kInvalidArgument (options), kLimit (memory).
MachineLimits measure_machine_limits(const KernelTable& table, ThreadPool& pool, const LimitOptions& options = {});

// The memory part alone, for bytes that lie somewhere already, in one run or in several that are read one after the other: where
// they lie may decide how fast they are read. At least 1 MiB for each thread, many times the last cache to say anything about memory
// (of six times as much it still holds a tenth); what was never written or is not in the page cache is read slowly the first time.
// Raises `rate`. Throws kInvalidArgument.
void measure_read_limit(std::span<const std::span<const std::byte>> runs, ThreadPool& pool, int repeats, ReadRate& rate);
void measure_read_limit(std::span<const std::byte> bytes, ThreadPool& pool, int repeats, ReadRate& rate);

}  // namespace qvl::kernels
