#include "qvl/engine/stage_input.h"

#include <string>

#include "qvl/base/error.h"

namespace qvl::engine {

int64_t check_vision_input(std::span<const float> pixels, std::span<const image::Grid> grids,
                           const model::VisionConfig& config) {
  const int64_t merge = config.spatial_merge_size;
  int64_t patches = 0;
  for (const image::Grid& g : grids) {
    if (g.t < 1 || g.h < merge || g.w < merge || g.h % merge != 0 || g.w % merge != 0) {
      fail(ErrorCode::kMismatch, "vision", "grid (t, h, w)",
           "positive, h and w multiples of " + std::to_string(merge),
           "(" + std::to_string(g.t) + ", " + std::to_string(g.h) + ", " + std::to_string(g.w) + ")");
    }
    patches += g.patches();
  }
  if (patches == 0) fail(ErrorCode::kMismatch, "vision", "number of images", "at least 1", "0");
  if (static_cast<int64_t>(pixels.size()) != patches * config.patch_width()) {
    fail(ErrorCode::kMismatch, "vision", "pixel values",
         shape_string({patches, config.patch_width()}) + " for these grids",
         std::to_string(pixels.size()) + " values");
  }
  return patches;
}

void check_decoder_input(const DecoderInput& input, const model::TextConfig& config, DType activation) {
  if (!input.embeds) fail(ErrorCode::kInvalidArgument, "decoder", "no embeddings given");
  const Tensor& e = *input.embeds;
  if (e.shape().size() != 2 || e.dim(0) < 1 || e.dim(1) != config.hidden_size || e.dtype() != activation) {
    fail(ErrorCode::kMismatch, "decoder", "embeddings",
         "[S, " + std::to_string(config.hidden_size) + "] " + std::string(dtype_name(activation)),
         shape_string(e.shape()) + " " + std::string(dtype_name(e.dtype())));
  }
  const int64_t rows = e.dim(0);
  for (const auto& axis : input.positions) {
    if (static_cast<int64_t>(axis.size()) != rows) {
      fail(ErrorCode::kMismatch, "decoder", "position ids", "3 x " + std::to_string(rows),
           std::to_string(axis.size()));
    }
  }
  if (input.decode && rows > kMaxDecodeRows) {
    fail(ErrorCode::kInvalidArgument, "decoder", "rows of a decode step",
         "at most " + std::to_string(kMaxDecodeRows), std::to_string(rows));
  }
  if (static_cast<int64_t>(input.deepstack.size()) > config.num_layers) {
    fail(ErrorCode::kMismatch, "decoder", "DeepStack levels", "at most " + std::to_string(config.num_layers),
         std::to_string(input.deepstack.size()));
  }
  for (size_t i = 0; i < input.visual_rows.size(); ++i) {
    const int64_t r = input.visual_rows[i];
    if (r < 0 || r >= rows || (i > 0 && r <= input.visual_rows[i - 1])) {
      fail(ErrorCode::kInvalidArgument, "decoder", "visual rows",
           "ascending, in 0.." + std::to_string(rows - 1), std::to_string(r));
    }
  }
  if (input.visual_rows.empty()) return;
  for (const Tensor& d : input.deepstack) {
    if (d.shape().size() != 2 || d.dim(1) != config.hidden_size || d.dtype() != activation ||
        input.deepstack_offset < 0 ||
        input.deepstack_offset + static_cast<int64_t>(input.visual_rows.size()) > d.dim(0)) {
      fail(ErrorCode::kMismatch, "decoder", "DeepStack features",
           "at least " +
               std::to_string(input.deepstack_offset + static_cast<int64_t>(input.visual_rows.size())) +
               " rows of " + std::to_string(config.hidden_size) + " " + std::string(dtype_name(activation)),
           shape_string(d.shape()) + " " + std::string(dtype_name(d.dtype())));
    }
  }
}

void check_decode_shares(const DecoderInput& input, std::span<const DecodeShare> shares) {
  constexpr std::string_view kWhere = "decode together";
  if (!input.embeds || input.embeds->shape().size() != 2) {
    fail(ErrorCode::kInvalidArgument, kWhere, "no embeddings [S, D] given");
  }
  if (!input.decode || !input.visual_rows.empty()) {
    fail(ErrorCode::kInvalidArgument, kWhere, "rows", "those of a decode step, text alone",
         input.decode ? "visual ones among them" : "those of a prompt");
  }
  int64_t rows = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    const DecodeShare& s = shares[i];
    if (!s.cache || s.rows < 1) {
      fail(ErrorCode::kInvalidArgument, kWhere, "share " + std::to_string(i), "a cache and at least one row",
           s.cache ? std::to_string(s.rows) + " rows" : "no cache");
    }
    for (size_t j = 0; j < i; ++j) {
      if (shares[j].cache == s.cache) {
        fail(ErrorCode::kInvalidArgument, kWhere, "caches", "different ones",
             "shares " + std::to_string(j) + " and " + std::to_string(i) + " have the same");
      }
    }
    rows += s.rows;
  }
  if (rows != input.embeds->dim(0) || rows > kMaxDecodeRows) {
    fail(ErrorCode::kInvalidArgument, kWhere, "rows of all shares",
         std::to_string(input.embeds->dim(0)) + ", at most " + std::to_string(kMaxDecodeRows), std::to_string(rows));
  }
}

}  // namespace qvl::engine
