#include "qvl/base/pages_ahead.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "qvl/base/atomic_file.h"
#include "qvl/base/mapped_file.h"

namespace qvl {
namespace {

constexpr size_t kBytes = size_t{24} << 20, kPageBytes = 4096;

class PagesAheadTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::path(testing::TempDir()) / ("qvl-pages-ahead-" + std::to_string(::getpid()));
    AtomicFile file(path_);
    file.write(std::string(kBytes, 'x'));
    file.commit();  // to the disk: pages on their way there are not mapped around others
  }
  void TearDown() override { std::filesystem::remove(path_); }

  static int64_t faults() {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt + usage.ru_majflt;
  }
  // One byte of every page. Without what a sanitizer does at a read, which faults on memory of its own.
  __attribute__((noinline, no_sanitize("address", "thread"))) static size_t sum_of_pages(const char* p, size_t size_bytes) {
    size_t sum = 0;
    for (size_t i = 0; i < size_bytes; i += kPageBytes) sum += static_cast<size_t>(p[i]);
    return sum;
  }
  // Faults of reading all of it.
  static int64_t faults_of_reading(std::span<const std::byte> bytes) {
    const int64_t before = faults();
    const size_t sum = sum_of_pages(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const int64_t after = faults();
    EXPECT_EQ(sum, (bytes.size() + kPageBytes - 1) / kPageBytes * 'x');
    return after - before;
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
  EXPECT_EQ(ahead.wait(), first.size() + last.size());
  const std::span<const std::byte> middle = file.bytes().subspan(10 << 20, 4 << 20);
  const int64_t not_mapped = faults_of_reading(middle);
  EXPECT_GT(not_mapped, 0);
  if (not_mapped >= static_cast<int64_t>(middle.size() / kPageBytes)) GTEST_SKIP() << "a fault brings a single page here";
  EXPECT_LE(faults_of_reading(first), 2);
  EXPECT_LE(faults_of_reading(last), 2);
}

TEST_F(PagesAheadTest, StopsAtAnyTimeAndBeginsAnew) {
  const MappedFile file = MappedFile::open(path_);
  // Far more than is mapped before a stop that follows at once.
  std::vector<std::span<const std::byte>> again(1000000, file.bytes());
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
  EXPECT_LE(faults_of_reading(file.bytes()), static_cast<int64_t>(kBytes / kPageBytes));
}

}  // namespace
}  // namespace qvl
