// How much of a prompt is computed at a time unless somebody says otherwise.
#pragma once

#include <cstdint>

namespace qvl::generate {

// Panels of weights are unpacked once for all rows of a chunk, a picture of 1024x768 with its question among them; a chunk's
// activations are what grows with it (60 KB a token of the 4B).
inline constexpr int64_t kPrefillChunkTokens = 1024;

}  // namespace qvl::generate
