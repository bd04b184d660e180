#include "qvl/engine/native/arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace qvl::engine::native {
namespace {

std::byte* begin_of(const kernels::Matrix& m) {
  return static_cast<std::byte*>(m.data);
}
std::byte* end_of(const kernels::Matrix& m) {
  return begin_of(m) + m.rows * m.cols * static_cast<int64_t>(dtype_size_bytes(m.dtype));
}

TEST(ArenaTest, PlacesMatricesOneBehindTheOtherOnCacheLines) {
  Arena arena(DType::kBF16);
  const Arena::Slot a = arena.place(3, 5), b = arena.place(2, 7), c = arena.place(1, 1);
  arena.allocate();
  const std::vector<kernels::Matrix> all = {arena.matrix(a), arena.matrix(b), arena.matrix(c)};
  for (const kernels::Matrix& m : all) EXPECT_EQ(reinterpret_cast<uintptr_t>(m.data) % 64, 0u);
  EXPECT_LE(end_of(all[0]), begin_of(all[1]));
  EXPECT_LE(end_of(all[1]), begin_of(all[2]));
  EXPECT_EQ(all[1].rows, 2);
  EXPECT_EQ(all[1].cols, 7);
  EXPECT_EQ(all[1].stride, 7);
  EXPECT_EQ(arena.size_bytes(), 3u * 64);
}

TEST(ArenaTest, MatricesOfOtherTimesShareMemoryAndTheLongestDecides) {
  Arena arena(DType::kF32);
  const Arena::Slot stays = arena.place(4, 16);
  const Arena::Slot early = arena.place(4, 16), early2 = arena.place(4, 16);
  arena.reuse_from(early);
  const Arena::Slot late = arena.place(16, 16);
  arena.reuse_from(early);
  const Arena::Slot small = arena.place(1, 16);
  arena.allocate();
  EXPECT_EQ(arena.size_bytes(), size_t{4} * 16 * 4 + 16 * 16 * 4);
  EXPECT_EQ(arena.matrix(early).data, arena.matrix(late).data);
  EXPECT_EQ(arena.matrix(early).data, arena.matrix(small).data);
  EXPECT_LT(begin_of(arena.matrix(early2)), end_of(arena.matrix(late)));
  EXPECT_LE(end_of(arena.matrix(stays)), begin_of(arena.matrix(late)));
}

}  // namespace
}  // namespace qvl::engine::native
