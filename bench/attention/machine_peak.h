// What this processor can do at most, measured: the denominators of the shares that the attention benchmark
// prints.
#pragma once

#include <cstddef>
#include <string_view>

namespace qvl::bench {

// CPU seconds of the calling thread: on a shared machine steadier than wall clock for one thread.
double thread_cpu_seconds();

// GFLOPS of one thread in independent chains, over about 50 ms. 0 where the instructions do not exist.
double peak_fma_gflops(std::string_view table);  // float FMA of the table's vector width
double peak_bf16_dot_gflops();                   // VDPBF16PS

double peak_int8_gops();                         // VPDPBUSD; 0 without it

// GB/s of one thread that reads a buffer of `size_bytes` again and again.
double read_gb_per_s(size_t size_bytes);

}  // namespace qvl::bench
