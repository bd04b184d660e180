// How the pictures of a request are refused: one form for data: URLs, files and downloads.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "qvl/base/error.h"

namespace qvl::serve {

enum class MediaFault {
  kInvalid,      // "invalid_image_url"
  kBase64,       // "invalid_base64_image"
  kNotAllowed,   // "image_url_not_allowed"
  kFetchFailed,  // "failed_to_download_image"
  kTooLarge,     // "image_too_large", 413
};

// Throws HttpError{code, "[param] what"}.
[[noreturn]] void fail_media(ErrorCode code, std::string_view param, MediaFault fault, std::string_view what);
// `bytes`: as far as is known; 0: not known.
[[noreturn]] void fail_too_large(std::string_view param, size_t bytes, size_t max_bytes);

// At most 80 bytes of it, for messages.
std::string shortened(std::string_view text);

}  // namespace qvl::serve
