// Entries that survive the process: round trips, every kind of damage, the bound, and processes that share a folder.
#include "qvl/base/cache_folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <random>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/file_stamp.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/sha256.h"

namespace qvl {
namespace {

namespace fs = std::filesystem;

std::string name_of(int i) {
  return sha256_hex(cat(i)) + ".thing";
}

std::vector<std::byte> payload_of(int i, size_t bytes) {
  std::mt19937 random(static_cast<unsigned>(i));
  std::vector<std::byte> out(bytes);
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  return out;
}

bool put(CacheFolder& folder, int i, size_t bytes) {
  const std::vector<std::byte> payload = payload_of(i, bytes);
  return folder.put(name_of(i), {{"number", i}}, bytes, [&](const CacheFolder::Sink& sink) {
    const size_t cut = bytes / 3;
    sink(std::span(payload).first(cut));
    sink(std::span(payload).subspan(cut));
  });
}

// Present with the right contents, absent, or wrong contents.
enum class State { kAbsent, kRight, kWrong };
State look(CacheFolder& folder, int i) {
  std::vector<std::byte> payload;
  Json description;
  const bool there =
      folder.get(name_of(i), [&](const Json& d, uint64_t payload_bytes, const CacheFolder::Source& read) {
        description = d;
        payload.resize(payload_bytes);
        read(std::span(payload).first(payload.size() / 2));
        read(std::span(payload).subspan(payload.size() / 2));
        return true;
      });
  if (!there) return State::kAbsent;
  return payload == payload_of(i, payload.size()) && description["number"] == i ? State::kRight : State::kWrong;
}

// The same of what is mapped.
State look_where_it_lies(CacheFolder& folder, int i) {
  Json description;
  uint64_t bytes = 0;
  const auto mapped = folder.map(name_of(i), [&](const Json& d, uint64_t payload_bytes) {
    description = d;
    bytes = payload_bytes;
    return true;
  });
  if (!mapped) return State::kAbsent;
  const bool right = std::ranges::equal(mapped->payload, payload_of(i, bytes)) && description["number"] == i &&
                     reinterpret_cast<uintptr_t>(mapped->payload.data()) % CacheFolder::kPayloadAlignment == 0;
  return right && mapped->file->intact() ? State::kRight : State::kWrong;
}

class CacheFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::path(testing::TempDir()) / "qvl-cache-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    base_ = pattern;
    folder_ = base_ / "a" / "b";
    set_log_sink([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::kWarning) warnings_.emplace_back(text);
    });
  }
  void TearDown() override {
    set_log_sink({});
    fs::remove_all(base_);
  }
  CacheFolder folder(uint64_t max_bytes = 1 << 20) const { return CacheFolder(folder_, max_bytes); }
  fs::path file(int i) const { return folder_ / name_of(i); }
  std::string bytes(int i) const { return read_file(file(i), 1 << 24); }
  void write(int i, std::string_view contents) const {
    std::ofstream(file(i), std::ios::binary | std::ios::trunc) << contents;
  }
  uint64_t total_bytes() const {
    uint64_t total = 0;
    std::error_code gone;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      const uint64_t size = entry.file_size(gone);
      if (!gone) total += size;
    }
    return total;
  }

  fs::path base_;
  fs::path folder_;
  std::vector<std::string> warnings_;
};

TEST_F(CacheFolderTest, ThereAndBack) {
  CacheFolder a = folder();
  EXPECT_EQ(look(a, 1), State::kAbsent);
  EXPECT_EQ(look_where_it_lies(a, 1), State::kAbsent);
  EXPECT_FALSE(a.describe(name_of(1)));
  EXPECT_FALSE(fs::exists(folder_));  // nothing is made by asking
  for (size_t bytes : {0, 1, 1000, 300000}) {
    SCOPED_TRACE(bytes);
    const int i = static_cast<int>(bytes);
    EXPECT_TRUE(put(a, i, bytes));
    CacheFolder b = folder();
    EXPECT_EQ(look(b, i), State::kRight);
    EXPECT_EQ(look_where_it_lies(b, i), State::kRight);
    EXPECT_EQ(b.describe(name_of(i))->at("number"), i);
  }
  EXPECT_TRUE(put(a, 1, 10));  // in the place of the old one
  EXPECT_EQ(look(a, 1), State::kRight);
  EXPECT_TRUE(warnings_.empty()) << warnings_.front();
}

