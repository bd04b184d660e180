// How a moment of a video is written into the prompt (spec 4): part of the model's input, so every digit
// counts.
#pragma once

#include <string>

namespace qvl {

// "<1.5 seconds>": one decimal, the exact binary value rounded to nearest, ties to even, whatever the locale.
// Throws kInvalidArgument for a negative or non-finite number.
std::string format_timestamp(double seconds);

}  // namespace qvl
