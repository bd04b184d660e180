// A saved cache comes back bit for bit, whatever part of its last block is filled; caches that share a beginning never
// notice each other.
#include "qvl/engine/native/kv_cache.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::engine::native {
namespace {

constexpr int64_t kLayers = 3, kHeads = 2, kHeadDim = 8;

std::byte* row(const NativeKvCache& cache, int64_t layer, bool value, int64_t head, int64_t position) {
  const kernels::KvView v = cache.layer(layer);
  const int64_t block = position / v.block_tokens;
  const int64_t at = ((2 * head + value) * v.block_tokens + position % v.block_tokens) * v.head_dim;
  return static_cast<std::byte*>(v.blocks[block]) + static_cast<size_t>(at) * dtype_size_bytes(v.dtype);
}

// Of an int8 cache: behind the codes of all heads.
std::byte* scale(const NativeKvCache& cache, int64_t layer, bool value, int64_t head, int64_t position) {
  const kernels::KvView v = cache.layer(layer);
  const int64_t block = position / v.block_tokens;
  const int64_t row = (2 * head + value) * v.block_tokens + position % v.block_tokens;
  return static_cast<std::byte*>(v.blocks[block]) + 2 * v.kv_heads * v.block_tokens * v.head_dim +
         row * static_cast<int64_t>(sizeof(float));
}

void for_each_row(int64_t length, const std::function<void(int64_t, bool, int64_t, int64_t)>& visit) {
  for (int64_t layer = 0; layer < kLayers; ++layer)
    for (bool value : {false, true})
      for (int64_t head = 0; head < kHeads; ++head)
        for (int64_t position = 0; position < length; ++position) visit(layer, value, head, position);
}

// A file in memory, whose name nobody else has.
struct SavedFile {
  explicit SavedFile(std::span<const std::byte> bytes) : fd(::memfd_create("saved", MFD_CLOEXEC)) {
    EXPECT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    const auto file = GuardedMapping::map(FileDescriptor(::dup(fd.get())));
    saved = {file, file->bytes()};
  }
  FileDescriptor fd;
  SavedCache saved;
};

std::vector<std::byte> contents(const NativeKvCache& cache, int64_t length) {
  std::vector<std::byte> out;
  cache.save(length, [&](std::span<const std::byte> piece) { out.insert(out.end(), piece.begin(), piece.end()); });
  return out;
}

TEST(NativeKvCacheSaved, ComesBackBitForBit) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kI8}) {
    const size_t row_bytes = kHeadDim * dtype_size_bytes(dtype);
    NativeKvCache full(nullptr, dtype, kLayers, kHeads, kHeadDim);
    full.reserve(700);
    full.set_length(700);
    std::mt19937 random(7);
    for_each_row(700, [&](int64_t l, bool v, int64_t h, int64_t p) {
      std::byte* at = row(full, l, v, h, p);
      for (size_t i = 0; i < row_bytes; ++i) at[i] = static_cast<std::byte>(random());
      for (size_t i = 0; dtype == DType::kI8 && i < 4; ++i) scale(full, l, v, h, p)[i] = static_cast<std::byte>(random());
    });
    for (int64_t length : {0, 1, 255, 256, 257, 512, 699, 700}) {
      SCOPED_TRACE(length);
      const std::vector<std::byte> saved = contents(full, length);
      ASSERT_EQ(saved.size(), full.saved_bytes(length));
      NativeKvCache other(nullptr, dtype, kLayers, kHeads, kHeadDim);
      EXPECT_EQ(other.saved_form(), full.saved_form());
      other.load(length, SavedFile(saved).saved);
      ASSERT_EQ(other.length(), length);
      for_each_row(length, [&](int64_t l, bool v, int64_t h, int64_t p) {
        ASSERT_EQ(std::memcmp(row(other, l, v, h, p), row(full, l, v, h, p), row_bytes), 0) << l << v << h << p;
        if (dtype == DType::kI8) {
          ASSERT_EQ(std::memcmp(scale(other, l, v, h, p), scale(full, l, v, h, p), sizeof(float)), 0) << l << v << h << p;
        }
      });
    }
  }
}

TEST(NativeKvCacheSaved, FormsDifferWhereBytesWould) {
  const NativeKvCache a(nullptr, DType::kBF16, 3, 2, 8);
  EXPECT_NE(a.saved_form(), NativeKvCache(nullptr, DType::kF32, 3, 2, 8).saved_form());
  EXPECT_NE(a.saved_form(), NativeKvCache(nullptr, DType::kI8, 3, 2, 8).saved_form());
  EXPECT_NE(a.saved_form(), NativeKvCache(nullptr, DType::kBF16, 4, 2, 8).saved_form());
  EXPECT_NE(a.saved_form(), NativeKvCache(nullptr, DType::kBF16, 3, 4, 8).saved_form());
  EXPECT_NE(a.saved_form(), NativeKvCache(nullptr, DType::kBF16, 3, 2, 16).saved_form());
}

