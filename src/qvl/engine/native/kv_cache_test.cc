// A saved cache comes back bit for bit, whatever part of its last block is filled; caches that share a beginning never
// notice each other.
#include "qvl/engine/native/kv_cache.h"

#include <gtest/gtest.h>

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
  auto* base = static_cast<std::byte*>(value ? v.value_blocks[block] : v.key_blocks[block]);
  return base + static_cast<size_t>((head * v.block_tokens + position % v.block_tokens) * v.head_dim) *
                    dtype_size_bytes(v.dtype);
}

// Of an int8 cache: behind the codes of all heads.
std::byte* scale(const NativeKvCache& cache, int64_t layer, bool value, int64_t head, int64_t position) {
  const kernels::KvView v = cache.layer(layer);
  const int64_t block = position / v.block_tokens;
  auto* base = static_cast<std::byte*>(value ? v.value_blocks[block] : v.key_blocks[block]);
  return base + v.kv_heads * v.block_tokens * v.head_dim +
         (head * v.block_tokens + position % v.block_tokens) * static_cast<int64_t>(sizeof(float));
}

void for_each_row(int64_t length, const std::function<void(int64_t, bool, int64_t, int64_t)>& visit) {
  for (int64_t layer = 0; layer < kLayers; ++layer)
    for (bool value : {false, true})
      for (int64_t head = 0; head < kHeads; ++head)
        for (int64_t position = 0; position < length; ++position) visit(layer, value, head, position);
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
      std::vector<std::byte> saved;
      full.save(length, [&](std::span<const std::byte> piece) { saved.insert(saved.end(), piece.begin(), piece.end()); });
      ASSERT_EQ(saved.size(), full.saved_bytes(length));
      NativeKvCache other(nullptr, dtype, kLayers, kHeads, kHeadDim);
      EXPECT_EQ(other.saved_form(), full.saved_form());
      size_t next = 0;
      other.load(length, [&](std::span<std::byte> piece) {
        std::memcpy(piece.data(), saved.data() + next, piece.size());
        next += piece.size();
      });
      EXPECT_EQ(next, saved.size());
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

TEST(NativeKvCacheSaved, ASourceThatFailsLeavesAnEmptyCache) {
  NativeKvCache cache(nullptr, DType::kBF16, kLayers, kHeads, kHeadDim);
  int pieces = 0;
  EXPECT_THROW(cache.load(300,
                          [&](std::span<std::byte>) {
                            if (++pieces == 4) fail(ErrorCode::kFormat, "test", "torn");
                          }),
               Error);
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.size_bytes(), 0U);
  cache.reserve(10);
  cache.set_length(10);
  EXPECT_THROW(cache.load(5, [](std::span<std::byte>) {}), Error);
  EXPECT_EQ(cache.length(), 10);
  EXPECT_THROW(cache.save(11, [](std::span<const std::byte>) {}), Error);
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

std::vector<std::byte> contents(const NativeKvCache& cache, int64_t length) {
  std::vector<std::byte> out;
  cache.save(length, [&](std::span<const std::byte> piece) { out.insert(out.end(), piece.begin(), piece.end()); });
  return out;
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
