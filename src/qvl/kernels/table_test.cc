// The choice of kernel tables: names, errors, QVL_KERNELS, and that a forced table's kernels are what runs.
#include "qvl/kernels/table.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::kernels {
namespace {

// Where the code of a kernel lies, from a fixed place of the program.
template <typename Kernel>
std::string place(Kernel kernel) {
  return std::to_string(reinterpret_cast<intptr_t>(kernel) - reinterpret_cast<intptr_t>(&cpu_features));
}

// Bits of a few results that depend on the order and the precision of summation, hence on the kernels that
// ran. Sums of bytes are exact: tables that differ in those alone are told apart by where their kernels lie.
std::string fingerprint(const KernelTable& table) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table};
  constexpr int64_t kDepth = 333, kCols = 40;
  std::vector<BFloat16> x(kDepth), w(kDepth * kCols);
  uint32_t state = 12345;
  const auto next = [&] {
    state = state * 1664525u + 1013904223u;
    return to_bfloat16((static_cast<float>(state >> 8) / 8388608.0f - 1.0f) *
                       (state % 7 == 0 ? 1000.0f : 1.0f));
  };
  for (BFloat16& v : x) v = next();
  for (BFloat16& v : w) v = next();
  std::vector<float> xf(kDepth), y(kCols);
  for (int64_t i = 0; i < kDepth; ++i) xf[i] = to_float(x[i]);
  std::string text;
  const auto append = [&](const void* data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
      char hex[3];
      std::snprintf(hex, sizeof(hex), "%02x", static_cast<const unsigned char*>(data)[i]);
      text += hex;
    }
  };
  for (LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
    const Weight weight{w.data(), DType::kBF16, kCols, kDepth, nullptr};
    linear(ctx, path, {xf.data(), DType::kF32, 1, kDepth, kDepth}, weight, Activation::kNone, {},
           {y.data(), DType::kF32, 1, kCols, kCols});
    append(y.data(), y.size() * sizeof(float));
    // A product of two numbers whose result is a denormal: VDPBF16PS alone makes it zero.
    std::vector<BFloat16> tiny = {to_bfloat16(1e-20f)}, small = {to_bfloat16(5e-20f)}, out(1);
    linear(ctx, path, {tiny.data(), DType::kBF16, 1, 1, 1}, {small.data(), DType::kBF16, 1, 1, nullptr},
           Activation::kNone, {}, {out.data(), DType::kBF16, 1, 1, 1});
    append(out.data(), sizeof(BFloat16));
  }
  return text + " " + place(table.int8->gemv.run) + " " + place(table.int8->gemm.tile);
}

TEST(TableTest, ScalarFirstAndEveryNameResolves) {
  ASSERT_FALSE(runnable_tables().empty());
  EXPECT_EQ(runnable_tables().front(), "scalar");
  for (std::string_view name : runnable_tables()) EXPECT_EQ(table_name(table_by_name(name)), name);
}