TEST(NativeKvCacheSaved, WhatDoesNotFitIsRefused) {
  NativeKvCache cache(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim);
  const std::vector<std::byte> bytes(cache.saved_bytes(300));
  const SavedFile file(bytes);
  EXPECT_THROW(cache.load(299, file.saved), Error);
  EXPECT_THROW(cache.load(-1, file.saved), Error);
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.size_bytes(), 0U);
  cache.reserve(300);
  cache.set_length(300);
  EXPECT_THROW(cache.load(300, file.saved), Error);
  EXPECT_EQ(cache.length(), 300);
  EXPECT_THROW(cache.save(301, [](std::span<const std::byte>) {}), Error);
}

// ---- sharing

constexpr int64_t kBlock = NativeKvCache::kBlockTokens;

// Fills positions [from, to) with bytes that `seed` and the place decide, as a decoder would: reserve, write, set_length.
void append(NativeKvCache& cache, DType dtype, int64_t to, int seed) {
  const int64_t from = cache.length();
  cache.reserve(to);
  for_each_row(to, [&](int64_t l, bool v, int64_t h, int64_t p) {
    if (p < from) return;
    const int value = (seed * 131 + static_cast<int>(l * 7 + v * 3 + h * 5 + p)) & 0xff;
    std::memset(row(cache, l, v, h, p), value, kHeadDim * dtype_size_bytes(dtype));
    if (dtype == DType::kI8) std::memset(scale(cache, l, v, h, p), value, sizeof(float));
  });
  cache.set_length(to);
}

// What lies in a file is used there and never written to, whoever goes on from it in whatever way.
TEST(NativeKvCacheSaved, WhoGoesOnFromAFileLeavesItAsItIs) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kI8}) {
    NativeKvCache full(nullptr, dtype, kLayers, kHeads, kHeadDim);
    append(full, dtype, 700, 1);
    const std::vector<std::byte> bytes = contents(full, 700);
    const SavedFile file(bytes);
    for (int64_t cut : {int64_t{0}, int64_t{1}, kBlock - 1, kBlock, kBlock + 44, 2 * kBlock, int64_t{600}, int64_t{700}}) {
      SCOPED_TRACE(::testing::Message() << static_cast<int>(dtype) << " cut " << cut);
      NativeKvCache cache(nullptr, dtype, kLayers, kHeads, kHeadDim), other(nullptr, dtype, kLayers, kHeads, kHeadDim);
      cache.load(700, file.saved);
      const kernels::KvView layer = cache.layer(0);
      EXPECT_EQ(layer.blocks[0], file.saved.bytes.data());
      EXPECT_EQ(layer.blocks[1], file.saved.bytes.data() + cache.saved_bytes(kBlock));
      EXPECT_EQ(cache.size_bytes(), full.size_bytes());
      ASSERT_TRUE(other.share_prefix(cache, 690));
      cache.truncate(cut);
      append(cache, dtype, 740, 2);
      other.truncate(std::min<int64_t>(cut, 690));
      append(other, dtype, 730, 3);
      NativeKvCache fresh(nullptr, dtype, kLayers, kHeads, kHeadDim);
      append(fresh, dtype, 700, 1);
      fresh.truncate(cut);
      append(fresh, dtype, 740, 2);
      EXPECT_EQ(contents(cache, 740), contents(fresh, 740));
      EXPECT_TRUE(std::ranges::equal(file.saved.bytes, bytes));
      EXPECT_TRUE(cache.intact());
    }
  }
}

TEST(NativeKvCacheSaved, AFileThatChangesIsNoticed) {
  NativeKvCache full(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim);
  append(full, DType::kBF16, 700, 1);
  const std::vector<std::byte> bytes = contents(full, 700);
  const auto is_io = [](const std::function<void()>& act) {
    try {
      act();
    } catch (const Error& e) {
      return e.code() == ErrorCode::kIo;
    }
    return false;
  };
  for (const bool cut : {true, false}) {
    SCOPED_TRACE(cut);
    const SavedFile file(bytes);
    NativeKvCache cache(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim), fork(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim);
    cache.load(700, file.saved);
    ::usleep(20000);  // the clock of the file system
    if (cut) {
      ASSERT_EQ(::ftruncate(file.fd.get(), 0), 0);
    } else {
      ASSERT_EQ(::pwrite(file.fd.get(), "x", 1, 5000), 1);
    }
    EXPECT_FALSE(cache.intact());
    EXPECT_TRUE(is_io([&] { cache.check_intact(); }));
    EXPECT_TRUE(is_io([&] { contents(cache, 700); }));
    EXPECT_TRUE(is_io([&] { fork.share_prefix(cache, 300); }));  // copies a part of a block
    EXPECT_EQ(fork.length(), 0);
    EXPECT_TRUE(fork.intact());
    EXPECT_TRUE(is_io([&] { fork.load(700, file.saved); }));
    EXPECT_EQ(fork.length(), 0);
    EXPECT_EQ(fork.size_bytes(), 0U);
    // Whole blocks are shared, and with them what became of the file.
    fork.share_prefix(cache, 2 * kBlock);
    EXPECT_FALSE(fork.intact());
    cache.truncate(300);
    EXPECT_TRUE(is_io([&] { cache.reserve(301); }));  // copies the block first
    EXPECT_EQ(cache.length(), 300);
    cache.truncate(0);  // nothing of the file is left
    EXPECT_TRUE(cache.intact());
    append(cache, DType::kBF16, 700, 1);
    EXPECT_EQ(contents(cache, 700), bytes);
  }
}

