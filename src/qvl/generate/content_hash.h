// SHA-256 (FIPS 180-4) of picture files: the name under which their features are remembered (image_memory.h).
// A cryptographic hash because a server's users must not be able to craft a file that is answered with
// another's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace qvl::generate {

class ContentHash {
 public:
  ContentHash();
  void add(std::span<const std::byte> bytes);
  void add(std::string_view text);
  // 64 hexadecimal digits; the object must not be used afterwards.
  std::string finish();

 private:
  void block(const uint8_t* bytes);

  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> buffer_;
  size_t buffered_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace qvl::generate
