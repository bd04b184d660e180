#include "qvl/synth/random_weights.h"

#include <cmath>

namespace qvl::synth {
namespace {

// SplitMix64's finaliser: every output bit depends on every input bit.
uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

uint64_t hash(std::string_view text) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

// The x with P(normal < x) = p, by Newton's method on erfc; p is not in the far tails.
double normal_quantile(double p) {
  double x = 0.0;
  for (int i = 0; i < 60; ++i) {
    const double error = 0.5 * std::erfc(-x / std::sqrt(2.0)) - p;
    const double slope = std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI);
    const double step = std::fmax(-0.5, std::fmin(0.5, error / slope));
    x -= step;
    if (std::fabs(step) < 1e-14) break;
  }
  return x;
}

// Quantiles of equal steps of probability, scaled so that their variance is exactly that of the normal
// distribution.
template <size_t N>
const std::array<double, N>& unit_table() {
  static const std::array<double, N> table = [] {
    std::array<double, N> t{};
    double squares = 0.0;
    for (size_t i = 0; i < N; ++i) {
      t[i] = normal_quantile((static_cast<double>(i) + 0.5) / N);
      squares += t[i] * t[i];
    }
    const double scale = std::sqrt(N / squares);
    for (double& v : t) v *= scale;
    return t;
  }();
  return table;
}

}  // namespace

WeightSource::WeightSource(uint64_t seed, std::string_view tensor_name, double mean, double deviation)
    : key_(mix(seed * kGolden + 1) ^ hash(tensor_name)) {
  const auto& unit = unit_table<size_t{1} << kTableBits>();
  for (size_t i = 0; i < table_.size(); ++i) {
    table_[i] = to_bfloat16(static_cast<float>(mean + deviation * unit[i]));
  }
}

void WeightSource::fill(uint64_t first, std::span<BFloat16> out) const {
  constexpr int kUnused = 16 - kTableBits;
  uint64_t state = key_ + (first / 4) * kGolden;
  BFloat16* p = out.data();
  const size_t whole = out.size() / 4;
  for (size_t i = 0; i < whole; ++i, p += 4) {
    const uint64_t z = mix(state += kGolden);
    p[0] = table_[(z & 0xffff) >> kUnused];
    p[1] = table_[((z >> 16) & 0xffff) >> kUnused];
    p[2] = table_[((z >> 32) & 0xffff) >> kUnused];
    p[3] = table_[z >> (48 + kUnused)];
  }
  if (const size_t rest = out.size() % 4; rest != 0) {
    uint64_t z = mix(state + kGolden);
    for (size_t i = 0; i < rest; ++i, z >>= 16) p[i] = table_[(z & 0xffff) >> kUnused];
  }
}

}  // namespace qvl::synth
