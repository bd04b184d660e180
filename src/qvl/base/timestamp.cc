#include "qvl/base/timestamp.h"

#include <array>
#include <charconv>
#include <cmath>

#include "qvl/base/error.h"

namespace qvl {

std::string format_timestamp(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0.0) {
    fail(ErrorCode::kInvalidArgument, "video", "time stamp", "a number of seconds, 0 or more",
         std::to_string(seconds));
  }
  std::array<char, 400> text;  // the longest finite double has 309 digits before the point
  const std::to_chars_result end =
      std::to_chars(text.data(), text.data() + text.size(), seconds, std::chars_format::fixed, 1);
  return "<" + std::string(text.data(), end.ptr) + " seconds>";
}

}  // namespace qvl
