#include "qvl/engine/native/matrices.h"

#include <gtest/gtest.h>

#include <numeric>

namespace qvl::engine::native {
namespace {

TEST(MatricesTest, RowsAndColumnsOfAMatrix) {
  Tensor tensor(DType::kF32, {3, 4});
  std::iota(tensor.as<float>().begin(), tensor.as<float>().end(), 0.0f);
  const kernels::Matrix m = view(tensor);
  EXPECT_EQ(*static_cast<const float*>(rows_of(m, 2, 1).data), 8);
  EXPECT_EQ(rows_of(m, 1, 2).rows, 2);
  const kernels::Matrix right = columns_of(m, 2, 2);
  EXPECT_EQ(static_cast<const float*>(rows_of(right, 1, 1).data)[1], 7);
  EXPECT_EQ(right.cols, 2);
  EXPECT_EQ(right.stride, 4);
  const Tensor copy = copy_of(rows_of(m, 1, 1), DType::kBF16);
  EXPECT_EQ(to_float(copy.as<BFloat16>()[3]), 7);
}

}  // namespace
}  // namespace qvl::engine::native
