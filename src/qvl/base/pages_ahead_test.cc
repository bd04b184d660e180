#include "qvl/base/pages_ahead.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "qvl/base/mapped_file.h"

namespace qvl {
namespace {

constexpr size_t kBytes = size_t{24} << 20;

class PagesAheadTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::path(testing::TempDir()) / ("qvl-pages-ahead-" + std::to_string(::getpid()));
    std::ofstream(path_) << std::string(kBytes, 'x');
  }
  void TearDown() override { std::filesystem::remove(path_); }

  static int64_t faults() {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt + usage.ru_majflt;
  }
  // Faults of reading all of it.
  static int64_t faults_of_reading(std::span<const std::byte> bytes) {
    const int64_t before = faults();
    size_t sum = 0;
    for (size_t i = 0; i < bytes.size(); i += 4096) sum += std::to_integer<size_t>(bytes[i]);
    EXPECT_EQ(sum, (bytes.size() + 4095) / 4096 * 'x');
    return faults() - before;
  }
  // Where the kernel has it at all.
  static bool kernel_maps_ahead() {
    const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    void* p = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool works = ::madvise(p, page, 22) == 0;
    ::munmap(p, page);
    return works;
  }

  std::filesystem::path path_;
};

TEST_F(PagesAheadTest, WhatIsMappedAheadIsReadWithoutFaults) {
  const MappedFile file = MappedFile::open(path_);
  // Ends within pages; the middle is left out.
  const std::span<const std::byte> first = file.bytes().subspan(100, (8 << 20) + 77), last = file.bytes().subspan(16 << 20);
  PagesAhead ahead({first, {}, last});
  EXPECT_EQ(ahead.wait(), 0u);
  ahead.start();
  const size_t mapped = ahead.wait();
  if (!kernel_maps_ahead()) {
    EXPECT_EQ(mapped, 0u);
    GTEST_SKIP() << "this kernel cannot map pages ahead";
  }
  EXPECT_EQ(mapped, first.size() + last.size());
  EXPECT_EQ(faults_of_reading(first), 0);
  EXPECT_EQ(faults_of_reading(last), 0);
  EXPECT_GT(faults_of_reading(file.bytes().subspan(10 << 20, 4 << 20)), 0);
}

TEST_F(PagesAheadTest, StopsAtAnyTimeAndBeginsAnew) {
  const MappedFile file = MappedFile::open(path_);
  // Far more than is mapped before a stop that follows at once.
  std::vector<std::span<const std::byte>> again(1000, file.bytes());
  {
    PagesAhead ahead(again);
    ahead.stop();
    for (int i = 0; i < 5; ++i) {
      ahead.start();
      ahead.start();  // is under way
      ahead.stop();
      EXPECT_LT(ahead.wait(), again.size() * kBytes);
    }
    ahead.start();  // and ends with the object
  }
  EXPECT_LE(faults_of_reading(file.bytes()), static_cast<int64_t>(kBytes / 4096));
}

TEST_F(PagesAheadTest, EndsWhereNothingIsMapped) {
  const MappedFile file = MappedFile::open(path_);
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  void* p = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(p, MAP_FAILED);
  ASSERT_EQ(::munmap(p, page), 0);
  PagesAhead ahead({{static_cast<const std::byte*>(p), page}, file.bytes()});
  ahead.start();
  EXPECT_EQ(ahead.wait(), 0u);
}

}  // namespace
}  // namespace qvl
