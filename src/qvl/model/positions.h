// Host-side index maths between preprocessing and the stages: M-RoPE position ids of a prompt (spec 6.2),
// rotary tables of decoder and encoder (6.3, 5.3) and the bilinear taps of the position embedding (5.2). All
// arithmetic is float32 where the reference's is: angles are the float32 product of position and frequency,
// also at long contexts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "qvl/image/grid.h"
#include "qvl/model/config.h"

namespace qvl::model {

// M-RoPE positions of one sequence, [3][S].
struct Positions {
  std::vector<int64_t> axis[3];  // t, h, w
  // max + 1 - S: token S (the first generated one) stands at S + delta on all axes. Never positive.
  int64_t delta = 0;

  int64_t size() const { return static_cast<int64_t>(axis[0].size()); }
  // Rows [begin, begin + count); delta is kept. Throws kInvalidArgument when out of range.
  Positions slice(int64_t begin, int64_t count) const;
  std::span<const int64_t> row(int a) const { return axis[a]; }
};

// Positions of a whole, unpadded conversation. Each run of image pads consumes one image grid (t, h, w), each
// run of video pads one frame pair (1, h, w) of the video grids, in order. For a later turn on an existing
// cache compute the whole conversation again and take slice(cached, S - cached): the cached rows do not
// change, because positions only depend on what comes before them. Throws kMismatch when runs and grids do
// not fit each other.
Positions mrope_positions(std::span<const int32_t> ids, int32_t image_token_id, int32_t video_token_id,
                          std::span<const image::Grid> image_grids, std::span<const image::Grid> video_grids,
                          int64_t spatial_merge_size);
Positions mrope_positions(const ModelConfig& config, std::span<const int32_t> ids,
                          std::span<const image::Grid> image_grids, std::span<const image::Grid> video_grids);

// Positions of `count` text tokens generated after `length` tokens: length + delta, +1 each, equal on all
// axes.
Positions decode_positions(int64_t length, int64_t delta, int64_t count);

// Grid coordinates (row, column) of each patch in sequence order: 2x2 blocks row-major, inside a block
// row-major; every frame repeats them.
struct PatchCoords {
  std::vector<int64_t> row;
  std::vector<int64_t> col;
};
PatchCoords patch_coords(std::span<const image::Grid> grids, int64_t merge);

// Bilinear taps into the side*side position table for P patches: pe = sum over k of table[index[k]] *
// weight[k].
struct VisionTaps {
  int64_t patches = 0;
  std::vector<int64_t> index;  // [4][P]
  std::vector<float> weight;   // [4][P]
};
VisionTaps vision_taps(std::span<const image::Grid> grids, int64_t side, int64_t merge);

// Rotary tables of half width: pair (j, j + width) of a head turns by the angle of column j.
struct CosSin {
  int64_t rows = 0;
  int64_t width = 0;       // head_dim / 2
  std::vector<float> cos;  // [rows, width]
  std::vector<float> sin;

  // The same with both halves written out, [rows, 2 * width], as the reference and the ONNX graphs have it.
  CosSin widened() const;
};

// 1 / theta^(2i/dim), i < dim/2, by the recipe of appendix A. `dim` must be even.
std::vector<float> rope_inv_freq(int64_t dim, double theta);

// Encoder: columns [0, d/2) turn by the row, [d/2, d) by the column, d = head_dim/2. [P, head_dim/2].
CosSin vision_cos_sin(std::span<const image::Grid> grids, int64_t head_dim, int64_t merge);

// Decoder frequencies, [head_dim/2]; YaRN applied if the configuration asks for it.
std::vector<float> mrope_inv_freq(const TextConfig& config);
// Factor on cos and sin: 1, or that of YaRN.
double mrope_attention_factor(const TextConfig& config);
// Which of t(0), h(1), w(2) drives each frequency, [head_dim/2].
std::vector<int64_t> mrope_axis(const TextConfig& config);
// [S, head_dim/2], in float32, attention factor included. A row costs head_dim/2 sines and cosines.
CosSin mrope_cos_sin(const Positions& positions, const TextConfig& config);

// The same for rows handed over as three spans, with tables made once: what a decoder keeps.
class MropeTable {
 public:
  explicit MropeTable(const TextConfig& config);
  int64_t width() const { return static_cast<int64_t>(inv_freq_.size()); }
  // cos and sin: [S, width()], S = positions[a].size() for all three axes (kMismatch otherwise).
  void fill(const std::span<const int64_t> (&positions)[3], std::span<float> cos, std::span<float> sin) const;

 private:
  std::vector<float> inv_freq_;
  std::vector<int64_t> axis_;
  float attention_factor_ = 1.0f;
};

}  // namespace qvl::model