TEST_F(CacheFolderTest, NobodyElseCanRead) {
  const mode_t mask = ::umask(0);
  CacheFolder a = folder();
  put(a, 1, 10);
  ::umask(mask);
  const auto mode = [](const fs::path& path) {
    struct stat status {};
    ::stat(path.c_str(), &status);
    return status.st_mode & 07777;
  };
  EXPECT_EQ(mode(file(1)), 0600U);
  EXPECT_EQ(mode(folder_), 0700U);
  EXPECT_EQ(mode(folder_.parent_path()), 0700U);
}

TEST_F(CacheFolderTest, DamageAnywhereIsAnAbsentEntry) {
  CacheFolder a = folder();
  put(a, 1, 150);
  const std::string sound = bytes(1);
  for (size_t i = 0; i < sound.size(); ++i) {
    SCOPED_TRACE(i);
    std::string damaged = sound;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    for (const auto looking : {look, look_where_it_lies}) {
      write(1, damaged);
      warnings_.clear();
      EXPECT_EQ(looking(a, 1), State::kAbsent);
      EXPECT_FALSE(fs::exists(file(1)));
      EXPECT_EQ(warnings_.size(), 1U);
    }
  }
  write(1, sound);
  EXPECT_EQ(look(a, 1), State::kRight);
}

TEST_F(CacheFolderTest, CutShortOrTooLongIsAnAbsentEntry) {
  CacheFolder a = folder();
  put(a, 1, 150);
  const std::string sound = bytes(1);
  for (size_t n = 0; n < sound.size(); ++n) {
    for (const auto looking : {look, look_where_it_lies}) {
      write(1, sound.substr(0, n));
      EXPECT_EQ(looking(a, 1), State::kAbsent) << n;
      EXPECT_FALSE(fs::exists(file(1))) << n;
    }
  }
  write(1, sound + '\0');
  EXPECT_FALSE(a.describe(name_of(1)));
  EXPECT_FALSE(fs::exists(file(1)));
}

TEST_F(CacheFolderTest, ForeignContentsAreAnAbsentEntry) {
  CacheFolder a = folder();
  put(a, 1, 150);
  fs::copy_file(file(1), file(2));  // another entry under this name
  EXPECT_EQ(look(a, 2), State::kAbsent);
  EXPECT_FALSE(fs::exists(file(2)));
  write(3, "a text of somebody else, long enough to hold a header of the usual size");
  EXPECT_EQ(look(a, 3), State::kAbsent);
  EXPECT_FALSE(fs::exists(file(3)));
  // A link is not followed and a folder not opened; what they name is not ours to remove.
  fs::create_symlink(file(1), file(4));
  EXPECT_EQ(look(a, 4), State::kAbsent);
  fs::create_directory(file(5));
  EXPECT_EQ(look(a, 5), State::kAbsent);
  EXPECT_TRUE(fs::is_directory(file(5)));
  // What the taker does not want.
  EXPECT_FALSE(a.get(name_of(1), [](const Json&, uint64_t, const CacheFolder::Source&) { return false; }));
  EXPECT_FALSE(fs::exists(file(1)));
  put(a, 1, 150);
  EXPECT_FALSE(a.map(name_of(1), [](const Json&, uint64_t) { return false; }));
  EXPECT_FALSE(fs::exists(file(1)));
  put(a, 1, 150);
  EXPECT_FALSE(a.map(name_of(1), [](const Json& d, uint64_t) { return d.at("absent").get<bool>(); }));
  EXPECT_FALSE(fs::exists(file(1)));
  put(a, 1, 150);
  EXPECT_FALSE(a.get(name_of(1), [](const Json& d, uint64_t, const CacheFolder::Source&) {
    return d.at("absent").get<bool>();  // throws
  }));
  EXPECT_FALSE(fs::exists(file(1)));
  put(a, 1, 150);
  // Taken without being read to the end: nobody knows whether it is right.
  EXPECT_FALSE(a.get(name_of(1), [](const Json&, uint64_t, const CacheFolder::Source&) { return true; }));
}

TEST_F(CacheFolderTest, TheLeastRecentlyUsedGoFirstAndTheBoundHolds) {
  CacheFolder a = folder(10000);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(put(a, i, 3000));
  EXPECT_EQ(look(a, 0), State::kRight);  // now 1 is the oldest
  EXPECT_TRUE(a.describe(name_of(1)));   // and now 2
  EXPECT_TRUE(put(a, 3, 3000));
  EXPECT_EQ(look(a, 2), State::kAbsent);
  for (int i : {0, 1, 3}) EXPECT_EQ(look(a, i), State::kRight) << i;
  EXPECT_LE(total_bytes(), 10000U);
  EXPECT_FALSE(put(a, 4, 10000));  // alone above the bound: the others stay
  for (int i : {0, 1, 3}) EXPECT_EQ(look(a, i), State::kRight) << i;
  CacheFolder smaller = folder(4000);
  EXPECT_TRUE(put(smaller, 5, 3000));
  EXPECT_LE(total_bytes(), 4000U);
  EXPECT_TRUE(warnings_.empty()) << warnings_.front();
}

