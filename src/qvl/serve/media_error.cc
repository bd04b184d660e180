#include "qvl/serve/media_error.h"

#include "qvl/base/format.h"
#include "qvl/serve/http_error.h"

namespace qvl::serve {

void fail_media(ErrorCode code, std::string_view param, MediaFault fault, std::string_view what) {
  ErrorReply error;
  error.param = param;
  error.message = cat("[", param, "] ", what);
  switch (fault) {
    case MediaFault::kInvalid:
      error.code = "invalid_image_url";
      break;
    case MediaFault::kNotAllowed:
      error.code = "image_url_not_allowed";
      break;
    case MediaFault::kFetchFailed:
      error.code = "image_fetch_failed";
      break;
    case MediaFault::kTooLarge:
      error.code = "image_too_large";
      error.status = 413;
      break;
  }
  throw HttpError(std::move(error), code);
}

void fail_too_large(std::string_view param, size_t bytes, size_t max_bytes) {
  const std::string got = bytes > 0 ? cat(bytes) : std::string("more");
  fail_media(ErrorCode::kLimit, param, MediaFault::kTooLarge,
             cat("picture: expected at most ", max_bytes, " bytes, got ", got));
}

std::string shortened(std::string_view text) {
  constexpr size_t kMost = 80;
  return text.size() <= kMost ? std::string(text) : cat(text.substr(0, kMost - 3), "...");
}

}  // namespace qvl::serve
