#include "qvl/base/partial_folder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "qvl/base/error.h"

namespace qvl {
namespace {

namespace fs = std::filesystem;

class PartialFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    base_ =
        fs::path(::testing::TempDir()) /
        (std::string("partial_folder_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(base_);
    fs::create_directories(base_);
  }
  void TearDown() override { fs::remove_all(base_); }
  void put(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }
  std::string get(const fs::path& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  size_t entries() {
    size_t n = 0;
    for ([[maybe_unused]] const auto& e : fs::directory_iterator(base_)) ++n;
    return n;
  }
  fs::path base_;
};

ErrorCode code_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e.code();
  }
  ADD_FAILURE() << "nothing thrown";
  return ErrorCode::kCancelled;
}

TEST_F(PartialFolderTest, NothingIsThereBeforePublish) {
  {
    PartialFolder folder(base_ / "out/");
    put(folder.path() / "a", "new");
    EXPECT_FALSE(fs::exists(base_ / "out"));
    folder.publish();
    EXPECT_EQ(get(base_ / "out/a"), "new");
  }
  EXPECT_EQ(get(base_ / "out/a"), "new");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(PartialFolderTest, AbandonedOneLeavesNothingAndTheOldUntouched) {
  fs::create_directory(base_ / "out");
  put(base_ / "out/a", "old");
  {
    PartialFolder folder(base_ / "out", ExistingFolder::kReplace);
    put(folder.path() / "a", "new");
  }
  EXPECT_EQ(get(base_ / "out/a"), "old");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(PartialFolderTest, ReplaceSwapsAndRemovesTheOld) {
  fs::create_directory(base_ / "out");
  put(base_ / "out/a", "old");
  put(base_ / "out/b", "old");
  PartialFolder folder(base_ / "out", ExistingFolder::kReplace);
  put(folder.path() / "a", "new");
  folder.publish();
  EXPECT_EQ(get(base_ / "out/a"), "new");
  EXPECT_FALSE(fs::exists(base_ / "out/b"));
  EXPECT_EQ(entries(), 1u);
}

// What a process leaves behind that is killed before publish().
fs::path killed_in_the_middle(const fs::path& target, size_t files) {
  int name[2];
  EXPECT_EQ(pipe(name), 0);
  const pid_t child = fork();
  if (child == 0) {
    PartialFolder folder(target, ExistingFolder::kReplace);
    for (size_t i = 0; i < files; ++i) std::ofstream(folder.path() / std::to_string(i)) << "half";
    const std::string path = folder.path().string();
    if (write(name[1], path.data(), path.size()) < 0) _exit(1);
    raise(SIGKILL);
  }
  close(name[1]);
  char path[4096];
  const ssize_t n = read(name[0], path, sizeof(path));
  close(name[0]);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  return {path, path + std::max<ssize_t>(n, 0)};
}

TEST_F(PartialFolderTest, LeftoversOfTheKilledAreRemovedByTheNext) {
  const fs::path one = killed_in_the_middle(base_ / "out", 3),
                 other = killed_in_the_middle(base_ / "out2", 1);
  ASSERT_TRUE(fs::exists(one));
  fs::create_directory(base_ / "out.partial-backup");  // not ours: six letters, no marker
  put(base_ / "out.partial-backup/a", "mine");
  fs::create_directory(base_ / "out.partial-a1B2c3");  // killed before it was marked
  PartialFolder folder(base_ / "out");
  EXPECT_FALSE(fs::exists(one));
  EXPECT_TRUE(fs::exists(other)) << "another target's";
  EXPECT_FALSE(fs::exists(base_ / "out.partial-a1B2c3"));
  EXPECT_EQ(get(base_ / "out.partial-backup/a"), "mine");
  folder.publish();
  std::vector<std::string> inside;
  for (const auto& e : fs::directory_iterator(base_ / "out")) inside.push_back(e.path().filename());
  EXPECT_TRUE(inside.empty()) << inside.front();
}

TEST_F(PartialFolderTest, FoldersOfTheLivingAreLeftAlone) {
  PartialFolder first(base_ / "out");
  put(first.path() / "a", "first");
  PartialFolder second(base_ / "out");
  ASSERT_NE(first.path(), second.path());
  EXPECT_EQ(get(first.path() / "a"), "first");
  first.publish();
  EXPECT_EQ(code_of([&] { second.publish(); }), ErrorCode::kIo);
  EXPECT_EQ(get(base_ / "out/a"), "first");
}

TEST_F(PartialFolderTest, RefusesWhatCannotBeMeant) {
  fs::create_directory(base_ / "out");
  put(base_ / "file", "x");
  EXPECT_EQ(code_of([&] { PartialFolder f(base_ / "out"); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { PartialFolder f(base_ / "file", ExistingFolder::kReplace); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { PartialFolder f(""); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { PartialFolder f(base_ / "no/such/parent"); }), ErrorCode::kNotFound);
}

TEST_F(PartialFolderTest, NeverOverSomethingThatAppearedMeanwhile) {
  PartialFolder folder(base_ / "out");
  fs::create_directory(base_ / "out");
  put(base_ / "out/a", "theirs");
  EXPECT_EQ(code_of([&] { folder.publish(); }), ErrorCode::kIo);
  EXPECT_EQ(get(base_ / "out/a"), "theirs");
}

}  // namespace
}  // namespace qvl
