#include "qvl/image/encode_png.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "qvl/base/mapped_file.h"
#include "qvl/image/test_util.h"

namespace qvl::image {
namespace {

namespace fs = std::filesystem;

std::string encoded(const RgbImage& image) {
  std::string out;
  encode_png(image, [&out](std::span<const std::byte> bytes) {
    out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  return out;
}

RgbImage decoded(const std::string& bytes) {
  return decode_image(std::as_bytes(std::span(bytes)), {}, "test");
}

TEST(EncodePng, ComesBackToTheByte) {
  for (const auto& [height, width] : {std::pair{1, 1}, {1, 150}, {7, 3}, {64, 65}, {301, 200}}) {
    for (const int kind : {0, 1, 2}) {
      const RgbImage image = generated_image(height, width, kind, 17);
      const RgbImage again = decoded(encoded(image));
      EXPECT_EQ(again.width, width);
      EXPECT_EQ(again.height, height);
      EXPECT_EQ(again.format, ImageFormat::kPng);
      EXPECT_TRUE(again.rgb == image.rgb) << height << "x" << width << " kind " << kind;
    }
  }
}

// The pixels of a turned photo are upright already: whoever reads the file must not turn them again.
TEST(EncodePng, WritesNoOrientation) {
  RgbImage image = generated_image(5, 9, 0, 3);
  image.exif_orientation = 6;
  const RgbImage again = decoded(encoded(image));
  EXPECT_EQ(again.exif_orientation, 1);
  EXPECT_EQ(again.width, 9);
  EXPECT_TRUE(again.rgb == image.rgb);
}

TEST(EncodePng, RefusesPixelsThatAreNotThere) {
  RgbImage image = generated_image(4, 4, 0, 1);
  image.rgb.pop_back();
  const Caught caught = catch_error([&] { encoded(image); });
  EXPECT_TRUE(caught.thrown);
  EXPECT_EQ(caught.code, ErrorCode::kInvalidArgument);
  EXPECT_NE(caught.message.find("47 bytes for 4x4"), std::string::npos) << caught.message;
  EXPECT_EQ(catch_error([] { encoded(RgbImage{}); }).code, ErrorCode::kInvalidArgument);
}

TEST(EncodePng, WhatTheSinkThrowsPassesThrough) {
  const RgbImage image = generated_image(300, 300, 0, 1);
  int calls = 0;
  const ByteSink full = [&calls](std::span<const std::byte>) {
    if (++calls == 3) throw Error(ErrorCode::kIo, "[disk] full");
  };
  const Caught caught = catch_error([&] { encode_png(image, full); });
  EXPECT_EQ(caught.code, ErrorCode::kIo);
  EXPECT_EQ(caught.message, "[disk] full");
  EXPECT_EQ(calls, 3);
}

TEST(EncodePng, FilesAppearWholeOrNotAtAll) {
  const fs::path folder = fs::temp_directory_path() / ("qvl_encode_png_test_" + std::to_string(getpid()));
  fs::create_directories(folder);
  const fs::path file = folder / "out.png";
  std::ofstream(file) << "what was there before";
  RgbImage broken = generated_image(4, 4, 0, 1);
  broken.rgb.clear();
  EXPECT_TRUE(catch_error([&] { write_png(file, broken); }).thrown);
  EXPECT_EQ(read_file(file, 100), "what was there before");

  const RgbImage image = generated_image(4, 4, 0, 1);
  write_png(file, image);
  EXPECT_TRUE(load_image(file).rgb == image.rgb);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);
  EXPECT_EQ(catch_error([&] { write_png(folder / "no such folder/out.png", image); }).code, ErrorCode::kNotFound);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace qvl::image
