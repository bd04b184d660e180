// WebP by libwebp: lossy, lossless, with or without alpha (dropped, not blended); the first frame of an
// animation, on its canvas. Spec 3.1.
#include <webp/decode.h>
#include <webp/demux.h>

#include <cstring>
#include <memory>
#include <optional>

#include "qvl/base/error.h"
#include "qvl/image/decoders.h"
#include "qvl/image/orientation.h"

namespace qvl::image {
namespace {

struct DeleteDemuxer {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
struct DeleteAnimDecoder {
  void operator()(WebPAnimDecoder* decoder) const { WebPAnimDecoderDelete(decoder); }
};

const char* status_text(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OUT_OF_MEMORY:
      return "not enough memory";
    case VP8_STATUS_BITSTREAM_ERROR:
      return "damaged bit stream";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return "unsupported feature";
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
      return "unexpected end of file";
    default:
      return "invalid header";
  }
}

std::optional<std::span<const std::byte>> find_chunk(const WebPDemuxer* demuxer, const char* fourcc) {
  WebPChunkIterator chunk;
  if (WebPDemuxGetChunk(demuxer, fourcc, 1, &chunk) == 0) return std::nullopt;
  // The bytes belong to the file, not to the iterator.
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(chunk.chunk.bytes),
                                         chunk.chunk.size);
  WebPDemuxReleaseChunkIterator(&chunk);
  return bytes;
}

int find_orientation(const WebPDemuxer* demuxer) {
  if (const auto exif = find_chunk(demuxer, "EXIF")) {
    if (const std::optional<int> value = exif_orientation(*exif)) return *value;
  }
  if (const auto xmp = find_chunk(demuxer, "XMP ")) {
    const std::string_view packet(reinterpret_cast<const char*>(xmp->data()), xmp->size());
    if (const std::optional<int> value = xmp_orientation(packet)) return *value;
  }
  return 1;
}

void decode_first_frame(const WebPData& data, RgbImage* image, std::string_view name) {
  WebPAnimDecoderOptions options;
  if (WebPAnimDecoderOptionsInit(&options) == 0) {
    fail(ErrorCode::kUnsupported, name, "libwebpdemux has another version than its header");
  }
  options.color_mode = MODE_RGBA;
  options.use_threads = 0;
  const std::unique_ptr<WebPAnimDecoder, DeleteAnimDecoder> decoder(WebPAnimDecoderNew(&data, &options));
  uint8_t* rgba = nullptr;
  int timestamp_ms = 0;
  if (decoder == nullptr || WebPAnimDecoderGetNext(decoder.get(), &rgba, &timestamp_ms) == 0) {
    fail_corrupt(ImageFormat::kWebp, name, "the first frame cannot be decoded");
  }
  const int64_t count = image->width * image->height;
  for (int64_t i = 0; i < count; ++i) std::memcpy(image->rgb.data() + 3 * i, rgba + 4 * i, 3);
}

}  // namespace

RgbImage decode_webp(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name) {
  constexpr ImageFormat kFormat = ImageFormat::kWebp;
  const auto* bytes = reinterpret_cast<const uint8_t*>(file.data());
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(bytes, file.size(), &features);
  if (status != VP8_STATUS_OK) fail_corrupt(kFormat, name, status_text(status));
  check_dimensions(features.width, features.height, limits, name);
  ByteReader header(file, kFormat, name);
  header.seek(4);
  if (header.u32_le() > file.size() - 8) fail_corrupt(kFormat, name, "unexpected end of file");

  const WebPData data = {bytes, file.size()};
  const std::unique_ptr<WebPDemuxer, DeleteDemuxer> demuxer(WebPDemux(&data));
  if (demuxer == nullptr) fail_corrupt(kFormat, name, "damaged container");
  RgbImage image = allocate_image(features.width, features.height, kFormat);
  image.exif_orientation = find_orientation(demuxer.get());
  if (features.has_animation != 0) {
    decode_first_frame(data, &image, name);
    return image;
  }
  WebPDecoderConfig config;
  if (WebPInitDecoderConfig(&config) == 0) {
    fail(ErrorCode::kUnsupported, name, "libwebp has another version than its header");
  }
  config.output.colorspace = MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = image.rgb.data();
  config.output.u.RGBA.stride = static_cast<int>(image.width * 3);
  config.output.u.RGBA.size = image.rgb.size();
  const VP8StatusCode decoded = WebPDecode(bytes, file.size(), &config);
  if (decoded != VP8_STATUS_OK) fail_corrupt(kFormat, name, status_text(decoded));
  return image;
}

}  // namespace qvl::image