TEST(NativeKvCacheShared, NeitherNoticesWhatTheOtherDoes) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kI8}) {
    for (int64_t length : {int64_t{0}, int64_t{1}, kBlock - 1, kBlock, kBlock + 1, 2 * kBlock, int64_t{700}}) {
      for (int64_t cut : {int64_t{0}, int64_t{1}, int64_t{100}, kBlock, kBlock + 44, length}) {
        if (cut > length) continue;
        SCOPED_TRACE(::testing::Message() << static_cast<int>(dtype) << " length " << length << " cut " << cut);
        NativeKvCache donor(nullptr, dtype, kLayers, kHeads, kHeadDim);
        append(donor, dtype, 700, 1);
        const std::vector<std::byte> before = contents(donor, 700);
        NativeKvCache fork(nullptr, dtype, kLayers, kHeads, kHeadDim), second(nullptr, dtype, kLayers, kHeads, kHeadDim);
        ASSERT_TRUE(fork.share_prefix(donor, length));
        ASSERT_TRUE(second.share_prefix(fork, length));
        EXPECT_EQ(fork.length(), length);
        EXPECT_EQ(contents(fork, length), contents(donor, length));
        // Both forks go another way from `cut` on, over the blocks that they share.
        fork.truncate(cut);
        append(fork, dtype, 740, 2);
        EXPECT_EQ(contents(donor, 700), before);
        EXPECT_EQ(contents(second, length), contents(donor, length));
        const std::vector<std::byte> forked = contents(fork, 740);
        EXPECT_EQ(contents(fork, cut), contents(donor, cut));
        // And so does the donor.
        donor.truncate(cut);
        append(donor, dtype, 750, 3);
        EXPECT_EQ(contents(fork, 740), forked);
        NativeKvCache fresh(nullptr, dtype, kLayers, kHeads, kHeadDim);
        append(fresh, dtype, 700, 1);
        EXPECT_EQ(contents(second, length), contents(fresh, length));
        fresh.truncate(cut);
        append(fresh, dtype, 750, 3);
        EXPECT_EQ(contents(donor, 750), contents(fresh, 750));
      }
    }
  }
}

TEST(NativeKvCacheShared, MemoryIsCountedOnce) {
  NativeKvCache donor(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim);
  append(donor, DType::kBF16, 3 * kBlock + 10, 1);
  const size_t block_bytes = donor.size_bytes() / 4;
  NativeKvCache fork(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim);
  fork.share_prefix(donor, 3 * kBlock + 5);
  EXPECT_EQ(donor.size_bytes() + fork.size_bytes(), 5 * block_bytes);  // the last ones are each its own
  EXPECT_EQ(donor.size_bytes(), fork.size_bytes());
  {
    NativeKvCache third(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim);
    third.share_prefix(fork, 2 * kBlock);
    const size_t all = donor.size_bytes() + fork.size_bytes() + third.size_bytes();
    EXPECT_LE(all, 5 * block_bytes);
    EXPECT_GE(all + 6, 5 * block_bytes);  // rounded down
  }
  donor.truncate(kBlock + 1);
  append(donor, DType::kBF16, kBlock + 2, 4);  // a copy of the second block
  EXPECT_EQ(donor.size_bytes(), block_bytes / 2 + block_bytes);
  EXPECT_EQ(fork.size_bytes(), block_bytes / 2 + 3 * block_bytes);
}

TEST(NativeKvCacheShared, WhatDoesNotFitIsRefused) {
  const int owner = 0, other = 0;
  NativeKvCache donor(&owner, DType::kBF16, kLayers, kHeads, kHeadDim);
  append(donor, DType::kBF16, 20, 1);
  NativeKvCache empty(&owner, DType::kBF16, kLayers, kHeads, kHeadDim), full(&owner, DType::kBF16, kLayers, kHeads, kHeadDim);
  NativeKvCache foreign(&other, DType::kBF16, kLayers, kHeads, kHeadDim);
  append(full, DType::kBF16, 2, 1);
  EXPECT_THROW(empty.share_prefix(donor, 21), Error);
  EXPECT_THROW(empty.share_prefix(donor, -1), Error);
  EXPECT_THROW(full.share_prefix(donor, 5), Error);
  EXPECT_THROW(foreign.share_prefix(donor, 5), Error);
  EXPECT_THROW(empty.share_prefix(empty, 0), Error);
  EXPECT_EQ(empty.length(), 0);
  EXPECT_EQ(empty.size_bytes(), 0U);
  EXPECT_EQ(full.length(), 2);
}

}  // namespace
}  // namespace qvl::engine::native
