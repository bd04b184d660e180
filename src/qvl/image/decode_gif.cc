// GIF by giflib: the first frame on its canvas, as Pillow renders it. Spec 3.1.
//
// The canvas is the logical screen, grown if the frame sticks out. What the frame does not cover has the
// transparent index if there is one, else index 0; transparency itself is dropped, so the palette colour
// shows.
#include <gif_lib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "qvl/base/error.h"
#include "qvl/image/decoders.h"

namespace qvl::image {
namespace {

struct Source {
  std::span<const std::byte> bytes;
  size_t position = 0;
};

int on_read(GifFileType* gif, GifByteType* out, int count) {
  auto* source = static_cast<Source*>(gif->UserData);
  const size_t taken =
      std::min(static_cast<size_t>(std::max(count, 0)), source->bytes.size() - source->position);
  if (taken > 0) std::memcpy(out, source->bytes.data() + source->position, taken);
  source->position += taken;
  return static_cast<int>(taken);
}

struct CloseGif {
  void operator()(GifFileType* gif) const { DGifCloseFile(gif, nullptr); }
};

std::string error_text(int code) {
  const char* text = GifErrorString(code);
  return text != nullptr ? text : "error " + std::to_string(code);
}

}  // namespace

RgbImage decode_gif(std::span<const std::byte> file, const DecodeLimits& limits, std::string_view name) {
  constexpr ImageFormat kFormat = ImageFormat::kGif;
  Source source{file};
  int error = 0;
  const std::unique_ptr<GifFileType, CloseGif> gif(DGifOpen(&source, on_read, &error));
  if (gif == nullptr) fail_corrupt(kFormat, name, error_text(error));
  const auto require = [&](int status) {
    if (status != GIF_OK) fail_corrupt(kFormat, name, error_text(gif->Error));
  };

  // To the first image; on the way, the last graphic control block gives the transparent index.
  int transparent_index = -1;
  for (;;) {
    GifRecordType record = UNDEFINED_RECORD_TYPE;
    require(DGifGetRecordType(gif.get(), &record));
    if (record == IMAGE_DESC_RECORD_TYPE) break;
    if (record == TERMINATE_RECORD_TYPE) fail_corrupt(kFormat, name, "no image in it");
    if (record != EXTENSION_RECORD_TYPE) fail_corrupt(kFormat, name, "unknown block");
    int code = 0;
    GifByteType* block = nullptr;
    require(DGifGetExtension(gif.get(), &code, &block));
    while (block != nullptr) {
      // block[0] is its length; bit 0 of the flags says whether there is a transparent index.
      if (code == GRAPHICS_EXT_FUNC_CODE && block[0] >= 4 && (block[1] & 1) != 0)
        transparent_index = block[4];
      require(DGifGetExtensionNext(gif.get(), &block));
    }
  }
  require(DGifGetImageDesc(gif.get()));
  const GifImageDesc& frame = gif->Image;
  if (frame.Width < 1 || frame.Height < 1 || frame.Left < 0 || frame.Top < 0) {
    fail_corrupt(kFormat, name, "empty first frame");
  }
  const int64_t width = std::max<int64_t>(gif->SWidth, int64_t{frame.Left} + frame.Width);
  const int64_t height = std::max<int64_t>(gif->SHeight, int64_t{frame.Top} + frame.Height);
  check_dimensions(width, height, limits, name);

  const ColorMapObject* colors = frame.ColorMap != nullptr ? frame.ColorMap : gif->SColorMap;
  Palette palette = colors != nullptr ? Palette() : Palette::greys();
  if (colors != nullptr) {
    for (int i = 0; i < std::min(colors->ColorCount, 256); ++i) {
      palette.set(static_cast<size_t>(i), colors->Colors[i].Red, colors->Colors[i].Green,
                  colors->Colors[i].Blue);
    }
  }

  RgbImage image = allocate_image(width, height, kFormat);
  const std::vector<uint8_t> background(static_cast<size_t>(width),
                                        static_cast<uint8_t>(std::max(transparent_index, 0)));
  for (int64_t y = 0; y < height; ++y)
    palette.paint(background.data(), width, image.rgb.data() + y * width * 3);

  struct Pass {
    int start;
    int step;
  };
  constexpr std::array<Pass, 4> kInterlaced = {{{0, 8}, {4, 8}, {2, 4}, {1, 2}}};
  constexpr std::array<Pass, 1> kPlain = {{{0, 1}}};
  std::vector<uint8_t> row(static_cast<size_t>(frame.Width));
  for (const Pass& pass :
       frame.Interlace ? std::span<const Pass>(kInterlaced) : std::span<const Pass>(kPlain)) {
    for (int64_t y = pass.start; y < frame.Height; y += pass.step) {
      require(DGifGetLine(gif.get(), row.data(), frame.Width));
      palette.paint(row.data(), frame.Width, image.rgb.data() + ((frame.Top + y) * width + frame.Left) * 3);
    }
  }
  return image;
}

}  // namespace qvl::image