TEST(TableTest, TablesFollowTheProcessor) {
  const auto has = [](std::string_view name) {
    return std::find(runnable_tables().begin(), runnable_tables().end(), name) != runnable_tables().end();
  };
  EXPECT_EQ(has("avx2"), cpu_features().avx2);
  EXPECT_EQ(has("avx512"), cpu_features().avx512);
  EXPECT_EQ(has("avx512bf16"), cpu_features().avx512bf16);
  EXPECT_EQ(has("neon"), cpu_features().neon);
  EXPECT_EQ(has("neon_dotprod"), cpu_features().neon_dotprod);
  EXPECT_EQ(has("neon_i8mm"), cpu_features().neon_i8mm);
#if defined(__x86_64__)
  // The compiler's own detection agrees.
  EXPECT_EQ(cpu_features().avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(cpu_features().avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                       __builtin_cpu_supports("avx512vl") &&
                                       __builtin_cpu_supports("avx512dq"));
#elif defined(__aarch64__)
  // The registers that the system let programs read agree.
  uint64_t isar0, isar1;
  asm("mrs %0, ID_AA64ISAR0_EL1" : "=r"(isar0));
  asm("mrs %0, ID_AA64ISAR1_EL1" : "=r"(isar1));
  EXPECT_EQ(cpu_features().neon_dotprod, (isar0 >> 44 & 15) != 0);
  EXPECT_EQ(cpu_features().neon_i8mm, (isar1 >> 52 & 15) != 0 && (isar0 >> 44 & 15) != 0);
#endif
}

TEST(TableTest, TablesAreThoseThatTheRunExpects) {
  const char* expected = std::getenv("QVL_TEST_TABLES");
  if (expected == nullptr) GTEST_SKIP() << "QVL_TEST_TABLES does not say which";
  std::string names;
  for (std::string_view name : runnable_tables()) names += (names.empty() ? "" : " ") + std::string(name);
  EXPECT_EQ(names, expected);
}

TEST(TableTest, BestTableIsTheDefaultAndSuitsTheProcessor) {
  if (std::getenv("QVL_KERNELS") == nullptr) {
    EXPECT_EQ(table_name(active_table()), runnable_tables().back());
  }
  if (cpu_features().avx512bf16) {
    EXPECT_EQ(runnable_tables().back(), cpu_features().slow_bf16_dot ? "avx512" : "avx512bf16");
  }
}

TEST(TableTest, UnknownNameIsInvalid) {
  try {
    table_by_name("sse9");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(e.what()).find("sse9"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("scalar"), std::string::npos);
  }
}

TEST(TableTest, KnownButNotRunnableIsUnsupported) {
  int tried = 0;
  for (std::string_view name : {"avx2", "avx512", "avx512bf16", "neon", "neon_dotprod", "neon_i8mm"}) {
    if (std::find(runnable_tables().begin(), runnable_tables().end(), name) != runnable_tables().end())
      continue;
    ++tried;
    try {
      table_by_name(name);
      ADD_FAILURE() << name;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
    }
  }
  EXPECT_GE(tried, 3);  // those of the other family at least
}

TEST(TableTest, EveryTableHasItsOwnKernels) {
  std::map<std::string, std::string_view> seen;
  for (std::string_view name : runnable_tables()) {
    const auto [it, inserted] = seen.emplace(fingerprint(table_by_name(name)), name);
    EXPECT_TRUE(inserted) << name << " gives the same bits as " << it->second;
  }
}

// The two children of the forcing test; they do nothing unless asked to.
TEST(TableChildTest, PrintsItsFingerprint) {
  if (std::getenv("QVL_TEST_CHILD") == nullptr) GTEST_SKIP() << "run by TableTest";
  try {
    const KernelTable& table = active_table();
    std::printf("RESULT %s %s\n", std::string(table_name(table)).c_str(), fingerprint(table).c_str());
  } catch (const Error& e) {
    std::printf("RESULT error %s\n", std::string(error_code_name(e.code())).c_str());
  }
}

std::string run_child(const std::string& kernels) {
  std::array<char, 4096> path{};
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (length <= 0) return "no path";
  const char* launcher = std::getenv("QVL_TEST_LAUNCHER");  // an emulator, say
  const std::string command = "env -u GTEST_TOTAL_SHARDS -u GTEST_SHARD_INDEX QVL_TEST_CHILD=1 QVL_KERNELS='" +
                              kernels + "' " + (launcher == nullptr ? "" : launcher) + " '" + path.data() +
                              "' --gtest_filter=TableChildTest.PrintsItsFingerprint 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "no pipe";
  std::string output;
  std::array<char, 4096> chunk{};
  while (size_t got = std::fread(chunk.data(), 1, chunk.size(), pipe)) output.append(chunk.data(), got);
  if (pclose(pipe) != 0) return "failed: " + output;
  const size_t begin = output.find("RESULT ");
  if (begin == std::string::npos) return "no result: " + output;
  return output.substr(begin + 7, output.find('\n', begin) - begin - 7);
}

TEST(TableTest, ForcedTableIsTheOneThatRuns) {
  for (std::string_view name : runnable_tables()) {
    EXPECT_EQ(run_child(std::string(name)), std::string(name) + " " + fingerprint(table_by_name(name)));
  }
}

TEST(TableTest, ForcedUnknownTableIsAnError) {
  EXPECT_EQ(run_child("sse9"), "error invalid_argument");
  EXPECT_EQ(run_child(""), "error invalid_argument");
}

}  // namespace
}  // namespace qvl::kernels
