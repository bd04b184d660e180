// EXIF orientation: finding the value in a metadata block and turning the picture upright. Spec 3.1.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

#include "qvl/image/decode.h"

namespace qvl::image {

// The orientation tag of an EXIF block (a TIFF structure, with or without the "Exif\0\0" in front). Nothing
// if there is none or the block is damaged: metadata never makes an image unreadable. Values outside 1..8 are
// returned as they are and mean nothing.
std::optional<int> exif_orientation(std::span<const std::byte> block);

// tiff:Orientation of an XMP packet; consulted where EXIF has no tag, as Pillow does.
std::optional<int> xmp_orientation(std::string_view packet);

// Rows, columns or both swapped or mirrored so that the picture is upright; values outside 2..8 change
// nothing. Sets image.exif_orientation (1 for a value without meaning).
void apply_orientation(int orientation, RgbImage* image);

}  // namespace qvl::image
