#include "qvl/base/partial_folder.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <string>

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