TEST_F(CacheFolderTest, WhatIsMappedOutlivesItsEntry) {
  CacheFolder a = folder(10000);
  const auto any = [](const Json&, uint64_t) { return true; };
  EXPECT_TRUE(put(a, 0, 3000));
  EXPECT_TRUE(put(a, 1, 3000));
  const auto mapped = a.map(name_of(0), any);  // a use: now 1 is the oldest
  ASSERT_TRUE(mapped);
  EXPECT_TRUE(put(a, 2, 3000));
  EXPECT_TRUE(put(a, 3, 3000));
  EXPECT_EQ(look(a, 1), State::kAbsent);
  // Uses by others and a new entry of the name change nothing for whoever has it mapped; nor does its removal.
  CacheFolder b = folder(10000);
  EXPECT_EQ(look(b, 0), State::kRight);
  EXPECT_TRUE(b.describe(name_of(0)));
  EXPECT_TRUE(mapped->file->intact());
  EXPECT_TRUE(put(b, 0, 2000));
  fs::remove_all(folder_);
  EXPECT_TRUE(mapped->file->intact());
  EXPECT_TRUE(std::ranges::equal(mapped->payload, payload_of(0, 3000)));
  // Only who writes into the file itself does.
  EXPECT_TRUE(put(b, 4, 9000));
  const auto cut = b.map(name_of(4), any);
  ASSERT_TRUE(cut);
  fs::resize_file(file(4), 100);
  EXPECT_FALSE(std::ranges::equal(cut->payload, payload_of(4, 9000)));
  EXPECT_FALSE(cut->file->intact());
  EXPECT_EQ(look_where_it_lies(b, 4), State::kAbsent);
}

TEST_F(CacheFolderTest, FilesOfOthersAreNeitherCountedNorRemoved) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / "holiday.jpg") << std::string(5000, 'x');
  CacheFolder a = folder(4000);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(put(a, i, 3000));
  EXPECT_TRUE(fs::exists(folder_ / "holiday.jpg"));
  EXPECT_EQ(look(a, 3), State::kRight);
}

TEST_F(CacheFolderTest, WhatAKilledProcessWasWritingIsRemoved) {
  CacheFolder a = folder(4000);
  put(a, 1, 10);
  const fs::path abandoned = file(2).string() + ".partial-abcdef";
  std::ofstream(abandoned) << std::string(3900, 'x');
  EXPECT_TRUE(put(a, 3, 3000));
  EXPECT_FALSE(fs::exists(abandoned));
  // One that is being written counts and stays.
  std::ofstream(abandoned) << std::string(3900, 'x');
  const int fd = ::open(abandoned.c_str(), O_RDONLY);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  EXPECT_FALSE(put(a, 4, 3000));
  EXPECT_TRUE(fs::exists(abandoned));
  ::close(fd);
  EXPECT_TRUE(warnings_.empty()) << warnings_.front();
}

TEST_F(CacheFolderTest, AWriterThatFailsLeavesNothing) {
  CacheFolder a = folder();
  const auto files = [this] {
    size_t n = 0;
    for (const auto& entry : fs::directory_iterator(folder_)) n += entry.path().filename() != "lock";
    return n;
  };
  const std::vector<std::byte> some(10);
  EXPECT_THROW(a.put(name_of(1), {}, 20, [&](const CacheFolder::Sink& sink) { sink(some); }), Error);
  EXPECT_THROW(a.put(name_of(1), {}, 5, [&](const CacheFolder::Sink& sink) { sink(some); }), Error);
  EXPECT_THROW(a.put(name_of(1), {}, 20, [&](const CacheFolder::Sink&) { throw std::runtime_error("no"); }),
               std::runtime_error);
  EXPECT_EQ(files(), 0U);
  EXPECT_THROW(a.describe("../../etc/passwd"), Error);
  EXPECT_THROW(put(a, 1, 10) && a.describe(name_of(1).substr(1)), Error);
}

