// The first bytes of a text as one word, at any address (private to this room).
#pragma once

#include <cstdint>
#include <cstring>

namespace qvl::text {

inline uint64_t load64(const char* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}

inline uint64_t load32(const char* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

}  // namespace qvl::text
