// Windows and OS/2 bitmaps: 1, 4, 8, 16, 24 and 32 bits, RLE4 and RLE8, bit fields, either row order. Pixels
// as Pillow gives them. Spec 3.1.
//
// No library in the distribution reads BMP alone, and the format is small: every read goes through ByteReader
// or is checked against the size of the file before it is made.
#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "qvl/base/error.h"
#include "qvl/image/decoders.h"

namespace qvl::image {
namespace {

constexpr uint32_t kRaw = 0;
constexpr uint32_t kRle8 = 1;
constexpr uint32_t kRle4 = 2;
constexpr uint32_t kBitFields = 3;
constexpr uint32_t kFileHeaderBytes = 14;
constexpr uint32_t kCoreHeaderBytes = 12;

struct Header {
  uint64_t pixel_offset = 0;
  uint32_t header_bytes = 0;
  int64_t width = 0;
  int64_t height = 0;
  bool top_down = false;
  int bits = 0;
  uint32_t compression = kRaw;
  uint64_t colors = 0;
  std::array<uint32_t, 3> masks = {};
};

[[noreturn]] void fail_variant(std::string_view name, std::string_view what, const std::string& got) {
  fail(ErrorCode::kUnsupported, name, what, "1, 4, 8, 16, 24 or 32 bits, raw, RLE4, RLE8 or bit fields", got,
       "convert the file");
}

Header read_header(ByteReader& in, std::string_view name) {
  Header h;
  in.seek(10);
  h.pixel_offset = in.u32_le();
  h.header_bytes = in.u32_le();
  switch (h.header_bytes) {
    case kCoreHeaderBytes:
      h.width = in.u16_le();
      h.height = in.u16_le();
      in.take(2);  // planes
      h.bits = in.u16_le();
      break;
    case 40:
    case 52:
    case 56:
    case 64:
    case 108:
    case 124: {
      h.width = in.u32_le();
      const uint32_t stored_height = in.u32_le();
      // A negative height means that the rows come from the top.
      h.top_down = (stored_height >> 31) != 0;
      h.height = h.top_down ? int64_t{1 + ~stored_height} : int64_t{stored_height};
      in.take(2);
      h.bits = in.u16_le();
      h.compression = in.u32_le();
      in.take(12);  // size of the pixels, resolution
      h.colors = in.u32_le();
      in.take(4);  // important colours
      if (h.compression == kBitFields) {
        // In a 40-byte header the masks come after it, in the larger ones they are its next fields.
        for (uint32_t& mask : h.masks) mask = in.u32_le();
      }
      break;
    }
    default:
      fail(ErrorCode::kUnsupported, name, "BMP header size", "12, 40, 52, 56, 64, 108 or 124",
           std::to_string(h.header_bytes), "convert the file");
  }
  if (h.compression != kBitFields || h.header_bytes != 40)
    in.seek(uint64_t{kFileHeaderBytes} + h.header_bytes);
  switch (h.bits) {
    case 1:
    case 4:
    case 8:
    case 16:
    case 24:
    case 32:
      break;
    default:
      fail_variant(name, "BMP depth", std::to_string(h.bits) + " bits");
  }
  const bool fits = h.compression == kRaw || (h.compression == kRle8 && h.bits == 8) ||
                    (h.compression == kRle4 && h.bits == 4) || (h.compression == kBitFields && h.bits >= 16);
  if (!fits) {
    fail_variant(name, "BMP compression",
                 "type " + std::to_string(h.compression) + " with " + std::to_string(h.bits) + " bits");
  }
  if (h.colors == 0 && h.bits <= 8) h.colors = uint64_t{1} << h.bits;
  return h;
}

Palette read_palette(ByteReader& in, const Header& h, std::string_view name) {
  if (h.colors > 65536)
    fail_corrupt(ImageFormat::kBmp, name, "palette of " + std::to_string(h.colors) + " colours");
  const uint64_t entry_bytes = h.header_bytes == kCoreHeaderBytes ? 3 : 4;
  const std::span<const std::byte> entries = in.take(h.colors * entry_bytes);
  Palette palette;
  for (uint64_t i = 0; i < std::min<uint64_t>(h.colors, 256); ++i) {
    const auto at = [&](uint64_t k) { return std::to_integer<uint8_t>(entries[i * entry_bytes + k]); };
    palette.set(i, at(2), at(1), at(0));
  }
  return palette;
}

// One colour of a packed pixel: the masked bits, scaled to 0..255 and rounded down.
struct Field {
  uint32_t mask = 0;
  int shift = 0;
  uint64_t maximum = 0;

