// Text formatting: {fmt} under one include, so that the dependency stays in this room.
#pragma once

#include <fmt/format.h>  // IWYU pragma: export

#include <iterator>
#include <string>

namespace qvl {

// The parts one after another, each as "{}" writes it (a float with the digits that tell it from its
// neighbours).
template <typename... Parts>
std::string cat(const Parts&... parts) {
  std::string out;
  (fmt::format_to(std::back_inserter(out), "{}", parts), ...);
  return out;
}

}  // namespace qvl
