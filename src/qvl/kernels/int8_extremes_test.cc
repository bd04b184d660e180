// Integer weights and activations at their largest magnitudes and of one sign: where products of bytes are added in 16
// bits somewhere, this is where they would overflow (int8_kernels.h).
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

using quant::Format;

struct Extreme {
  Format format;
  std::byte codes, zeros;
  int value;  // of every weight
};

class Int8Extremes : public testing::TestWithParam<std::string_view> {};

TEST_P(Int8Extremes, LargestProductsOfBytes) {
  ThreadPool pool(1);
  const Context ctx{&pool, &table_by_name(GetParam())};
  constexpr int64_t kOut = 37, kRows = 9;
  std::vector<Extreme> extremes;
  for (const int64_t block : {16, 32, 128}) {
    const Format four = Format::blocks(4, block, true, DType::kF32), eight = Format::blocks(8, block, false, DType::kF32);
    extremes.push_back({four, std::byte{0x00}, std::byte{0xff}, -15});
    extremes.push_back({four, std::byte{0xff}, std::byte{0x00}, 15});
    extremes.push_back({eight, std::byte{0x00}, std::byte{}, -128});
    extremes.push_back({eight, std::byte{0xff}, std::byte{}, 127});
  }
  for (const Extreme& e : extremes) {
    for (const int64_t k : {16, 128, 512}) {
      const std::vector<std::byte> data(e.format.data_bytes(kOut, k), e.codes);
      const std::vector<std::byte> zeros(e.format.zero_point_bytes(kOut, k), e.zeros);
      const std::vector<float> scales(static_cast<size_t>(kOut * e.format.block_count(k)), 1.0f);
      Weight w;
      w.data = data.data();
      w.out = kOut;
      w.in = k;
      w.format = e.format;
      w.scales = reinterpret_cast<const std::byte*>(scales.data());
      w.zero_points = e.format.zero_points ? zeros.data() : nullptr;
      for (const float x : {127.0f, -127.0f}) {  // the scale of such a row is 1
        const std::vector<float> rows(static_cast<size_t>(kRows * k), x);
        for (const LinearPath path : {LinearPath::kGemm, LinearPath::kGemv}) {
          std::vector<float> y(static_cast<size_t>(kRows * kOut));
          linear(ctx, path, {rows.data(), DType::kF32, kRows, k, k}, w, Activation::kNone, {},
                 {y.data(), DType::kF32, kRows, kOut, kOut});
          for (const float v : y) {
            ASSERT_EQ(v, x * static_cast<float>(e.value * k))
                << e.format.name() << " value " << e.value << " k " << k
                << (path == LinearPath::kGemm ? " gemm" : " gemv");
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, Int8Extremes, testing::ValuesIn(runnable_tables()),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace qvl::kernels
