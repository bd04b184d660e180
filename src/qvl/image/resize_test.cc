#include "qvl/image/resize.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "qvl/base/json.h"
#include "qvl/base/thread_pool.h"
#include "qvl/image/test_util.h"

namespace qvl::image {
namespace {

std::string short_hash(const std::vector<uint8_t>& bytes) {
  return sha256_of(std::span<const uint8_t>(bytes)).substr(0, 16);
}

TEST(TestUtil, Sha256KnownAnswers) {
  const auto hash = [](std::string_view text) { return sha256(std::as_bytes(std::span(text))); };
  EXPECT_EQ(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash(std::string(1000, 'a')), "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3");
}

class ResizeIsaTest : public testing::TestWithParam<ResizeIsa> {
 protected:
  void SetUp() override {
    const auto available = available_resize_isas();
    if (std::find(available.begin(), available.end(), GetParam()) == available.end()) {
      GTEST_SKIP() << "this processor cannot run " << resize_isa_name(GetParam());
    }
  }
};

// Byte equality with torchvision over 299 random and chosen sizes.
TEST_P(ResizeIsaTest, EqualsTheReferenceEverywhere) {
  const Json wide = parse_json_file(fixture("golden/preprocess/wide.json"));
  ASSERT_EQ(wide["resize"].size(), 299u);
  for (const Json& c : wide["resize"]) {
    const RgbImage image = generated_image(c[0], c[1], c[4], c[5]);
    const std::vector<uint8_t> out =
        resize_bicubic_u8(image.rgb, image.height, image.width, c[2], c[3], nullptr, GetParam());
    ASSERT_EQ(short_hash(out), c[6].get<std::string>()) << c.dump();
  }
}

// Sizes around every vector width and tile edge, against the plain loop.
TEST_P(ResizeIsaTest, EqualsScalarAtEveryTail) {
  for (const int64_t w : {1, 2, 5, 10, 11, 21, 22, 43, 64, 65, 127, 128, 129, 300}) {
    for (const int64_t h : {1, 3, 15, 16, 17, 63, 64, 65, 130}) {
      const RgbImage image =
          generated_image(h, w, static_cast<int>((h + w) % 3), static_cast<uint64_t>(h * 1000 + w));
      for (const auto& [out_h, out_w] :
           {std::pair<int64_t, int64_t>{32, 32}, {h, 7}, {7, w}, {2 * h, w + 1}, {h + 70, 45}}) {
        ASSERT_EQ(resize_bicubic_u8(image.rgb, h, w, out_h, out_w, nullptr, GetParam()),
                  resize_bicubic_u8(image.rgb, h, w, out_h, out_w, nullptr, ResizeIsa::kScalar))
            << h << "x" << w << " -> " << out_h << "x" << out_w;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ResizeIsaTest,
                         testing::Values(ResizeIsa::kScalar, ResizeIsa::kSse2, ResizeIsa::kAvx2,
                                         ResizeIsa::kAvx512),
                         [](const auto& param) { return std::string(resize_isa_name(param.param)); });

TEST(Resize, ThreadsDoNotChangeTheResult) {
  ThreadPool pool(3);
  for (const auto& [h, w, out_h, out_w] : {std::array<int64_t, 4>{700, 500, 320, 224},
                                           {100, 90, 512, 448},
                                           {600, 64, 96, 64},
                                           {64, 600, 64, 96},
                                           {2000, 40, 32, 32}}) {
    const RgbImage image = generated_image(h, w, 0, 7);
    EXPECT_EQ(resize_bicubic_u8(image.rgb, h, w, out_h, out_w, &pool),
              resize_bicubic_u8(image.rgb, h, w, out_h, out_w, nullptr));
  }
}

TEST(Resize, EqualSizeIsACopy) {
  const RgbImage image = generated_image(9, 13, 0, 1);
  EXPECT_EQ(resize_bicubic_u8(image.rgb, 9, 13, 9, 13, nullptr), image.rgb);
}

TEST(Resize, ConstantStaysConstant) {
  for (const int value : {0, 1, 127, 254, 255}) {
    const std::vector<uint8_t> flat(40 * 33 * 3, static_cast<uint8_t>(value));
    for (const uint8_t v : resize_bicubic_u8(flat, 40, 33, 96, 17, nullptr)) ASSERT_EQ(v, value);
  }
}

// Spec 3.3 gives the precision for some ratios.
TEST(ResizeTaps, PrecisionFollowsTheLargestTap) {
  EXPECT_EQ(make_resize_taps(32, 64).precision_bits, 14);
  EXPECT_EQ(make_resize_taps(500, 100).precision_bits, 17);
  EXPECT_EQ(make_resize_taps(101, 100).precision_bits, 15);
  EXPECT_EQ(make_resize_taps(100000, 32).precision_bits, 22);
}

TEST(ResizeTaps, StayInsideTheInputAndSumToOne) {
  for (const auto& [n, out] :
       {std::pair<int64_t, int64_t>{1, 32}, {2, 1}, {3, 1000}, {1000, 3}, {6200, 32}, {97, 64}}) {
    const ResizeTaps taps = make_resize_taps(n, out);
    for (int64_t i = 0; i < out; ++i) {
      ASSERT_GE(taps.first[i], 0);
      ASSERT_GE(taps.count[i], 1);
      ASSERT_LE(taps.first[i] + taps.count[i], n);
      int64_t sum = 0;
      for (int64_t j = 0; j < taps.stride; ++j) {
        if (j >= taps.count[i]) {
          ASSERT_EQ(taps.weight[i * taps.stride + j], 0);
        }
        sum += taps.weight[i * taps.stride + j];
      }
      ASSERT_LE(std::abs(sum - (int64_t{1} << taps.precision_bits)), taps.count[i]);
    }
  }
}

TEST(Resize, RejectsWrongArguments) {
  const std::vector<uint8_t> pixels(12);
  const auto code = [&](int64_t h, int64_t w, int64_t out_h, int64_t out_w) {
    return catch_error([&] { resize_bicubic_u8(pixels, h, w, out_h, out_w, nullptr); }).code;
  };
  EXPECT_EQ(code(2, 3, 4, 4), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(0, 3, 4, 4), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(2, 2, 0, 4), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace qvl::image
