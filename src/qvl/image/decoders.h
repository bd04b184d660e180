// What the decoders of the single formats share. Each returns the pixels as they are stored and the
// orientation it found; decode_image turns the picture upright.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "qvl/image/decode.h"

namespace qvl::image {

// An image of zeros; the size must have been checked.
RgbImage allocate_image(int64_t width, int64_t height, ImageFormat format);

// Throws kFormat "[name] corrupt or truncated FORMAT: detail".
[[noreturn]] void fail_corrupt(ImageFormat format, std::string_view name, std::string_view detail);

RgbImage decode_jpeg(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name);
RgbImage decode_png(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name);
RgbImage decode_webp(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name);
RgbImage decode_gif(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name);
RgbImage decode_bmp(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name);

// A colour table of 256 entries. Those the file does not give are black, as in Pillow.
class Palette {
 public:
  // Entry i is the grey i: what indexes mean in a file without a table.
  static Palette greys();
  void set(size_t index, uint8_t red, uint8_t green, uint8_t blue) { colors_[index] = {red, green, blue}; }
  void paint(const uint8_t* indexes, int64_t count, uint8_t* rgb) const;

 private:
  std::array<std::array<uint8_t, 3>, 256> colors_ = {};
};

// Reads bytes of a file front to back; reading past the end throws fail_corrupt.
class ByteReader {
 public:
  ByteReader(std::span<const std::byte> bytes, ImageFormat format, std::string_view name)
      : bytes_(bytes), format_(format), name_(name) {}
  size_t position() const { return position_; }
  size_t remaining() const { return bytes_.size() - position_; }
  void seek(uint64_t position);
  uint8_t u8();
  uint16_t u16_le();
  uint32_t u32_le();
  // The next `count` bytes; valid while the file is.
  std::span<const std::byte> take(uint64_t count);

 private:
  std::span<const std::byte> bytes_;
  ImageFormat format_;
  std::string_view name_;
  size_t position_ = 0;
};

}  // namespace qvl::image
