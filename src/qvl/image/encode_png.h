// Pixels to a PNG file, by libpng: 8-bit RGB, without loss. The exit of the image path, for pictures that are drawn on.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>

#include "qvl/image/decode.h"

namespace qvl::image {

using ByteSink = std::function<void(std::span<const std::byte>)>;

// Hands the file to `sink` piece by piece, so that it is never whole in memory. What the sink throws passes through.
// The pixels are written as they are (upright), without orientation, colour profile or any other metadata. Throws
// kInvalidArgument when the sides are below 1 or rgb does not hold height x width x 3 bytes.
void encode_png(const RgbImage& image, const ByteSink& sink);

// The file appears whole or not at all, and replaces one that is there. Throws also kIo.
void write_png(const std::filesystem::path& path, const RgbImage& image);

}  // namespace qvl::image
