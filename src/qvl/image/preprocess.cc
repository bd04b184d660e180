// A still image from decoded pixels to pixel_values; see preprocess.h. Spec 3.
#include "qvl/image/preprocess.h"

#include <array>

#include "qvl/base/error.h"
#include "qvl/image/patches.h"
#include "qvl/image/resize.h"
#include "qvl/image/smart_resize.h"

namespace qvl::image {

PreprocessedImage preprocess_image(const RgbImage& image, const ImageProcessorConfig& config,
                                   const PixelOverrides& overrides, ThreadPool* pool) {
  const ImageProcessorConfig effective = with_overrides(config, overrides);
  const ImageSize size = smart_resize(image.height, image.width, effective.resize_factor_px(),
                                      effective.min_pixels, effective.max_pixels);
  PreprocessedImage result;
  result.width = image.width;
  result.height = image.height;
  result.resized_width = size.width;
  result.resized_height = size.height;
  const bool keep = size.height == image.height && size.width == image.width;
  std::vector<uint8_t> resized;
  if (!keep) resized = resize_bicubic_u8(image.rgb, image.height, image.width, size.height, size.width, pool);
  const std::array<std::span<const uint8_t>, 1> frames = {keep ? image.rgb : resized};
  result.pixel_values = patchify(frames, size.height, size.width, effective, pool, &result.grid);
  return result;
}

}  // namespace qvl::image
