#include "qvl/image/decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "qvl/base/json.h"
#include "qvl/base/mapped_file.h"
#include "qvl/image/test_util.h"

namespace qvl::image {
namespace {

std::string file_bytes(const std::string& name) {
  return read_file(fixture("images/" + name), 1 << 20);
}

RgbImage decode(const std::string& bytes, const DecodeLimits& limits = {}) {
  return decode_image(std::as_bytes(std::span(bytes)), limits, "test");
}

// The image, or nothing if the bytes were refused. Anything but an Error fails the test by itself.
std::optional<RgbImage> try_decode(const std::string& bytes, const DecodeLimits& limits = {}) {
  try {
    return decode(bytes, limits);
  } catch (const Error&) {
    return std::nullopt;
  }
}

const Json& manifest() {
  static const Json json = parse_json_file(fixture("images/manifest.json"));
  return json["files"];
}

int largest_difference(const RgbImage& a, const RgbImage& b) {
  int largest = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i)
    largest = std::max(largest, std::abs(int{a.rgb[i]} - int{b.rgb[i]}));
  return largest;
}

// Every format and variant against Pillow: lossless exactly, lossy within two levels.
TEST(Decode, EqualsPillow) {
  ASSERT_GE(manifest().size(), 140u);
  for (const Json& c : manifest()) {
    const std::string name = c["file"];
    SCOPED_TRACE(name);
    const RgbImage image = load_image(fixture("images/" + name));
    ASSERT_EQ(image.width, c["width"]);
    ASSERT_EQ(image.height, c["height"]);
    ASSERT_EQ(image.rgb.size(), static_cast<size_t>(image.width * image.height * 3));
    if (c.contains("pixels")) {
      const RgbImage expected = load_image(fixture("images/" + c["pixels"].get<std::string>()));
      ASSERT_EQ(sha256_of(std::span<const uint8_t>(expected.rgb)), c["sha256"])
          << "the expected pixels themselves";
      EXPECT_LE(largest_difference(image, expected), 2);
    } else {
      EXPECT_EQ(sha256_of(std::span<const uint8_t>(image.rgb)), c["sha256"]);
    }
  }
}

TEST(Decode, ReportsFormatAndOrientation) {
  EXPECT_EQ(load_image(fixture("images/jpeg_exif_6.jpg")).exif_orientation, 6);
  EXPECT_EQ(load_image(fixture("images/jpeg_xmp_5.jpg")).exif_orientation, 5);
  EXPECT_EQ(load_image(fixture("images/jpeg_exif_over_xmp.jpg")).exif_orientation, 3);
  EXPECT_EQ(load_image(fixture("images/png_exif_8.png")).exif_orientation, 8);
  EXPECT_EQ(load_image(fixture("images/png_raw_profile_8.png")).exif_orientation, 8);
  EXPECT_EQ(load_image(fixture("images/webp_exif_7.webp")).exif_orientation, 7);
  EXPECT_EQ(load_image(fixture("images/jpeg_420.jpg")).exif_orientation, 1);
  const auto format = [](const char* name) {
    return load_image(fixture(std::string("images/") + name)).format;
  };
  EXPECT_EQ(format("jpeg_420.jpg"), ImageFormat::kJpeg);
  EXPECT_EQ(format("png_rgb_8.png"), ImageFormat::kPng);
  EXPECT_EQ(format("webp_lossy.webp"), ImageFormat::kWebp);
  EXPECT_EQ(format("gif_plain.gif"), ImageFormat::kGif);
  EXPECT_EQ(format("bmp_24.bmp"), ImageFormat::kBmp);
}

// A file cut anywhere is refused, or (cut behind the last pixel) gives the whole picture: never a part of it.
TEST(Decode, TruncatedFilesNeverGiveHalfAnImage) {
  int64_t refused = 0, whole = 0;
  for (const Json& c : manifest()) {
    const std::string name = c["file"];
    const std::string bytes = file_bytes(name);
    const RgbImage full = decode(bytes);
    const size_t step = bytes.size() <= 1500 ? 1 : 13;
    for (size_t length = 0; length < bytes.size(); length += step) {
      const std::optional<RgbImage> image = try_decode(bytes.substr(0, length));
      if (image) {
        ASSERT_EQ(image->rgb, full.rgb) << name << " cut at " << length << " of " << bytes.size();
        ++whole;
      } else {
        ++refused;
      }
    }
  }
  // What may be missing without loss: padding of the last row, the trailer of a GIF, later frames.
  EXPECT_GT(refused, 20000);
  EXPECT_GT(whole, 0);
}

// The end of these formats is marked, so every cut is noticed.
TEST(Decode, TruncatedJpegPngAndWebpAreAlwaysRefused) {
  for (const char* name :
       {"jpeg_420.jpg", "jpeg_progressive.jpg", "jpeg_grey.jpg", "jpeg_cmyk.jpg", "png_rgb_8.png",
        "png_palette_4_interlaced.png", "webp_lossy.webp", "webp_lossless.webp", "webp_lossy_alpha.webp"}) {
    const std::string bytes = file_bytes(name);
    for (size_t length = 0; length < bytes.size(); ++length) {
      ASSERT_FALSE(try_decode(bytes.substr(0, length)))
          << name << " cut at " << length << " of " << bytes.size();
    }
  }
}

TEST(Decode, TruncationIsSaidSo) {
  for (const char* name :
       {"jpeg_420.jpg", "png_rgb_8.png", "webp_lossy.webp", "gif_plain.gif", "bmp_24.bmp"}) {
    const std::string bytes = file_bytes(name);
    const Caught error = catch_error([&] { decode(bytes.substr(0, bytes.size() / 2)); });
    EXPECT_EQ(error.code, ErrorCode::kFormat) << name;
    EXPECT_TRUE(error.message.starts_with("[test] corrupt or truncated ")) << error.message;
  }
}

// Thousands of damaged files: an Error or a complete image of some content, never a crash (run under ASan and
// UBSan).
TEST(Decode, DamagedFilesNeverCrash) {
  DecodeLimits limits;
  limits.max_pixels = 1 << 20;
  uint64_t n = 0;
  int64_t refused = 0, decoded = 0;
  for (const Json& c : manifest()) {
    const std::string bytes = file_bytes(c["file"]);
    for (int round = 0; round < 60; ++round) {
      std::string damaged = bytes;
      // Half of the damage goes to the first 64 bytes, where the structure is.
      const size_t reach = round % 2 == 0 ? std::min<size_t>(64, bytes.size()) : bytes.size();
      const int changes = 1 + round % 4;
      for (int k = 0; k < changes; ++k) {
        const uint64_t random = splitmix64(99, n++);
        damaged[4 + random % (reach - 4)] = static_cast<char>(random >> 40);
      }
      if (round % 5 == 4)
        damaged.insert(splitmix64(98, n) % damaged.size(), file_bytes("gif_87a.gif").substr(13, 40));
      const std::optional<RgbImage> image = try_decode(damaged, limits);
      if (image) {
        ASSERT_EQ(image->rgb.size(), static_cast<size_t>(image->width * image->height * 3));
        ++decoded;
      } else {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(decoded, 500);
}

TEST(Decode, FormatComesFromTheBytes) {
  EXPECT_EQ(load_image(fixture("images/jpeg_420.jpg")).format, ImageFormat::kJpeg);
  const auto message = [](std::string_view bytes) {
    return catch_error([&] { decode(std::string(bytes)); });
  };
  for (const auto& [bytes, text] :
       {std::pair<std::string_view, const char*>{"hello world, no image", "unknown format"},
        {std::string_view("\0\0\0\x20"
                          "ftypheic",
                          12),
         "HEIC"},
        {std::string_view("\0\0\0\x20"
                          "ftypavif",
                          12),
         "AVIF"},
        {std::string_view("\0\0\0\x20"
                          "ftypisom",
                          12),
         "video container"},
        {std::string_view("II*\0....", 8), "TIFF"},
        {"%PDF-1.7", "PDF"},
        {"\xff\xd8", "unknown format"}}) {
    const Caught error = message(bytes);
    EXPECT_EQ(error.code, ErrorCode::kUnsupported) << text;
    EXPECT_NE(error.message.find(text), std::string::npos) << error.message;
    EXPECT_NE(error.message.find("JPEG, PNG, WebP, GIF or BMP"), std::string::npos) << error.message;
  }
  EXPECT_EQ(message("").code, ErrorCode::kFormat);
}

TEST(Decode, FileErrors) {
  EXPECT_EQ(catch_error([] { load_image(fixture("images/none.png")); }).code, ErrorCode::kNotFound);
  EXPECT_EQ(catch_error([] { load_image(fixture("images")); }).code, ErrorCode::kIo);
  DecodeLimits limits;
  limits.max_file_bytes = 100;
  const Caught error = catch_error([&] { load_image(fixture("images/jpeg_420.jpg"), limits); });
  EXPECT_EQ(error.code, ErrorCode::kLimit);
  EXPECT_NE(error.message.find("jpeg_420.jpg"), std::string::npos) << error.message;
  EXPECT_EQ(catch_error([&] { decode(file_bytes("bmp_24.bmp"), limits); }).code, ErrorCode::kLimit);
}

TEST(Decode, PixelLimitIsExact) {
  // All are checked from the header: 83x61 JPEG, 29x19 PNG, 57x43 WebP, 27x21 GIF, 19x13 BMP.
  for (const auto& [name, pixels] : {std::pair<const char*, int64_t>{"jpeg_420.jpg", 83 * 61},
                                     {"png_rgb_8.png", 29 * 19},
                                     {"webp_lossy.webp", 57 * 43},
                                     {"gif_plain.gif", 27 * 21},
                                     {"bmp_24.bmp", 19 * 13}}) {
    DecodeLimits limits;
    limits.max_pixels = pixels;
    EXPECT_TRUE(try_decode(file_bytes(name), limits)) << name;
    limits.max_pixels = pixels - 1;
    const Caught error = catch_error([&, file = name] { decode(file_bytes(file), limits); });
    EXPECT_EQ(error.code, ErrorCode::kLimit) << name;
    EXPECT_NE(error.message.find("at most " + std::to_string(pixels - 1) + " pixels"), std::string::npos)
        << error.message;
  }
}

// Headers that promise gigapixels are refused before memory is taken.
TEST(Decode, BombsAreRefusedByTheirHeader) {
  const auto patched = [](const char* name, size_t offset, std::string_view bytes) {
    std::string file = file_bytes(name);
    file.replace(offset, bytes.size(), bytes);
    return file;
  };
  const auto code = [](const std::string& bytes) { return catch_error([&] { decode(bytes); }).code; };
  EXPECT_EQ(code(patched("bmp_24.bmp", 18, std::string_view("\xff\xff\xff\x7f\xff\xff\xff\x7f", 8))),
            ErrorCode::kLimit);
  EXPECT_EQ(code(patched("bmp_24.bmp", 18, std::string_view("\xff\xff\0\0\0\0\0\x80", 8))),
            ErrorCode::kLimit);
  EXPECT_EQ(code(patched("gif_plain.gif", 6, "\xff\xff\xff\xff")), ErrorCode::kLimit);
  std::string jpeg = file_bytes("jpeg_420.jpg");
  const size_t frame = jpeg.find("\xff\xc0");
  ASSERT_NE(frame, std::string::npos);
  jpeg.replace(frame + 5, 4, "\xff\xdc\xff\xdc");
  EXPECT_EQ(code(jpeg), ErrorCode::kLimit);
  // 16384x16384 lossless WebP.
  std::string webp = file_bytes("webp_lossless.webp");
  const size_t size_at = webp.find("VP8L") + 9;
  webp.replace(size_at, 4, std::string_view("\xff\xff\xff\x0f", 4));
  EXPECT_EQ(code(webp), ErrorCode::kLimit);
  // A PNG with a right checksum, 100000 x 100000.
  EXPECT_EQ(code(file_bytes("bomb_100000x100000.png")), ErrorCode::kLimit);
}

TEST(Decode, AspectRatioOf200IsTheLimit) {
  const auto bmp = [](int width, int height) {
    std::string file = file_bytes("bmp_24.bmp").substr(0, 54);
    const auto u32 = [&](size_t at, int v) {
      for (size_t k = 0; k < 4; ++k) file[at + k] = static_cast<char>(v >> (8 * k) & 255);
    };
    u32(18, width);
    u32(22, height);
    file.resize(54 + static_cast<size_t>((width * 3 + 3) / 4 * 4 * height), '\x55');
    return file;
  };
  EXPECT_EQ(decode(bmp(400, 2)).width, 400);
  EXPECT_EQ(decode(bmp(2, 400)).height, 400);
  const Caught error = catch_error([&] { decode(bmp(401, 2)); });
  EXPECT_EQ(error.code, ErrorCode::kLimit);
  EXPECT_NE(error.message.find("expected at most 200:1, got 401x2"), std::string::npos) << error.message;
  EXPECT_EQ(catch_error([&] { decode(bmp(1, 201)); }).code, ErrorCode::kLimit);
  EXPECT_EQ(catch_error([&] { decode(bmp(0, 20)); }).code, ErrorCode::kFormat);
}

// A few kilobytes that ask for hundreds of passes over the picture.
TEST(Decode, JpegWithEndlessScansIsRefused) {
  const std::string bytes = file_bytes("jpeg_c_spectral.jpg");
  const size_t scan = bytes.rfind("\xff\xda");
  const size_t tables = bytes.rfind("\xff\xc4", scan);
  const std::string last_scan = bytes.substr(tables, bytes.size() - 2 - tables);
  const auto repeated = [&](int times) {
    std::string file = bytes.substr(0, bytes.size() - 2);
    for (int i = 0; i < times; ++i) file += last_scan;
    return file + bytes.substr(bytes.size() - 2);
  };
  EXPECT_TRUE(try_decode(repeated(20)));
  const Caught error = catch_error([&] { decode(repeated(400)); });
  EXPECT_EQ(error.code, ErrorCode::kFormat);
  EXPECT_NE(error.message.find("more than 200 scans"), std::string::npos) << error.message;
}

TEST(Decode, UnsupportedVariantsAreNamed) {
  std::string jpeg = file_bytes("jpeg_420.jpg");
  jpeg[jpeg.find("\xff\xc0") + 4] = 12;  // bits per sample
  EXPECT_EQ(catch_error([&] { decode(jpeg); }).code, ErrorCode::kUnsupported);
  std::string bmp = file_bytes("bmp_24.bmp");
  bmp[30] = 4;  // a JPEG inside
  const Caught error = catch_error([&] { decode(bmp); });
  EXPECT_EQ(error.code, ErrorCode::kUnsupported);
  EXPECT_NE(error.message.find("BMP compression"), std::string::npos) << error.message;
}

TEST(Decode, DamagedChecksumsAreRefused) {
  std::string png = file_bytes("png_rgb_8.png");
  const size_t data = png.find("IDAT");
  png[data + 20] = static_cast<char>(png[data + 20] ^ 1);
  EXPECT_EQ(catch_error([&] { decode(png); }).code, ErrorCode::kFormat);
}

}  // namespace
}  // namespace qvl::image
