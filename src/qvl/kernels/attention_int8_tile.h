// Attention in 8-bit codes, AttentionKernels::tile_int8: what becomes which code, the same on every instruction set that has
// it (spec 5.4; MODEL.md). Every row sees all keys; AttendArgs::visible is null and a tile's keys and values are packed at once.
//
// A row of queries or keys: q = round_half_even(x * (127 / absmax)), what a code is worth absmax / 127; zeros below kSmallestCodedRow. An element of values: the
// same with the absmax of its column in the tile. Sums of products of codes are exact. A weight becomes a code relative to the
// largest weight of its row in the tile, 255: 2^(score - top) * 255 plus the key's dither, the fraction dropped, so that many
// small weights beside a large one keep their share. The weights' sum is that of the codes.
#pragma once

#include <array>
#include <cstdint>

namespace qvl::kernels {

inline constexpr int64_t kInt8KeyTile = 128;  // keys that share the largest weight and the scales of values
inline constexpr float kInt8LargestCode = 127.0f;
inline constexpr float kInt8LargestWeight = 255.0f;
inline constexpr float kInt8LargestWeightLog = 7.9943534368588579f;  // log2 of it

// Below 1, evenly spread over any run of keys: multiples of the golden ratio.
inline constexpr std::array<float, kInt8KeyTile> kInt8Dither = [] {
  std::array<float, kInt8KeyTile> dither{};
  for (size_t i = 0; i < dither.size(); ++i) {
    const double x = (static_cast<double>(i) + 0.5) * 0.61803398874989485;
    dither[i] = static_cast<float>(x - static_cast<double>(static_cast<int64_t>(x)));
  }
  return dither;
}();

}  // namespace qvl::kernels
