#include "qvl/kernels/machine_limits.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

constexpr LimitOptions kQuick{.buffer_bytes = size_t{64} << 20, .repeats = 2};

// No processor starts more than 4 vector instructions a cycle or runs above 8 GHz; the widest products here are 128
// operations each. Memory: what a cache of a core may deliver at most.
constexpr double kMostGhz = 8e9, kMostStarts = 4, kMostReadBytesPerCycle = 256;

TEST(MachineLimits, LieWithinWhatPhysicsAllowsOnEveryTable) {
  for (const std::string_view name : runnable_tables()) {
    for (const int threads : {1, 2}) {
      SCOPED_TRACE(std::string(name) + ", " + std::to_string(threads));
      ThreadPool pool(threads);
      const MachineLimits limits = measure_machine_limits(table_by_name(name), pool, kQuick);
      const double most = kMostGhz * kMostStarts * threads;
      EXPECT_GT(limits.read.bytes_per_second, 1e8);
      EXPECT_LT(limits.read.bytes_per_second, kMostGhz * kMostReadBytesPerCycle * threads);
      EXPECT_GT(limits.fp32.per_second, 1e8);
      EXPECT_LT(limits.fp32.per_second, most * 32);
      EXPECT_GE(limits.bf16.per_second, limits.fp32.per_second);  // widening is always open
      EXPECT_LT(limits.bf16.per_second, most * 64);
      EXPECT_GT(limits.int8.per_second, 1e8);
      EXPECT_LT(limits.int8.per_second, most * 128);
      EXPECT_GT(limits.int8_wide.per_second, 1e8);
      EXPECT_LT(limits.int8_wide.per_second, most * 128);
      EXPECT_FALSE(limits.int8_wide.instruction.empty());
      EXPECT_EQ(limits.int8_seven.instruction != limits.int8.instruction, limits.int8_wide.instruction != limits.int8.instruction);
      EXPECT_GT(limits.int8_seven.per_second, 1e8);
      EXPECT_LT(limits.int8_seven.per_second, most * 128);
      EXPECT_EQ(limits.int8_wide.instruction != limits.int8.instruction, limits.int8.instruction.starts_with("VPMADDUBSW"));
      EXPECT_GE(limits.attention.per_second, 1e8);
      EXPECT_LT(limits.attention.per_second, most * 64);
      const bool codes = table_by_name(name).attention->tile_bf16.int16;
      EXPECT_EQ(limits.attention.instruction != limits.bf16.instruction, codes);
      EXPECT_FALSE(limits.read.pattern.empty());
      EXPECT_FALSE(limits.fp32.instruction.empty());
      EXPECT_FALSE(limits.int8.instruction.empty());
    }
  }
}

// Bytes are narrower than floats: as many instructions do at least twice the work. A busy machine may disturb either.
TEST(MachineLimits, BytesGoFasterThanFloats) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's checks take longer than products do";
#endif
  for (const std::string_view name : runnable_tables()) {
    double bytes = 0, floats = 0;  // the best of several: only a quiet moment tells either
    for (int attempt = 0; attempt < 20 && (attempt < 3 || bytes <= 1.2 * floats); ++attempt) {
      bytes = std::max(bytes, peak_int8_gops(name));
      floats = std::max(floats, peak_fma_gflops(name));
    }
    EXPECT_GT(bytes, 1.2 * floats) << name;
  }
}

TEST(MachineLimits, InstructionsThatDoNotExistAreZero) {
  EXPECT_EQ(peak_bf16_dot_gflops() > 0, cpu_features().avx512bf16);
}

TEST(MachineLimits, RaiseToKeepsTheLargerFigureWithItsName) {
  MachineLimits a{.read = {2, "a"}, .int8 = {5, "x"}, .int8_wide = {3, "w"}, .int8_seven = {4, "s"}, .bf16 = {1, "y"}, .fp32 = {1, "z"}, .attention = {1, "c"}};
  const MachineLimits b{
      .read = {1, "b"}, .int8 = {4, "p"}, .int8_wide = {4, "v"}, .int8_seven = {3, "t"}, .bf16 = {7, "q"}, .fp32 = {2, "r"}, .attention = {3, "d"}};
  a.raise_to(b);
  EXPECT_EQ(a.read.bytes_per_second, 2);
  EXPECT_EQ(a.read.pattern, "a");
  EXPECT_EQ(a.int8.instruction, "x");
  EXPECT_EQ(a.int8_wide.instruction, "v");
  EXPECT_EQ(a.int8_seven.instruction, "s");
  EXPECT_EQ(a.bf16.per_second, 7);
  EXPECT_EQ(a.bf16.instruction, "q");
  EXPECT_EQ(a.fp32.per_second, 2);
  EXPECT_EQ(a.attention.instruction, "d");
}

TEST(MachineLimits, RefusesABufferTooSmallForItsThreads) {
  ThreadPool pool(2);
  EXPECT_THROW(measure_machine_limits(active_table(), pool, {.buffer_bytes = size_t{1} << 20}), Error);
  EXPECT_THROW(measure_machine_limits(active_table(), pool, {.buffer_bytes = size_t{4} << 20, .repeats = 0}), Error);
}

}  // namespace
}  // namespace qvl::kernels
