// Seeded random weights, fast enough to outrun a disk: a counter-based generator (any range of any tensor can
// be made alone, in any order, on any thread) and tables of normal quantiles that turn 12 random bits into a
// bf16 value.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "qvl/base/dtype.h"

namespace qvl::synth {

// The distribution of one tensor: mean + deviation * normal, cut at about 3.7 deviations, rounded to bf16.
class WeightSource {
 public:
  // The values depend on seed, name, mean and deviation only.
  WeightSource(uint64_t seed, std::string_view tensor_name, double mean, double deviation);

  // Elements [first, first + out.size()) of the tensor, row-major. `first` must be a multiple of 4.
  void fill(uint64_t first, std::span<BFloat16> out) const;

 private:
  static constexpr int kTableBits = 12;
  uint64_t key_;
  std::array<BFloat16, size_t{1} << kTableBits> table_;
};

}  // namespace qvl::synth
