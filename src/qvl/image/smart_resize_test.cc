#include "qvl/image/smart_resize.h"

#include <gtest/gtest.h>

#include "qvl/base/json.h"
#include "qvl/image/test_util.h"

namespace qvl::image {
namespace {

constexpr int64_t kLow = 65536;
constexpr int64_t kHigh = 16777216;

TEST(SmartResize, ReferenceCases) {
  const Json cases = parse_json_file(fixture("golden/preprocess/smart_resize.json"));
  ASSERT_EQ(cases["image"].size(), 60u);
  for (const Json& c : cases["image"]) {
    const ImageSize size = smart_resize(c["h"], c["w"], 32, c["min"], c["max"]);
    EXPECT_EQ(size, (ImageSize{c["out"][0], c["out"][1]}))
        << c.dump() << " gave " << size.height << "x" << size.width;
  }
  ASSERT_EQ(cases["video"].size(), 16u);
  for (const Json& c : cases["video"]) {
    const ImageSize size = smart_resize_video(c["frames"], c["h"], c["w"], 2, 32, c["min"], c["max"]);
    EXPECT_EQ(size, (ImageSize{c["out"][0], c["out"][1]}))
        << c.dump() << " gave " << size.height << "x" << size.width;
  }
}

// The table of spec 3.2 and the examples of spec 4.
TEST(SmartResize, TablesOfTheSpec) {
  const auto expect = [](int64_t h, int64_t w, int64_t out_h, int64_t out_w, int64_t high = kHigh) {
    EXPECT_EQ(smart_resize(h, w, 32, kLow, high), (ImageSize{out_h, out_w})) << h << "x" << w;
  };
  expect(1, 1, 256, 256);
  expect(300, 199, 320, 224);
  expect(17, 33, 192, 384);
  expect(37, 1000, 64, 1344);
  expect(48, 80, 224, 352);
  expect(1080, 1920, 1088, 1920);
  expect(240, 272, 256, 256);
  expect(4097, 4095, 4096, 4096);
  expect(5000, 4000, 4576, 3648);
  expect(100, 20000, 96, 20000);
  expect(1080, 1920, 736, 1312, 1003520);
  const auto expect_video = [](int64_t n, int64_t h, int64_t w, int64_t out_h, int64_t out_w) {
    EXPECT_EQ(smart_resize_video(n, h, w, 2, 32, 4096, 25165824), (ImageSize{out_h, out_w})) << n << " " << h;
  };
  expect_video(8, 360, 640, 352, 640);
  expect_video(10, 1080, 1920, 1088, 1920);
  expect_video(100, 720, 1280, 352, 640);
  expect_video(768, 1080, 1920, 128, 224);
  expect_video(1, 32, 32, 64, 64);
}

// Trap 25: halves go to the even multiple.
TEST(SmartResize, TiesGoToTheEvenMultiple) {
  EXPECT_EQ(smart_resize(80, 48, 32, 1, kHigh), (ImageSize{64, 64}));
  EXPECT_EQ(smart_resize(112, 176, 32, 1, kHigh), (ImageSize{128, 192}));
}

// Trap 28: an odd number of frames is padded in the test but not in the scale.
TEST(SmartResize, VideoBudgetCountsPaddedFramesOnce) {
  // 3 frames of 64x64 padded to 4 exceed 16383; sqrt(3*64*64/16383) is below 1, so the size stays.
  EXPECT_EQ(smart_resize_video(3, 64, 64, 2, 32, 1, 16384), (ImageSize{64, 64}));
  EXPECT_EQ(smart_resize_video(3, 100, 100, 2, 32, 1, 30000), (ImageSize{96, 96}));
  EXPECT_EQ(smart_resize_video(4, 100, 100, 2, 32, 1, 30000), (ImageSize{64, 64}));
}

TEST(SmartResize, AspectRatioOf200IsTheLimit) {
  EXPECT_EQ(smart_resize(100, 20000, 32, kLow, kHigh), (ImageSize{96, 20000}));
  const Caught image = catch_error([] { smart_resize(100, 20001, 32, kLow, kHigh); });
  EXPECT_EQ(image.code, ErrorCode::kLimit);
  EXPECT_NE(image.message.find("expected at most 200:1, got 20001x100"), std::string::npos) << image.message;
  EXPECT_TRUE(catch_error([] { smart_resize_video(2, 6401, 32, 2, 32, 1, kHigh); }).thrown);
  EXPECT_FALSE(catch_error([] { smart_resize_video(2, 6400, 32, 2, 32, 1, kHigh); }).thrown);
}

TEST(SmartResize, RejectsWhatCannotBeMeant) {
  const auto code = [](const std::function<void()>& fn) { return catch_error(fn).code; };
  EXPECT_EQ(code([] { smart_resize(0, 10, 32, kLow, kHigh); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([] { smart_resize(10, -1, 32, kLow, kHigh); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([] { smart_resize(10, 10, 0, kLow, kHigh); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([] { smart_resize(10, 10, 32, 0, kHigh); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([] { smart_resize(10, 10, 32, kHigh, kLow); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([] { smart_resize(10, 10, 32, int64_t{1} << 40, int64_t{1} << 41); }), ErrorCode::kLimit);
  EXPECT_EQ(code([] { smart_resize_video(2, 31, 64, 2, 32, 4096, kHigh); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([] { smart_resize_video(0, 64, 64, 2, 32, 4096, kHigh); }), ErrorCode::kInvalidArgument);
}

// Every size up to 300x300 stays on the lattice and, where the aspect ratio allows, in the budget.
TEST(SmartResize, AlwaysOnTheLattice) {
  for (int64_t h = 1; h <= 300; h += 3) {
    for (int64_t w = 1; w <= 300; w += 7) {
      if (std::max(h, w) > 200 * std::min(h, w)) continue;
      const ImageSize size = smart_resize(h, w, 32, 4096, 65536);
      ASSERT_EQ(size.height % 32 + size.width % 32, 0);
      ASSERT_GE(size.height, 32);
      ASSERT_GE(size.width, 32);
      ASSERT_GE(size.height * size.width, 4096);
    }
  }
}

}  // namespace
}  // namespace qvl::image
