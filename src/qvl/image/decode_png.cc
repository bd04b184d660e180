// PNG by libpng: every colour type and depth, interlaced or not; for an animation the default image.
// Spec 3.1.
//
// Samples are unpacked but colours are not touched by libpng: the palette, the depth and alpha rules are
// Pillow's. As in decode_jpeg.cc, errors leave libpng by a jump over frames without C++ objects.
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <optional>

#include "qvl/base/error.h"
#include "qvl/image/decoders.h"
#include "qvl/image/orientation.h"

namespace qvl::image {
namespace {

// Bounds what a compressed text chunk may expand to.
constexpr png_alloc_size_t kMaxChunkBytes = 8 << 20;

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The bytes of a "Raw profile": three lines of heading, then hexadecimal digits. Empty if it is anything
// else.
std::vector<std::byte> raw_profile(std::string_view text) {
  for (int line = 0; line < 3; ++line) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return {};
    text.remove_prefix(end + 1);
  }
  std::vector<std::byte> bytes;
  int digits = 0;
  int value = 0;
  for (const char c : text) {
    if (c == '\n') continue;
    const int digit = hex_digit(c);
    if (digit < 0) return {};
    value = value * 16 + digit;
    if (++digits % 2 == 0) {
      bytes.push_back(static_cast<std::byte>(value));
      value = 0;
    }
  }
  return bytes;
}

class PngDecoder {
 public:
  explicit PngDecoder(std::span<const std::byte> file) : file_(file) {}
  ~PngDecoder() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;

  // Each step returns false after a failure described by message().
  bool read_header() {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    if (png_ == nullptr) return out_of_memory();
    info_ = png_create_info_struct(png_);
    if (info_ == nullptr) return out_of_memory();
    if (setjmp(jump_) != 0) return false;
    // Width and height are checked against our own limits as soon as they are known.
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_chunk_malloc_max(png_, kMaxChunkBytes);
    png_set_chunk_cache_max(png_, 64);
    // Damage in a chunk that is not used must not make the picture unreadable, and cannot if it is not looked
    // at.
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
    static constexpr png_byte kIgnored[] =
        "bKGD\0cHRM\0gAMA\0hIST\0iCCP\0oFFs\0pCAL\0pHYs\0sBIT\0sCAL\0sPLT\0sRGB\0tIME\0tRNS";
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, kIgnored, sizeof(kIgnored) / 5);
    png_set_read_fn(png_, this, on_read);
    png_read_info(png_, info_);
    png_get_IHDR(png_, info_, &width_, &height_, &depth_, &color_type_, &interlace_, nullptr, nullptr);
    return true;
  }

  bool start() {
    if (setjmp(jump_) != 0) return false;
    if (depth_ < 8) png_set_packing(png_);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    row_bytes_ = png_get_rowbytes(png_, info_);
    png_get_PLTE(png_, info_, &palette_, &palette_size_);
    return true;
  }

  // One pass over one row of row_bytes() bytes.
  bool read_row(uint8_t* row) {
    if (setjmp(jump_) != 0) return false;
    png_read_row(png_, row, nullptr);
    return true;
  }

  // Reads on to the end chunk.
  bool finish() {
    if (setjmp(jump_) != 0) return false;
    png_read_end(png_, info_);
    return true;
  }

  int64_t width() const { return width_; }
  int64_t height() const { return height_; }
  int depth_bits() const { return depth_; }
  int color_type() const { return color_type_; }
  int passes() const { return interlace_ == PNG_INTERLACE_ADAM7 ? PNG_INTERLACE_ADAM7_PASSES : 1; }
  size_t row_bytes() const { return row_bytes_; }
  const char* message() const { return message_; }

  Palette palette() const {
    Palette palette;
    for (int i = 0; i < std::min(palette_size_, 256); ++i) {
      palette.set(static_cast<size_t>(i), palette_[i].red, palette_[i].green, palette_[i].blue);
    }
    return palette;
  }

  std::optional<int> orientation() {
    png_bytep exif = nullptr;
    png_uint_32 exif_size = 0;
    std::optional<int> found;
    if (png_get_eXIf_1(png_, info_, &exif_size, &exif) != 0) {
      found = exif_orientation(std::as_bytes(std::span(exif, exif_size)));
    }
    png_textp texts = nullptr;
    int text_count = 0;
    png_get_text(png_, info_, &texts, &text_count);
    // Where there is no eXIf chunk: ImageMagick's way of storing the same block, then XMP.
    const auto find_text = [&](const char* key) -> const char* {
      for (int i = 0; i < text_count; ++i) {
        if (std::strcmp(texts[i].key, key) == 0 && texts[i].text != nullptr) return texts[i].text;
      }
      return nullptr;
    };
    if (const char* profile = find_text("Raw profile type exif"); exif == nullptr && profile != nullptr) {
      found = exif_orientation(raw_profile(profile));
    }
    if (const char* packet = find_text("XML:com.adobe.xmp"); !found && packet != nullptr) {
      found = xmp_orientation(packet);
    }
    return found;
  }

 private:
  static PngDecoder* self(png_structp png) { return static_cast<PngDecoder*>(png_get_error_ptr(png)); }

