#include "qvl/export/data_writer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/sha256.h"

namespace qvl::exporting {
namespace {

class DataWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / ("qvl-data-writer-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

// Pieces that end before, at and behind the ends of the blocks in which the file is written, with gaps within a block and across.
TEST_F(DataWriterTest, FileHoldsPiecesAtTheirPlacesAndZerosBetween) {
  constexpr uint64_t kBlock = uint64_t{2} << 20;
  const struct {
    uint64_t offset;
    size_t bytes;
  } pieces[] = {{0, 1},
                {64, 4096},
                {8192, kBlock - 8192},            // to the end of a block
                {kBlock, kBlock},                 // a whole one
                {2 * kBlock + 64, 3 * kBlock},    // several, none of whole
                {6 * kBlock + 100, 5},            // behind a gap of most of a block
                {6 * kBlock + 105, kBlock + 1}};
  std::mt19937 rng(1);
  std::string want;
  package::FileEntry entry;
  {
    DataWriter writer(folder_, "weights.data");
    for (const auto& [offset, bytes] : pieces) {
      std::byte* to = writer.buffer(bytes);
      for (size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::byte>(1 + rng() % 255);
      want.resize(offset, '\0');
      want.append(reinterpret_cast<const char*>(to), bytes);
      writer.write(offset, bytes);
    }
    EXPECT_FALSE(std::filesystem::exists(folder_ / "weights.data"));
    entry = writer.finish();
  }
  EXPECT_EQ(entry.file, "weights.data");
  EXPECT_EQ(entry.bytes, want.size());
  EXPECT_EQ(entry.sha256, sha256_hex(want));
  EXPECT_TRUE(read_file(folder_ / "weights.data", want.size()) == want);
}

TEST_F(DataWriterTest, RefusesPiecesBeforeTheEndAndLeavesNothingUnfinished) {
  {
    DataWriter writer(folder_, "weights.data");
    std::memset(writer.buffer(128), 1, 128);
    writer.write(0, 128);
    writer.buffer(64);
    EXPECT_THROW(writer.write(127, 64), Error);
    EXPECT_NO_THROW(writer.write(128, 64));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

}  // namespace
}  // namespace qvl::exporting
