#include "qvl/serve/media_error.h"

#include "qvl/base/format.h"
#include "qvl/serve/http_error.h"

namespace qvl::serve {

namespace {

ErrorCodeName name_of(MediaFault fault) {
  switch (fault) {
    case MediaFault::kBase64:
      return "invalid_base64_image";
    case MediaFault::kNotAllowed:
      return "image_url_not_allowed";
    case MediaFault::kFetchFailed:
      return "failed_to_download_image";
    case MediaFault::kTooLarge:
      return "image_too_large";
    case MediaFault::kInvalid:
      break;
  }
  return "invalid_image_url";
}

}  // namespace

void fail_media(ErrorCode code, std::string_view param, MediaFault fault, std::string_view what) {
  throw HttpError(ErrorReply(name_of(fault), cat("[", param, "] ", what), std::string(param)), code);
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
