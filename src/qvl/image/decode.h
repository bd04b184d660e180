// Compressed image file to 8-bit RGB, upright: the entrance of the image path. The format is taken from the
// first bytes, never from the name. Pixels are what the reference's loader (Pillow, convert("RGB"), EXIF
// orientation applied) makes of the file: alpha is dropped, not blended; 16-bit grey is clipped, 16-bit
// colour keeps its high byte; colour profiles are ignored. Spec 3.1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace qvl::image {

enum class ImageFormat : uint8_t { kJpeg, kPng, kWebp, kGif, kBmp };

// "JPEG", "PNG", ...
std::string_view image_format_name(ImageFormat format);

// Checked against the header, before anything is allocated for the pixels.
struct DecodeLimits {
  uint64_t max_file_bytes = uint64_t{256} << 20;
  // Width x height. The default is the size at which Pillow starts to warn: half a gigabyte of RGB.
  int64_t max_pixels = 178956970;
  // Longer side / shorter side; the model takes exactly 200 and refuses more (spec 3.2).
  int64_t max_aspect_ratio = 200;
};

// Throws kFormat for sides below 1, kLimit above the limits, naming `name`. Decoders call it before they take memory for
// pixels.
void check_dimensions(int64_t width, int64_t height, const DecodeLimits& limits, std::string_view name);

// True when the name ends like one of the formats (".jpg", ".PNG", ...); says nothing about the contents.
bool has_picture_extension(const std::filesystem::path& path);

struct RgbImage {
  int64_t width = 0;
  int64_t height = 0;
  // height x width x 3, rows from the top, R G B.
  std::vector<uint8_t> rgb;
  ImageFormat format = ImageFormat::kPng;
  // The EXIF value (1..8) that was applied: width, height and rgb are those of the upright picture.
  int exif_orientation = 1;
};

// Decodes a whole file held in memory. Animations give their first frame. `name` stands in the error
// messages. Throws kUnsupported (unknown format, a variant we do not read), kFormat (truncated or corrupt:
// never part of an image), kLimit.
RgbImage decode_image(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name);

// Reads and decodes a file; throws also kNotFound and kIo.
RgbImage load_image(const std::filesystem::path& path, const DecodeLimits& limits = {});

}  // namespace qvl::image
