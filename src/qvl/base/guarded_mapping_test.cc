// Files that change while they are mapped: nothing ends the process, and nobody takes what he read for sound.
#include "qvl/base/guarded_mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl {
namespace {

namespace fs = std::filesystem;

const size_t kPage = static_cast<size_t>(::sysconf(_SC_PAGESIZE));

class GuardedMappingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::path(testing::TempDir()) / "qvl-mapping-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path file(int i = 0) const { return folder_ / cat(i); }
  void write(char c, size_t bytes, int i = 0) const {
    std::ofstream(file(i), std::ios::binary | std::ios::trunc) << std::string(bytes, c);
  }
  std::shared_ptr<const GuardedMapping> map(int i = 0) const {
    return GuardedMapping::map(FileDescriptor(::open(file(i).c_str(), O_RDONLY | O_CLOEXEC)));
  }
  static bool all(std::span<const std::byte> bytes, char c) {
    return std::ranges::all_of(bytes, [c](std::byte b) { return b == static_cast<std::byte>(c); });
  }

  fs::path folder_;
};

TEST_F(GuardedMappingTest, RemovedOrReplacedItStaysWhatItWas) {
  write('a', 2 * kPage + 5);
  const auto mapping = map();
  EXPECT_EQ(mapping->bytes().size(), 2 * kPage + 5);
  write('b', 3 * kPage, 1);
  fs::rename(file(1), file());
  EXPECT_TRUE(all(mapping->bytes(), 'a'));
  EXPECT_TRUE(mapping->intact());
  fs::remove(file());
  EXPECT_TRUE(all(mapping->bytes(), 'a'));
  EXPECT_TRUE(mapping->intact());
  write('c', 0, 2);
  EXPECT_TRUE(map(2)->bytes().empty());
  EXPECT_TRUE(map(2)->intact());
  EXPECT_THROW(GuardedMapping::map(FileDescriptor()), Error);
  EXPECT_THROW(GuardedMapping::map(FileDescriptor(::open(folder_.c_str(), O_RDONLY | O_CLOEXEC))), Error);
}

TEST_F(GuardedMappingTest, CutShortItReadsAsZerosAndSaysSo) {
  write('a', 4 * kPage);
  const auto mapping = map();
  EXPECT_TRUE(all(mapping->bytes(), 'a'));
  // By another process.
  const pid_t child = ::fork();
  if (child == 0) ::_exit(::truncate(file().c_str(), static_cast<off_t>(kPage)) == 0 ? 0 : 1);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  EXPECT_TRUE(all(mapping->bytes().first(kPage), 'a'));
  EXPECT_TRUE(all(mapping->bytes().subspan(kPage), '\0'));
  EXPECT_FALSE(mapping->intact());
  // Given its size and its times back it is not what it was.
  write('a', 4 * kPage);
  EXPECT_FALSE(mapping->intact());
  EXPECT_TRUE(map()->intact());
}

TEST_F(GuardedMappingTest, WrittenIntoItSaysSo) {
  for (const off_t at : {off_t{0}, static_cast<off_t>(2 * kPage)}) {  // within, and behind its end
    write('a', 2 * kPage);
    const auto mapping = map();
    EXPECT_TRUE(mapping->intact());
    const FileDescriptor fd(::open(file().c_str(), O_WRONLY | O_CLOEXEC));
    ::usleep(20000);  // the clock of the file system
    ASSERT_EQ(::pwrite(fd.get(), "b", 1, at), 1);
    EXPECT_FALSE(mapping->intact());
  }
}

TEST_F(GuardedMappingTest, ManyMappingsAndThreadsLoseOnlyWhatIsLost) {
  constexpr int kMappings = 40;
  for (int round = 0; round < 3; ++round) {  // later rounds take what earlier ones gave back
    std::vector<std::shared_ptr<const GuardedMapping>> mappings;
    for (int i = 0; i < kMappings; ++i) {
      write('a', 16 * kPage, i);
      mappings.push_back(map(i));
    }
    for (int i = 0; i < kMappings; i += 2) ASSERT_EQ(::truncate(file(i).c_str(), 0), 0);
    std::vector<std::thread> readers;
    for (int t = 0; t < 4; ++t) {
      readers.emplace_back([&mappings] {
        for (size_t i = 0; i < mappings.size(); ++i) EXPECT_TRUE(all(mappings[i]->bytes(), i % 2 ? 'a' : '\0'));
      });
    }
    for (std::thread& r : readers) r.join();
    for (int i = 0; i < kMappings; ++i) EXPECT_EQ(mappings[static_cast<size_t>(i)]->intact(), i % 2 == 1) << i;
  }
}

// What is no mapping of ours goes where it went before. Each in a process of its own that has mapped nothing yet.
class GuardedMappingDeathTest : public GuardedMappingTest {
 protected:
  void SetUp() override {
    GuardedMappingTest::SetUp();
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
  // Reads behind the end of a file that is mapped without guard.
  void read_unguarded() const {
    write('a', kPage);
    const auto mapping = map();
    write('b', kPage, 1);
    const FileDescriptor fd(::open(file(1).c_str(), O_RDWR | O_CLOEXEC));
    auto* p = static_cast<volatile char*>(::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd.get(), 0));
    if (::ftruncate(fd.get(), 0) != 0) return;
    (void)p[0];
  }
};

TEST_F(GuardedMappingDeathTest, EndsTheProcess) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer handles the signal";
#endif
  EXPECT_EXIT(read_unguarded(), testing::KilledBySignal(SIGBUS), "");
}

TEST_F(GuardedMappingDeathTest, GoesToTheHandlerOfBefore) {
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, [](int) { ::_exit(7); });
        read_unguarded();
      },
      testing::ExitedWithCode(7), "");
  EXPECT_EXIT(
      {
        struct sigaction action {};
        action.sa_sigaction = [](int, siginfo_t* info, void*) { ::_exit(info->si_addr ? 8 : 9); };
        action.sa_flags = SA_SIGINFO;
        ::sigaction(SIGBUS, &action, nullptr);
        read_unguarded();
      },
      testing::ExitedWithCode(8), "");
}

}  // namespace
}  // namespace qvl
