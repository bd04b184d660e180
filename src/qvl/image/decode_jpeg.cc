// JPEG by libjpeg: baseline, progressive, arithmetic; grey, YCbCr, RGB, CMYK, YCCK. Spec 3.1.
//
// libjpeg reports a fatal error by a function that must not return, hence setjmp; the frames it jumps over
// hold no C++ objects. Damage that libjpeg would patch over with a warning is fatal here: no half images.
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <optional>

// jpeglib.h needs <cstdio> before it.
#include <jerror.h>
#include <jpeglib.h>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/image/decoders.h"
#include "qvl/image/orientation.h"

namespace qvl::image {
namespace {

// A tiny file can ask for the whole picture to be refined thousands of times; honest encoders use about ten
// scans.
constexpr int kMaxScans = 200;
constexpr std::string_view kXmpHeader("http://ns.adobe.com/xap/1.0/\0", 29);

class JpegDecoder {
 public:
  explicit JpegDecoder(std::span<const std::byte> file) : file_(file) {
    jpeg_.err = jpeg_std_error(&errors_);
    errors_.error_exit = on_error;
    errors_.emit_message = on_message;
    errors_.output_message = [](j_common_ptr) {};
    jpeg_.client_data = this;
  }
  ~JpegDecoder() { jpeg_destroy_decompress(&jpeg_); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  // Each step returns false after a failure described by message().
  bool read_header() {
    if (setjmp(jump_) != 0) return false;
    jpeg_create_decompress(&jpeg_);
    // jpeg_create_decompress clears everything but the error manager and the client data.
    jpeg_mem_src(&jpeg_, reinterpret_cast<const unsigned char*>(file_.data()), file_.size());
    jpeg_save_markers(&jpeg_, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&jpeg_, TRUE);
    jpeg_.out_color_space = jpeg_.num_components == 4 ? JCS_CMYK : JCS_RGB;
    return true;
  }

  bool start() {
    if (setjmp(jump_) != 0) return false;
    progress_.progress_monitor = on_progress;
    jpeg_.progress = &progress_;
    jpeg_start_decompress(&jpeg_);
    return true;
  }

  // `pixels` has room for rows of output_width * output_components bytes.
  bool read_row(uint8_t* pixels) {
    if (setjmp(jump_) != 0) return false;
    JSAMPROW row = pixels;
    return jpeg_read_scanlines(&jpeg_, &row, 1) == 1;
  }

  // Reads on to the end marker.
  bool finish() {
    if (setjmp(jump_) != 0) return false;
    return jpeg_finish_decompress(&jpeg_) == TRUE;
  }

  const jpeg_decompress_struct& info() const { return jpeg_; }
  int error_code() const { return error_code_; }
  const char* message() const { return message_; }

 private:
  static JpegDecoder* self(j_common_ptr jpeg) { return static_cast<JpegDecoder*>(jpeg->client_data); }

  [[noreturn]] static void on_error(j_common_ptr jpeg) {
    JpegDecoder* decoder = self(jpeg);
    decoder->error_code_ = jpeg->err->msg_code;
    jpeg->err->format_message(jpeg, decoder->message_);
    std::longjmp(decoder->jump_, 1);
  }

  static void on_message(j_common_ptr jpeg, int level) {
    if (level >= 0) return;
    switch (jpeg->err->msg_code) {
      case JWRN_ADOBE_XFORM:
      case JWRN_JFIF_MAJOR:
        return;
      case JWRN_EXTRANEOUS_DATA:
        // Stuffing that many cameras leave between header segments or before the end marker; the pixels are
        // complete. Before any other marker it means that coded data was lost.
        if (jpeg->err->msg_parm.i[1] == JPEG_EOI || !self(jpeg)->inside_scans()) return;
        break;
      default:
        break;
    }
    on_error(jpeg);
  }

  bool inside_scans() const { return jpeg_.input_scan_number > 0; }

  static void on_progress(j_common_ptr jpeg) {
    JpegDecoder* decoder = self(jpeg);
    if (decoder->jpeg_.input_scan_number <= kMaxScans) return;
    decoder->error_code_ = 0;
    std::snprintf(decoder->message_, sizeof(decoder->message_), "more than %d scans", kMaxScans);
    std::longjmp(decoder->jump_, 1);
  }

  std::span<const std::byte> file_;
  jpeg_decompress_struct jpeg_{};
  jpeg_error_mgr errors_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_{};
  int error_code_ = 0;
  char message_[JMSG_LENGTH_MAX] = {};
};

// Pillow takes every four-channel JPEG as inverted (Adobe's habit) and converts with rounded products.
void cmyk_to_rgb(const uint8_t* inverted, int64_t count, uint8_t* rgb) {
  for (int64_t i = 0; i < count; ++i) {
    const int not_black = inverted[4 * i + 3];
    for (int c = 0; c < 3; ++c) {
      const int ink = 255 - inverted[4 * i + c];
      const int product = ink * not_black + 128;
      const int value = not_black - (((product >> 8) + product) >> 8);
      rgb[3 * i + c] = static_cast<uint8_t>(value < 0 ? 0 : value);
    }
  }
}

std::optional<int> find_orientation(const jpeg_decompress_struct& jpeg) {
  std::optional<int> from_exif;
  std::optional<int> from_xmp;
  bool seen_exif = false;
  for (const jpeg_marker_struct* marker = jpeg.marker_list; marker != nullptr; marker = marker->next) {
    const std::span<const std::byte> data(reinterpret_cast<const std::byte*>(marker->data),
                                          marker->data_length);
    const std::string_view text(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (!seen_exif && text.starts_with(std::string_view("Exif\0\0", 6))) {
      seen_exif = true;
      from_exif = exif_orientation(data);
    } else if (!from_xmp && text.starts_with(kXmpHeader)) {
      from_xmp = xmp_orientation(text.substr(kXmpHeader.size()));
    }
  }
  return from_exif ? from_exif : from_xmp;
}

[[noreturn]] void fail_jpeg(const JpegDecoder& decoder, std::string_view name) {
  switch (decoder.error_code()) {
    case JERR_BAD_PRECISION:
    case JERR_SOF_UNSUPPORTED:
    case JERR_CONVERSION_NOTIMPL:
      fail(ErrorCode::kUnsupported, name, "JPEG variant", "8-bit baseline or progressive, 1, 3 or 4 channels",
           decoder.message(), "convert the file");
    case JERR_OUT_OF_MEMORY:
      fail(ErrorCode::kLimit, name, "not enough memory to decode the image");
    default:
      fail_corrupt(ImageFormat::kJpeg, name, decoder.message());
  }
}

}  // namespace

RgbImage decode_jpeg(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name) {
  JpegDecoder decoder(file);
  if (!decoder.read_header()) fail_jpeg(decoder, name);
  const jpeg_decompress_struct& info = decoder.info();
  check_dimensions(info.image_width, info.image_height, limits, name);
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4) {
    fail(ErrorCode::kUnsupported, name, "JPEG channels", "1, 3 or 4", std::to_string(info.num_components),
         "convert the file");
  }
  if (!decoder.start()) fail_jpeg(decoder, name);
  RgbImage image = allocate_image(info.output_width, info.output_height, ImageFormat::kJpeg);
  image.exif_orientation = find_orientation(info).value_or(1);
  const bool cmyk = info.out_color_space == JCS_CMYK;
  std::vector<uint8_t> cmyk_row(cmyk ? static_cast<size_t>(image.width) * 4 : 0);
  for (int64_t y = 0; y < image.height; ++y) {
    uint8_t* rgb = image.rgb.data() + y * image.width * 3;
    if (!decoder.read_row(cmyk ? cmyk_row.data() : rgb)) fail_jpeg(decoder, name);
    if (cmyk) cmyk_to_rgb(cmyk_row.data(), image.width, rgb);
  }
  if (!decoder.finish()) fail_jpeg(decoder, name);
  return image;
}

}  // namespace qvl::image
