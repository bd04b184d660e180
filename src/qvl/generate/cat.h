// Joins values into a string for messages and keys. (fmt belongs to the apps room.)
#pragma once

#include <sstream>
#include <string>

namespace qvl::generate {

template <typename... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace qvl::generate
