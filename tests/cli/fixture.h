// What the command-line tests share: the files they ask about, and a folder of their own.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace qvl::cli {

inline const std::filesystem::path kSource = QVL_SOURCE_DIR;
inline const std::string kShapes = (kSource / "examples/shapes.png").string();
inline const std::string kFirst = (kSource / "examples/first.png").string();
inline const std::string kSmall = (kSource / "models/small").string();

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Empty at the start of every test, gone after it.
class FolderTest : public ::testing::Test {
 protected:
  explicit FolderTest(const std::string& name)
      : folder_(std::filesystem::temp_directory_path() / (name + "_" + std::to_string(getpid()))) {}
  void SetUp() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  const std::filesystem::path folder_;
};

}  // namespace qvl::cli
