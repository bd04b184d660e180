// XXH3 (64 bits) by libxxhash: a checksum, about as fast as memory is read, against damage on the way to a disk and back. Not cryptographic: whoever
// can choose the bytes can choose the checksum (sha256.h is for names that must not be forged).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace qvl {

// The same sum however the bytes are cut into pieces.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(Checksum&&) noexcept;
  Checksum& operator=(Checksum&&) noexcept;

  void add(std::span<const std::byte> bytes);
  void add(std::string_view text) { add(std::as_bytes(std::span(text.data(), text.size()))); }
  // Of everything added so far; more may follow.
  uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

uint64_t checksum(std::span<const std::byte> bytes);
uint64_t checksum(std::string_view text);

}  // namespace qvl
