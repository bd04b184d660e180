// Format detection, limits and the parts all decoders share; see decode.h. Spec 3.1.
#include "qvl/image/decode.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <new>
#include <string>

#include "qvl/base/error.h"
#include "qvl/base/mapped_file.h"
#include "qvl/image/decoders.h"
#include "qvl/image/orientation.h"

namespace qvl::image {
namespace {

bool matches(std::span<const std::byte> file, size_t offset, std::string_view magic) {
  return file.size() >= offset + magic.size() &&
         std::memcmp(file.data() + offset, magic.data(), magic.size()) == 0;
}

// What a user is likely to have handed over by mistake, for the error message.
std::string_view known_but_unsupported(std::span<const std::byte> file) {
  if (matches(file, 4, "ftypavif") || matches(file, 4, "ftypavis")) return "AVIF";
  if (matches(file, 4, "ftyphei") || matches(file, 4, "ftypmif1") || matches(file, 4, "ftyphev"))
    return "HEIC";
  if (matches(file, 4, "ftyp") || matches(file, 0, "\x1a\x45\xdf\xa3")) return "a video container";
  if (matches(file, 0, std::string_view("II*\0", 4)) || matches(file, 0, std::string_view("MM\0*", 4)))
    return "TIFF";
  if (matches(file, 0, "%PDF")) return "PDF";
  if (matches(file, 0, "<svg") || matches(file, 0, "<?xml")) return "SVG or XML";
  if (matches(file, 0, std::string_view("\0\0\x01\0", 4))) return "ICO";
  if (matches(file, 0, "\xff\x0a") || matches(file, 4, "JXL ")) return "JPEG XL";
  if (matches(file, 4, "jP  ")) return "JPEG 2000";
  return "an unknown format";
}

}  // namespace

bool has_picture_extension(const std::filesystem::path& path) {
  static constexpr std::array kExtensions = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"};
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return std::find(kExtensions.begin(), kExtensions.end(), extension) != kExtensions.end();
}

std::string_view image_format_name(ImageFormat format) {
  switch (format) {
    case ImageFormat::kJpeg:
      return "JPEG";
    case ImageFormat::kPng:
      return "PNG";
    case ImageFormat::kWebp:
      return "WebP";
    case ImageFormat::kGif:
      return "GIF";
    case ImageFormat::kBmp:
      return "BMP";
  }
  return "unknown";
}

void check_dimensions(int64_t width, int64_t height, const DecodeLimits& limits, std::string_view name) {
  const std::string size = std::to_string(width) + "x" + std::to_string(height);
  if (width < 1 || height < 1) fail(ErrorCode::kFormat, name, "image size", "at least 1x1", size);
  if (height > limits.max_pixels / width) {
    fail(ErrorCode::kLimit, name, "image size", "at most " + std::to_string(limits.max_pixels) + " pixels",
         size, "scale the image down first");
  }
  const int64_t longer = std::max(width, height);
  const int64_t shorter = std::min(width, height);
  if (static_cast<double>(longer) / static_cast<double>(shorter) >
      static_cast<double>(limits.max_aspect_ratio)) {
    fail(ErrorCode::kLimit, name, "aspect ratio", "at most " + std::to_string(limits.max_aspect_ratio) + ":1",
         size, "crop or pad the image");
  }
}

RgbImage allocate_image(int64_t width, int64_t height, ImageFormat format) {
  RgbImage image;
  image.width = width;
  image.height = height;
  image.format = format;
  image.rgb.resize(static_cast<size_t>(width * height * 3));
  return image;
}

void fail_corrupt(ImageFormat format, std::string_view name, std::string_view detail) {
  fail(ErrorCode::kFormat, name,
       "corrupt or truncated " + std::string(image_format_name(format)) + ": " + std::string(detail));
}

Palette Palette::greys() {
  Palette palette;
  for (size_t i = 0; i < palette.colors_.size(); ++i) palette.colors_[i].fill(static_cast<uint8_t>(i));
  return palette;
}

void Palette::paint(const uint8_t* indexes, int64_t count, uint8_t* rgb) const {
  for (int64_t i = 0; i < count; ++i) std::memcpy(rgb + 3 * i, colors_[indexes[i]].data(), 3);
}

void ByteReader::seek(uint64_t position) {
  if (position > bytes_.size()) fail_corrupt(format_, name_, "the file ends before the pixels");
  position_ = static_cast<size_t>(position);
}

std::span<const std::byte> ByteReader::take(uint64_t count) {
  if (count > remaining()) fail_corrupt(format_, name_, "unexpected end of file");
  const std::span<const std::byte> taken = bytes_.subspan(position_, static_cast<size_t>(count));
  position_ += static_cast<size_t>(count);
  return taken;
}

uint8_t ByteReader::u8() {
  return std::to_integer<uint8_t>(take(1)[0]);
}

uint16_t ByteReader::u16_le() {
  const std::span<const std::byte> b = take(2);
  return static_cast<uint16_t>(std::to_integer<uint16_t>(b[0]) | std::to_integer<uint16_t>(b[1]) << 8);
}

uint32_t ByteReader::u32_le() {
  const uint32_t low = u16_le();
  return low | static_cast<uint32_t>(u16_le()) << 16;
}

RgbImage decode_image(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name) {
  if (file.empty()) fail(ErrorCode::kFormat, name, "image file is empty");
  if (file.size() > limits.max_file_bytes) {
    fail(ErrorCode::kLimit, name, "image file", "at most " + std::to_string(limits.max_file_bytes) + " bytes",
         std::to_string(file.size()));
  }
  try {
    RgbImage image;
    if (matches(file, 0, "\xff\xd8\xff")) {
      image = decode_jpeg(file, limits, name);
    } else if (matches(file, 0, "\x89PNG\r\n\x1a\n")) {
      image = decode_png(file, limits, name);
    } else if (matches(file, 0, "RIFF") && matches(file, 8, "WEBP")) {
      image = decode_webp(file, limits, name);
    } else if (matches(file, 0, "GIF87a") || matches(file, 0, "GIF89a")) {
      image = decode_gif(file, limits, name);
    } else if (matches(file, 0, "BM")) {
      image = decode_bmp(file, limits, name);
    } else {
      fail(ErrorCode::kUnsupported, name, "image format", "JPEG, PNG, WebP, GIF or BMP",
           known_but_unsupported(file), "convert the file");
    }
    apply_orientation(image.exif_orientation, &image);
    return image;
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::kLimit, name, "not enough memory to decode the image");
  }
}

RgbImage load_image(const std::filesystem::path& path, const DecodeLimits& limits) {
  const std::string name = path.string();
  // Read, not mapped: a file that shrinks while it is decoded must not take the process down.
  const std::string bytes = read_file(path, limits.max_file_bytes);
  return decode_image(std::as_bytes(std::span(bytes)), limits, name);
}

}  // namespace qvl::image
