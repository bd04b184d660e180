#include "qvl/base/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace qvl {
namespace {

// The constants and steps of the published algorithm (XXH64, seed 0).
constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4F;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5;

// Files are little-endian on every machine qvl runs on.
static_assert(std::endian::native == std::endian::little);

template <typename T>
uint64_t load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

uint64_t round(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

uint64_t merge(uint64_t sum, uint64_t lane) {
  return (sum ^ round(0, lane)) * kPrime1 + kPrime4;
}

}  // namespace

Checksum::Checksum() : lanes_{kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1}, rest_{} {}

void Checksum::add(std::span<const std::byte> bytes) {
  total_bytes_ += bytes.size();
  std::array<uint64_t, 4> lanes = lanes_;
  const auto stripe = [&lanes](const std::byte* p) {
    for (size_t i = 0; i < lanes.size(); ++i) lanes[i] = round(lanes[i], load<uint64_t>(p + 8 * i));
  };
  if (rest_bytes_ > 0) {
    const size_t n = std::min(bytes.size(), kStripeBytes - rest_bytes_);
    std::copy_n(bytes.begin(), n, rest_.begin() + static_cast<ptrdiff_t>(rest_bytes_));
    rest_bytes_ += n;
    bytes = bytes.subspan(n);
    if (rest_bytes_ < kStripeBytes) return;
    stripe(rest_.data());
    rest_bytes_ = 0;
  }
  while (bytes.size() >= kStripeBytes) {
    stripe(bytes.data());
    bytes = bytes.subspan(kStripeBytes);
  }
  std::copy(bytes.begin(), bytes.end(), rest_.begin());
  rest_bytes_ = bytes.size();
  lanes_ = lanes;
}

uint64_t Checksum::value() const {
  uint64_t sum = kPrime5;
  if (total_bytes_ >= kStripeBytes) {
    sum = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
    for (uint64_t lane : lanes_) sum = merge(sum, lane);
  }
  sum += total_bytes_;
  const std::byte* p = rest_.data();
  size_t left = rest_bytes_;
  for (; left >= 8; left -= 8, p += 8) sum = std::rotl(sum ^ round(0, load<uint64_t>(p)), 27) * kPrime1 + kPrime4;
  if (left >= 4) {
    sum = std::rotl(sum ^ (load<uint32_t>(p) * kPrime1), 23) * kPrime2 + kPrime3;
    left -= 4, p += 4;
  }
  for (; left > 0; --left, ++p) sum = std::rotl(sum ^ (load<uint8_t>(p) * kPrime5), 11) * kPrime1;
  sum = (sum ^ (sum >> 33)) * kPrime2;
  sum = (sum ^ (sum >> 29)) * kPrime3;
  return sum ^ (sum >> 32);
}

uint64_t checksum(std::span<const std::byte> bytes) {
  Checksum sum;
  sum.add(bytes);
  return sum.value();
}

uint64_t checksum(std::string_view text) {
  return checksum(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace qvl
