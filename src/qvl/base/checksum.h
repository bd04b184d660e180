// XXH64: a fast 64-bit checksum against damage on the way to a disk and back. Not cryptographic: whoever can
// choose the bytes can choose the checksum (sha256.h is for names that must not be forged).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace qvl {

// The same sum however the bytes are cut into pieces.
class Checksum {
 public:
  Checksum();
  void add(std::span<const std::byte> bytes);
  void add(std::string_view text) { add(std::as_bytes(std::span(text.data(), text.size()))); }
  // Of everything added so far; more may follow.
  uint64_t value() const;

 private:
  static constexpr size_t kStripeBytes = 32;

  std::array<uint64_t, 4> lanes_;
  std::array<std::byte, kStripeBytes> rest_;  // what does not fill a stripe yet
  size_t rest_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

uint64_t checksum(std::span<const std::byte> bytes);
uint64_t checksum(std::string_view text);

}  // namespace qvl
