// Paints on RGB pixels with Cairo, tile by tile: pictures may be wider than a Cairo surface can be, and what nobody
// paints on is not converted.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "qvl/draw/geometry.h"
#include "qvl/image/decode.h"

typedef struct _cairo cairo_t;

namespace qvl::draw {

// Something to paint, in pixels of the picture.
struct Mark {
  std::vector<Rect> covers;  // it changes nothing outside of these
  std::function<void(cairo_t*)> paint;
};

inline constexpr int64_t kTilePx = 1024;

// Paints the marks in their order on the pixels. The size of the tiles, which must be 1..32767, cannot
// be seen in the result. Throws kLimit when Cairo has no memory.
void paint_marks(image::RgbImage& picture, std::span<const Mark> marks, int64_t tile_px = kTilePx);

}  // namespace qvl::draw
