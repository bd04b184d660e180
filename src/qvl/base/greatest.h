// Passes over many floats, written so that compilers make vectors of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <vector>

namespace qvl {
namespace internal {

// fn(value, lane) for every value, those of a lane in order.
inline constexpr size_t kFloatLanes = 16;
template <typename Fn>
inline void for_lanes(std::span<const float> values, const Fn& fn) {
  size_t i = 0;
  for (; i + kFloatLanes <= values.size(); i += kFloatLanes) {
    for (size_t lane = 0; lane < kFloatLanes; ++lane) fn(values[i + lane], lane);
  }
  for (; i < values.size(); ++i) fn(values[i], 0);
}

}  // namespace internal

// The greatest value, -infinity of none; NaN is passed over.
inline float greatest(std::span<const float> values) {
  std::array<float, internal::kFloatLanes> most;
  most.fill(-std::numeric_limits<float>::infinity());
  internal::for_lanes(values, [&most](float v, size_t lane) { most[lane] = v > most[lane] ? v : most[lane]; });
  return *std::ranges::max_element(most);
}

// Values whose greatest is known, so that most of many are passed over together.
inline constexpr size_t kGreatestChunk = 64;

// The chunk-th of them.
inline std::span<const float> chunk_of(std::span<const float> values, size_t chunk) {
  const size_t begin = chunk * kGreatestChunk;
  return values.subspan(begin, std::min(kGreatestChunk, values.size() - begin));
}

inline size_t chunk_count(std::span<const float> values) {
  return (values.size() + kGreatestChunk - 1) / kGreatestChunk;
}

// The n-th greatest, 1 <= n <= values.size(); no value is NaN.
inline float nth_greatest(std::span<const float> values, size_t n) {
  std::vector<float> sorted(values.begin(), values.end());
  const auto nth = sorted.begin() + static_cast<ptrdiff_t>(n - 1);
  std::ranges::nth_element(sorted, nth, std::greater<>());
  return *nth;
}

// Whether no value is infinite or NaN.
inline bool all_finite(std::span<const float> values) {
  std::array<float, internal::kFloatLanes> check{};  // 0, or NaN once something was not finite
  internal::for_lanes(values, [&check](float v, size_t lane) { check[lane] += v * 0; });
  return std::ranges::all_of(check, [](float c) { return c == 0; });
}

// Whether no value is +infinity or NaN.
inline bool all_below_infinity(std::span<const float> values) {
  std::array<int, internal::kFloatLanes> others{};
  internal::for_lanes(values, [&others](float v, size_t lane) {
    others[lane] |= static_cast<int>(!(v < std::numeric_limits<float>::infinity()));
  });
  return std::ranges::all_of(others, [](int o) { return o == 0; });
}

}  // namespace qvl