TEST_F(CacheFolderTest, AFolderThatCannotBeWrittenWarnsOnceAndIsRead) {
  CacheFolder writer = folder();
  put(writer, 1, 100);
  if (::geteuid() == 0) {
    // Permissions do not stop root; a file in the place of the folder does.
    std::ofstream(base_ / "file") << "x";
    CacheFolder a(base_ / "file" / "below", 1 << 20);
    EXPECT_FALSE(put(a, 2, 100));
    EXPECT_FALSE(put(a, 3, 100));
    EXPECT_EQ(look(a, 2), State::kAbsent);
    EXPECT_EQ(warnings_.size(), 1U);
    return;
  }
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  CacheFolder a = folder();
  EXPECT_EQ(look(a, 1), State::kRight);
  EXPECT_FALSE(put(a, 2, 100));
  EXPECT_FALSE(put(a, 3, 100));
  EXPECT_EQ(warnings_.size(), 1U);
  fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(CacheFolderTest, AFullDiskWarnsOnceAndLeavesNothing) {
  CacheFolder before = folder();
  put(before, 1, 100);
  // A file-size limit stands for the disk: the same calls fail.
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{5000, 5000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    CacheFolder a = folder();
    const bool well = look(a, 1) == State::kRight && !put(a, 2, 20000) && !put(a, 3, 100) && warnings_.size() == 1 &&
                      look(a, 1) == State::kRight;
    ::_exit(well ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  for (const auto& entry : fs::directory_iterator(folder_))
    EXPECT_EQ(entry.path().string().find("partial"), std::string::npos) << entry.path();
}

// Four processes write, read and evict, one of them killed in the middle over and over: no reader ever sees a wrong
// entry, and at no time is there more than allowed.
TEST_F(CacheFolderTest, ProcessesShareAFolder) {
  constexpr uint64_t kMaxBytes = 200000;
  constexpr int kEntries = 24;
  const auto work = [&](unsigned seed, int rounds) {
    CacheFolder a = folder(kMaxBytes);
    std::mt19937 random(seed);
    int hits = 0;
    for (int r = 0; r < rounds; ++r) {
      const int i = static_cast<int>(random() % kEntries);
      const State state = r % 2 ? look_where_it_lies(a, i) : look(a, i);
      if (state == State::kWrong) ::_exit(2);
      hits += state == State::kRight;
      if (state == State::kAbsent) put(a, i, 10000 + static_cast<size_t>(i) * 700);
    }
    ::_exit(!warnings_.empty() ? 3 : hits > 0 ? 0 : 4);
  };
  fs::create_directories(folder_);
  std::vector<pid_t> children;
  for (unsigned c = 0; c < 3; ++c) {
    const pid_t child = ::fork();
    if (child == 0) work(c, 120);
    children.push_back(child);
  }
  for (int k = 0; k < 8; ++k) {
    const pid_t victim = ::fork();
    if (victim == 0) work(100 + static_cast<unsigned>(k), 1000000);
    ::usleep(15000);
    ::kill(victim, SIGKILL);
    ::waitpid(victim, nullptr, 0);
    EXPECT_LE(total_bytes(), kMaxBytes);
  }
  for (pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  CacheFolder last = folder(kMaxBytes);
  EXPECT_TRUE(put(last, 1000, 10));
  EXPECT_LE(total_bytes(), kMaxBytes);
  for (const auto& entry : fs::directory_iterator(folder_))
    EXPECT_EQ(entry.path().string().find("partial"), std::string::npos) << entry.path();
}

TEST(FileStamp, TellsEveryChange) {
  const fs::path path = fs::path(testing::TempDir()) / cat("qvl-stamp-", ::getpid());
  std::ofstream(path) << "0123456789";
  const std::string first = MappedFile::open(path).stamp();
  EXPECT_EQ(MappedFile::open(path).stamp(), first);
  const auto time = fs::last_write_time(path);
  ::usleep(20000);
  std::ofstream(path) << "9876543210";
  fs::last_write_time(path, time);  // the size and the time of before
  EXPECT_NE(MappedFile::open(path).stamp(), first);
  fs::remove(path);
}

TEST(FileStamp, TheProgramHasOneStamp) {
  EXPECT_EQ(program_stamp().size(), 64U);
  const std::string before = program_stamp();
  // Nothing about the file matters but what is in it: another name changes its inode's time.
  const fs::path program = fs::read_symlink("/proc/self/exe");
  const fs::path link = program.string() + ".link";
  fs::remove(link);
  fs::create_hard_link(program, link);
  fs::remove(link);
  EXPECT_EQ(program_stamp(), before);
}

}  // namespace
}  // namespace qvl
