#include "qvl/engine/visual_features.h"

#include <cstring>
#include <string>

#include "qvl/base/error.h"

namespace qvl::engine {
namespace {

int64_t feature_rows(const VisionFeatures* features) {
  return features ? features->merged.dim(0) : 0;
}

void check(const char* kind, const VisionFeatures* features, int64_t placeholders, int64_t width) {
  const int64_t rows = feature_rows(features);
  if (rows != placeholders) {
    fail(ErrorCode::kMismatch, "prompt", std::string(kind) + " placeholder tokens",
         std::to_string(rows) + " (one per merged token)", std::to_string(placeholders));
  }
  if (features && rows > 0 && features->merged.dim(1) != width) {
    fail(ErrorCode::kMismatch, "prompt", std::string(kind) + " feature width", std::to_string(width),
         std::to_string(features->merged.dim(1)));
  }
}

// Copies one row, converting the element type.
void copy_row(const Tensor& src, int64_t src_row, Tensor& dst, int64_t dst_row) {
  const int64_t width = dst.dim(1);
  const auto* in = static_cast<const std::byte*>(src.data()) +
                   static_cast<size_t>(src_row * width) * dtype_size_bytes(src.dtype());
  auto* out = static_cast<std::byte*>(dst.data()) +
              static_cast<size_t>(dst_row * width) * dtype_size_bytes(dst.dtype());
  convert_elements(in, src.dtype(), out, dst.dtype(), width);
}

}  // namespace

VisualRows place_visual_features(std::span<const int32_t> ids, int32_t image_token_id, int32_t video_token_id,
                                 const VisionFeatures* images, const VisionFeatures* videos, Tensor& embeds) {
  if (embeds.shape().size() != 2 || embeds.dim(0) != static_cast<int64_t>(ids.size())) {
    fail(ErrorCode::kMismatch, "prompt", "embedding rows", std::to_string(ids.size()),
         shape_string(embeds.shape()));
  }
  const int64_t width = embeds.dim(1);
  VisualRows result;
  int64_t image_count = 0;
  int64_t video_count = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] == image_token_id) {
      ++image_count;
    } else if (ids[i] == video_token_id) {
      ++video_count;
    } else {
      continue;
    }
    result.rows.push_back(static_cast<int64_t>(i));
  }
  check("image", images, image_count, width);
  check("video", videos, video_count, width);
  if (result.rows.empty()) return result;

  const size_t levels = (images ? images : videos)->deepstack.size();
  for (size_t j = 0; j < levels; ++j) {
    result.deepstack.emplace_back(embeds.dtype(), Shape{static_cast<int64_t>(result.rows.size()), width});
  }
  int64_t next_image = 0;
  int64_t next_video = 0;
  for (size_t n = 0; n < result.rows.size(); ++n) {
    const bool is_image = ids[static_cast<size_t>(result.rows[n])] == image_token_id;
    const VisionFeatures& features = is_image ? *images : *videos;
    const int64_t row = is_image ? next_image++ : next_video++;
    copy_row(features.merged, row, embeds, result.rows[n]);
    for (size_t j = 0; j < levels; ++j)
      copy_row(features.deepstack[j], row, result.deepstack[j], static_cast<int64_t>(n));
  }
  return result;
}

}  // namespace qvl::engine
