// A saved cache comes back bit for bit, whatever part of its last block is filled.
#include "qvl/engine/native/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

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

}  // namespace
}  // namespace qvl::engine::native