  [[noreturn]] static void on_error(png_structp png, png_const_charp message) {
    PngDecoder* decoder = self(png);
    std::snprintf(decoder->message_, sizeof(decoder->message_), "%s", message);
    std::longjmp(decoder->jump_, 1);
  }

  static void on_read(png_structp png, png_bytep out, size_t count) {
    PngDecoder* decoder = self(png);
    if (count > decoder->file_.size() - decoder->position_) png_error(png, "unexpected end of file");
    std::memcpy(out, decoder->file_.data() + decoder->position_, count);
    decoder->position_ += count;
  }

  bool out_of_memory() {
    std::snprintf(message_, sizeof(message_), "not enough memory");
    return false;
  }

  std::span<const std::byte> file_;
  size_t position_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  png_uint_32 width_ = 0;
  png_uint_32 height_ = 0;
  int depth_ = 0;
  int color_type_ = 0;
  int interlace_ = 0;
  size_t row_bytes_ = 0;
  png_colorp palette_ = nullptr;
  int palette_size_ = 0;
  std::jmp_buf jump_{};
  char message_[256] = {};
};

// Turns a row of unpacked samples into RGB.
class RowConverter {
 public:
  explicit RowConverter(const PngDecoder& png)
      : width_(png.width()), depth_bits_(png.depth_bits()), color_type_(png.color_type()) {
    if (color_type_ == PNG_COLOR_TYPE_PALETTE) {
      palette_ = png.palette();
      return;
    }
    // Grey of at most 8 bits: 255 / (levels - 1) is a whole number for 1, 2, 4 and 8 bits.
    if (color_type_ == PNG_COLOR_TYPE_GRAY && depth_bits_ <= 8) {
      const int levels = 1 << depth_bits_;
      for (int i = 0; i < levels; ++i) {
        const auto grey = static_cast<uint8_t>(i * (255 / (levels - 1)));
        palette_.set(static_cast<size_t>(i), grey, grey, grey);
      }
    }
  }

  void convert(const uint8_t* row, uint8_t* rgb) const {
    const int64_t sample_bytes = depth_bits_ == 16 ? 2 : 1;
    switch (color_type_) {
      case PNG_COLOR_TYPE_PALETTE:
        palette_.paint(row, width_, rgb);
        return;
      case PNG_COLOR_TYPE_GRAY:
        if (depth_bits_ < 16) {
          palette_.paint(row, width_, rgb);
        } else {
          // The one place where 16 bits are clipped instead of shifted (spec 3.1).
          for (int64_t x = 0; x < width_; ++x) {
            std::memset(rgb + 3 * x, row[2 * x] != 0 ? 255 : row[2 * x + 1], 3);
          }
        }
        return;
      case PNG_COLOR_TYPE_GRAY_ALPHA:
        for (int64_t x = 0; x < width_; ++x) std::memset(rgb + 3 * x, row[2 * x * sample_bytes], 3);
        return;
      default: {
        const int64_t step = (color_type_ == PNG_COLOR_TYPE_RGB_ALPHA ? 4 : 3) * sample_bytes;
        for (int64_t x = 0; x < width_; ++x) {
          for (int64_t c = 0; c < 3; ++c) rgb[3 * x + c] = row[x * step + c * sample_bytes];
        }
      }
    }
  }

 private:
  int64_t width_;
  int depth_bits_;
  int color_type_;
  Palette palette_;
};

}  // namespace

RgbImage decode_png(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name) {
  constexpr ImageFormat kFormat = ImageFormat::kPng;
  PngDecoder png(file);
  if (!png.read_header()) fail_corrupt(kFormat, name, png.message());
  check_dimensions(png.width(), png.height(), limits, name);
  if (!png.start()) fail_corrupt(kFormat, name, png.message());
  RgbImage image = allocate_image(png.width(), png.height(), kFormat);
  const RowConverter converter(png);
  if (png.passes() == 1) {
    std::vector<uint8_t> row(png.row_bytes());
    for (int64_t y = 0; y < image.height; ++y) {
      if (!png.read_row(row.data())) fail_corrupt(kFormat, name, png.message());
      converter.convert(row.data(), image.rgb.data() + y * image.width * 3);
    }
  } else {
    // Each pass fills in some samples of some rows, so all rows are kept.
    std::vector<uint8_t> rows(png.row_bytes() * static_cast<size_t>(image.height));
    for (int pass = 0; pass < png.passes(); ++pass) {
      for (int64_t y = 0; y < image.height; ++y) {
        if (!png.read_row(rows.data() + static_cast<size_t>(y) * png.row_bytes())) {
          fail_corrupt(kFormat, name, png.message());
        }
      }
    }
    for (int64_t y = 0; y < image.height; ++y) {
      converter.convert(rows.data() + static_cast<size_t>(y) * png.row_bytes(),
                        image.rgb.data() + y * image.width * 3);
    }
  }
  if (!png.finish()) fail_corrupt(kFormat, name, png.message());
  image.exif_orientation = png.orientation().value_or(1);
  return image;
}

}  // namespace qvl::image
