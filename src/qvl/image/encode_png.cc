// As in decode_png.cc, errors leave libpng by a jump over frames without C++ objects.
#include "qvl/image/encode_png.h"

#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <exception>

#include "qvl/base/atomic_file.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::image {
namespace {

// Drawn pictures are looked at, not archived: level 3 takes a third of the default's time for a few per cent of bytes.
constexpr int kCompressionLevel = 3;

class PngEncoder {
 public:
  PngEncoder(const RgbImage& image, const ByteSink& sink) : image_(image), sink_(sink) {}
  ~PngEncoder() { png_destroy_write_struct(&png_, &info_); }
  PngEncoder(const PngEncoder&) = delete;
  PngEncoder& operator=(const PngEncoder&) = delete;

  void encode() {
    if (!write()) {
      if (thrown_) std::rethrow_exception(thrown_);
      fail(ErrorCode::kIo, "PNG", fmt::format("cannot encode {}x{} pixels: {}", image_.width, image_.height, message_));
    }
  }

 private:
  static PngEncoder* self(png_structp png) { return static_cast<PngEncoder*>(png_get_error_ptr(png)); }

  [[noreturn]] static void on_error(png_structp png, png_const_charp message) {
    PngEncoder* encoder = self(png);
    std::snprintf(encoder->message_, sizeof(encoder->message_), "%s", message);
    std::longjmp(encoder->jump_, 1);
  }

  // False when the sink threw.
  bool pass_on(const uint8_t* data, size_t count) noexcept {
    try {
      sink_(std::as_bytes(std::span(data, count)));
      return true;
    } catch (...) {
      thrown_ = std::current_exception();
      return false;
    }
  }

  static void on_write(png_structp png, png_bytep data, size_t count) {
    if (!self(png)->pass_on(data, count)) png_error(png, "the output failed");
  }

  bool out_of_memory() {
    std::snprintf(message_, sizeof(message_), "not enough memory");
    return false;
  }

  bool write() {
    png_ = png_create_write_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    if (png_ == nullptr) return out_of_memory();
    info_ = png_create_info_struct(png_);
    if (info_ == nullptr) return out_of_memory();
    if (setjmp(jump_) != 0) return false;
    png_set_write_fn(png_, this, on_write, [](png_structp) {});
    png_set_compression_level(png_, kCompressionLevel);
    png_set_IHDR(png_, info_, static_cast<png_uint_32>(image_.width), static_cast<png_uint_32>(image_.height), 8,
                 PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png_, info_);
    for (int64_t y = 0; y < image_.height; ++y) png_write_row(png_, image_.rgb.data() + y * image_.width * 3);
    png_write_end(png_, info_);
    return true;
  }

  const RgbImage& image_;
  const ByteSink& sink_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::exception_ptr thrown_;
  std::jmp_buf jump_{};
  char message_[256] = {};
};

}  // namespace

void encode_png(const RgbImage& image, const ByteSink& sink) {
  if (image.width < 1 || image.height < 1 || image.rgb.size() != static_cast<size_t>(image.width * image.height * 3)) {
    fail(ErrorCode::kInvalidArgument, "PNG", "pixels", "height x width x 3 bytes",
         fmt::format("{} bytes for {}x{}", image.rgb.size(), image.width, image.height));
  }
  PngEncoder(image, sink).encode();
}

void write_png(const std::filesystem::path& path, const RgbImage& image) {
  AtomicFile file(path);
  encode_png(image, [&file](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
}

}  // namespace qvl::image
