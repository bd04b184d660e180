// EXIF and XMP orientation; see orientation.h. Spec 3.1.
//
// Only one tag of the first directory is wanted, so this walks that directory itself: every offset is checked
// against the block, nothing is allocated, and maker notes and thumbnails are never looked at.
#include "qvl/image/orientation.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace qvl::image {
namespace {

constexpr uint16_t kOrientationTag = 0x0112;
constexpr uint16_t kTypeShort = 3;
constexpr uint16_t kTypeLong = 4;
constexpr std::string_view kExifHeader("Exif\0\0", 6);

class TiffBlock {
 public:
  TiffBlock(std::span<const std::byte> bytes, bool big_endian) : bytes_(bytes), big_endian_(big_endian) {}
  bool has(uint64_t offset, uint64_t count) const {
    return offset <= bytes_.size() && count <= bytes_.size() - offset;
  }
  uint16_t u16(uint64_t offset) const {
    const uint16_t a = at(offset);
    const uint16_t b = at(offset + 1);
    return static_cast<uint16_t>(big_endian_ ? a << 8 | b : b << 8 | a);
  }
  uint32_t u32(uint64_t offset) const {
    const uint32_t a = u16(offset);
    const uint32_t b = u16(offset + 2);
    return big_endian_ ? a << 16 | b : b << 16 | a;
  }

 private:
  uint8_t at(uint64_t offset) const { return std::to_integer<uint8_t>(bytes_[offset]); }
  std::span<const std::byte> bytes_;
  bool big_endian_;
};

}  // namespace

std::optional<int> exif_orientation(std::span<const std::byte> block) {
  // Some writers put the header twice.
  for (int i = 0; i < 2; ++i) {
    if (block.size() >= kExifHeader.size() &&
        std::memcmp(block.data(), kExifHeader.data(), kExifHeader.size()) == 0) {
      block = block.subspan(kExifHeader.size());
    }
  }
  if (block.size() < 8) return std::nullopt;
  const bool big_endian = std::memcmp(block.data(), "MM", 2) == 0;
  if (!big_endian && std::memcmp(block.data(), "II", 2) != 0) return std::nullopt;
  const TiffBlock tiff(block, big_endian);
  if (tiff.u16(2) != 42) return std::nullopt;
  const uint64_t directory = tiff.u32(4);
  if (!tiff.has(directory, 2)) return std::nullopt;
  const uint64_t entries = tiff.u16(directory);
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t entry = directory + 2 + 12 * i;
    if (!tiff.has(entry, 12)) return std::nullopt;
    if (tiff.u16(entry) != kOrientationTag) continue;
    const uint16_t type = tiff.u16(entry + 2);
    if (tiff.u32(entry + 4) != 1) return std::nullopt;
    if (type == kTypeShort) return tiff.u16(entry + 8);
    if (type == kTypeLong) return static_cast<int>(std::min<uint32_t>(tiff.u32(entry + 8), 65535));
    return std::nullopt;
  }
  return std::nullopt;
}

std::optional<int> xmp_orientation(std::string_view packet) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = packet.find(kName); at != std::string_view::npos; at = packet.find(kName, at + 1)) {
    std::string_view rest = packet.substr(at + kName.size());
    if (rest.starts_with("=\"")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with(">")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return std::nullopt;
}

void apply_orientation(int orientation, RgbImage* image) {
  image->exif_orientation = 1;
  if (orientation < 2 || orientation > 8) return;
  image->exif_orientation = orientation;
  const int64_t height = image->height;
  const int64_t width = image->width;
  const bool swap_sides = orientation >= 5;
  // Where stored pixel (y, x) goes: out = start + y * step_y + x * step_x, in pixels of the upright picture.
  const int64_t out_width = swap_sides ? height : width;
  const int64_t out_height = swap_sides ? width : height;
  const int64_t last_x = out_width - 1;
  const int64_t last_y = (out_height - 1) * out_width;
  int64_t start = 0, step_y = 0, step_x = 0;
  switch (orientation) {
    case 2:
      start = last_x, step_y = out_width, step_x = -1;
      break;
    case 3:
      start = last_y + last_x, step_y = -out_width, step_x = -1;
      break;
    case 4:
      start = last_y, step_y = -out_width, step_x = 1;
      break;
    case 5:
      start = 0, step_y = 1, step_x = out_width;
      break;
    case 6:
      start = last_x, step_y = -1, step_x = out_width;
      break;
    case 7:
      start = last_y + last_x, step_y = -1, step_x = -out_width;
      break;
    case 8:
      start = last_y, step_y = 1, step_x = -out_width;
      break;
    default:
      break;
  }
  std::vector<uint8_t> upright(image->rgb.size());
  constexpr int64_t kBlock = 32;  // keeps both sides of a transpose in the cache
  for (int64_t y0 = 0; y0 < height; y0 += kBlock) {
    for (int64_t x0 = 0; x0 < width; x0 += kBlock) {
      for (int64_t y = y0; y < std::min(y0 + kBlock, height); ++y) {
        const uint8_t* src = image->rgb.data() + (y * width + x0) * 3;
        int64_t out = (start + y * step_y + x0 * step_x) * 3;
        for (int64_t x = x0; x < std::min(x0 + kBlock, width); ++x, src += 3, out += step_x * 3) {
          upright[static_cast<size_t>(out)] = src[0];
          upright[static_cast<size_t>(out) + 1] = src[1];
          upright[static_cast<size_t>(out) + 2] = src[2];
        }
      }
    }
  }
  image->rgb = std::move(upright);
  image->width = out_width;
  image->height = out_height;
}

}  // namespace qvl::image
