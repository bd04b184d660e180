#include "qvl/draw/canvas.h"

#include <cairo/cairo.h>

#include <memory>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::draw {
namespace {

struct DestroySurface {
  void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
};
struct DestroyContext {
  void operator()(cairo_t* context) const { cairo_destroy(context); }
};

// A Cairo surface over a part of the picture. CAIRO_FORMAT_RGB24: 32 bits a pixel, 0xXXRRGGBB in the machine's order.
class Tile {
 public:
  Tile(image::RgbImage& picture, int64_t x, int64_t y, int64_t width, int64_t height)
      : picture_(picture), x_(x), y_(y), width_(width), height_(height) {
    surface_.reset(cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(width), static_cast<int>(height)));
    check(cairo_surface_status(surface_.get()));
    copy([](uint8_t* rgb, uint32_t& pixel) {
      pixel = static_cast<uint32_t>(rgb[0]) << 16 | static_cast<uint32_t>(rgb[1]) << 8 | rgb[2];
    });
    cairo_surface_mark_dirty(surface_.get());
    context_.reset(cairo_create(surface_.get()));
    cairo_translate(context_.get(), static_cast<double>(-x), static_cast<double>(-y));
  }

  cairo_t* context() { return context_.get(); }

  void write_back() {
    check(cairo_status(context_.get()));
    cairo_surface_flush(surface_.get());
    copy([](uint8_t* rgb, uint32_t& pixel) {
      rgb[0] = static_cast<uint8_t>(pixel >> 16);
      rgb[1] = static_cast<uint8_t>(pixel >> 8);
      rgb[2] = static_cast<uint8_t>(pixel);
    });
  }

 private:
  void check(cairo_status_t status) const {
    if (status == CAIRO_STATUS_SUCCESS) return;
    fail(status == CAIRO_STATUS_NO_MEMORY ? ErrorCode::kLimit : ErrorCode::kInvalidArgument, "draw",
         fmt::format("cannot paint {}x{} pixels: {}", width_, height_, cairo_status_to_string(status)));
  }

  template <typename Fn>
  void copy(Fn fn) {
    uint8_t* pixels = cairo_image_surface_get_data(surface_.get());
    const int stride_bytes = cairo_image_surface_get_stride(surface_.get());
    for (int64_t y = 0; y < height_; ++y) {
      uint8_t* rgb = picture_.rgb.data() + ((y_ + y) * picture_.width + x_) * 3;
      auto* row = reinterpret_cast<uint32_t*>(pixels + y * stride_bytes);
      for (int64_t x = 0; x < width_; ++x) fn(rgb + 3 * x, row[x]);
    }
  }

  image::RgbImage& picture_;
  int64_t x_, y_, width_, height_;
  std::unique_ptr<cairo_surface_t, DestroySurface> surface_;
  std::unique_ptr<cairo_t, DestroyContext> context_;
};

bool touches(const Mark& mark, const Rect& tile) {
  return std::any_of(mark.covers.begin(), mark.covers.end(), [&](const Rect& r) { return overlap(r, tile) > 0; });
}

}  // namespace

void paint_marks(image::RgbImage& picture, std::span<const Mark> marks, int64_t tile_px) {
  std::vector<const Mark*> here;
  for (int64_t y = 0; y < picture.height; y += tile_px) {
    for (int64_t x = 0; x < picture.width; x += tile_px) {
      const int64_t width = std::min(tile_px, picture.width - x), height = std::min(tile_px, picture.height - y);
      const Rect area{static_cast<double>(x), static_cast<double>(y), static_cast<double>(x + width),
                      static_cast<double>(y + height)};
      here.clear();
      for (const Mark& mark : marks) {
        if (touches(mark, area)) here.push_back(&mark);
      }
      if (here.empty()) continue;
      Tile tile(picture, x, y, width, height);
      for (const Mark* mark : here) mark->paint(tile.context());
      tile.write_back();
    }
  }
}

}  // namespace qvl::draw