  uint8_t value(uint32_t pixel) const {
    return static_cast<uint8_t>(((pixel & mask) >> shift) * uint64_t{255} / maximum);
  }
};

std::array<Field, 3> pixel_fields(const Header& h, std::string_view name) {
  std::array<uint32_t, 3> masks = h.masks;
  if (h.compression != kBitFields || (h.bits == 32 && masks == std::array<uint32_t, 3>{})) {
    masks = h.bits == 16 ? std::array<uint32_t, 3>{0x7c00, 0x3e0, 0x1f}
                         : std::array<uint32_t, 3>{0xff0000, 0xff00, 0xff};
  }
  std::array<Field, 3> fields;
  for (size_t c = 0; c < 3; ++c) {
    const uint32_t mask = masks[c];
    const int shift = mask == 0 ? 0 : std::countr_zero(mask);
    const uint64_t run = uint64_t{mask} >> shift;
    const bool inside = h.bits == 32 || (mask >> h.bits) == 0;
    if (mask == 0 || !std::has_single_bit(run + 1) || !inside) {
      fail_corrupt(ImageFormat::kBmp, name,
                   "colour mask " + std::to_string(mask) + " is not one run of bits");
    }
    fields[c] = {mask, shift, run};
  }
  return fields;
}

void convert_row(const uint8_t* row, const Header& h, const Palette& palette,
                 const std::array<Field, 3>& fields, uint8_t* indexes, uint8_t* rgb) {
  if (h.bits <= 8) {
    const int per_byte = 8 / h.bits;
    const int mask = (1 << h.bits) - 1;
    for (int64_t x = 0; x < h.width; ++x) {
      const int shift = 8 - h.bits * (1 + static_cast<int>(x % per_byte));
      indexes[x] = static_cast<uint8_t>((row[x / per_byte] >> shift) & mask);
    }
    palette.paint(indexes, h.width, rgb);
    return;
  }
  const int64_t pixel_bytes = h.bits / 8;
  for (int64_t x = 0; x < h.width; ++x) {
    uint32_t pixel = 0;
    for (int64_t k = 0; k < pixel_bytes; ++k) pixel |= uint32_t{row[x * pixel_bytes + k]} << (8 * k);
    for (size_t c = 0; c < 3; ++c) rgb[3 * x + static_cast<int64_t>(c)] = fields[c].value(pixel);
  }
}

// Run-length coded indexes, rows in file order. What the code jumps over has index 0; a code that ends before
// the last row does is an error.
std::vector<uint8_t> decode_runs(ByteReader& in, const Header& h, std::string_view name) {
  std::vector<uint8_t> indexes(static_cast<size_t>(h.width * h.height), 0);
  int64_t x = 0;
  int64_t y = 0;
  const auto done = [&] { return y >= h.height || (y == h.height - 1 && x >= h.width); };
  // Pixels beyond the end of a row are dropped.
  const auto put = [&](uint8_t index) {
    if (x < h.width) indexes[static_cast<size_t>(y * h.width + x)] = index;
    ++x;
  };
  while (!done()) {
    const int count = in.u8();
    const int value = in.u8();
    if (count > 0) {
      for (int i = 0; i < count; ++i) {
        if (h.compression == kRle8)
          put(static_cast<uint8_t>(value));
        else
          put(static_cast<uint8_t>(i % 2 == 0 ? value >> 4 : value & 15));
      }
    } else if (value == 0) {
      x = 0;
      ++y;
    } else if (value == 1) {
      fail_corrupt(ImageFormat::kBmp, name,
                   "run-length code ends in row " + std::to_string(y) + " of " + std::to_string(h.height));
    } else if (value == 2) {
      x += in.u8();
      y += in.u8();
    } else {
      const int bytes = h.compression == kRle8 ? value : (value + 1) / 2;
      const std::span<const std::byte> literal = in.take(static_cast<uint64_t>(bytes));
      for (int i = 0; i < value; ++i) {
        if (h.compression == kRle8) {
          put(std::to_integer<uint8_t>(literal[static_cast<size_t>(i)]));
        } else {
          const int pair = std::to_integer<int>(literal[static_cast<size_t>(i / 2)]);
          put(static_cast<uint8_t>(i % 2 == 0 ? pair >> 4 : pair & 15));
        }
      }
      // Literals are padded to 16 bits; the padding of the very last one may be missing.
      if (bytes % 2 != 0 && in.remaining() > 0) in.take(1);
    }
  }
  return indexes;
}

}  // namespace

RgbImage decode_bmp(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name) {
  constexpr ImageFormat kFormat = ImageFormat::kBmp;
  ByteReader in(file, kFormat, name);
  const Header h = read_header(in, name);
  check_dimensions(h.width, h.height, limits, name);
  const Palette palette = h.bits <= 8 ? read_palette(in, h, name) : Palette();
  const std::array<Field, 3> fields = h.bits > 8 ? pixel_fields(h, name) : std::array<Field, 3>{};
  // Some writers leave the palette out of the offset, or the offset out of the file.
  const uint64_t header_end = uint64_t{kFileHeaderBytes} + h.header_bytes;
  if (h.pixel_offset != 0 && !(h.pixel_offset == header_end && h.bits <= 8)) in.seek(h.pixel_offset);

  const bool run_length = h.compression == kRle8 || h.compression == kRle4;
  const auto target_row = [&](RgbImage& image, int64_t y) {
    return image.rgb.data() + (h.top_down ? y : h.height - 1 - y) * h.width * 3;
  };
  if (run_length) {
    const std::vector<uint8_t> indexes = decode_runs(in, h, name);
    RgbImage image = allocate_image(h.width, h.height, kFormat);
    for (int64_t y = 0; y < h.height; ++y) {
      palette.paint(indexes.data() + y * h.width, h.width, target_row(image, y));
    }
    return image;
  }
  const uint64_t row_bytes = (static_cast<uint64_t>(h.width) * static_cast<uint64_t>(h.bits) + 7) / 8;
  const uint64_t stride_bytes = (row_bytes + 3) / 4 * 4;
  // Before memory is taken; the padding of the last row may be missing.
  const uint64_t needed_bytes = stride_bytes * static_cast<uint64_t>(h.height - 1) + row_bytes;
  const auto* pixels = reinterpret_cast<const uint8_t*>(in.take(needed_bytes).data());
  RgbImage image = allocate_image(h.width, h.height, kFormat);
  std::vector<uint8_t> indexes(h.bits <= 8 ? static_cast<size_t>(h.width) : 0);
  for (int64_t y = 0; y < h.height; ++y) {
    convert_row(pixels + static_cast<uint64_t>(y) * stride_bytes, h, palette, fields, indexes.data(),
                target_row(image, y));
  }
  return image;
}

}  // namespace qvl::image
