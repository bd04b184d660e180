#include "qvl/serve/api_error.h"

#include "qvl/base/format.h"

namespace qvl::serve {

Json ApiError::to_json() const {
  return error_json(what(), type, param, code);
}

ErrorReply ApiError::reply() const {
  ErrorReply out(name_, what(), param);
  if (retry_after_s) out.headers.emplace_back("Retry-After", cat(*retry_after_s));
  return out;
}

ApiError model_not_found(std::string_view model) {
  return {"model_not_found", "model", cat("The model '", model, "' does not exist here; GET /v1/models lists what is served.")};
}

ApiError request_timeout(double limit_s) {
  return {"request_timeout", "", cat("The request took longer than this server's limit of ", limit_s, " s.")};
}

ApiError queue_full(int64_t waiting, int retry_after_s) {
  ApiError e("rate_limit_exceeded", "", cat("Too many requests: ", waiting, " are waiting already. Try again in ", retry_after_s, " s."));
  e.retry_after_s = retry_after_s;
  return e;
}

ApiError shutting_down(int retry_after_s) {
  ApiError e("server_shutting_down", "", "The server is being stopped and takes no new requests.");
  e.retry_after_s = retry_after_s;
  return e;
}

ApiError internal_error() {
  return {"internal_error", "", "The server had an error while it worked on this request; its log says more."};
}

ApiError to_api_error(const Error& error, ErrorSite site, std::string_view param) {
  const bool media = site == ErrorSite::kMedia;
  auto refused = [&](ErrorCodeName name) { return ApiError(name, param, error.what()); };
  if (error.code() == ErrorCode::kCancelled) return {"cancelled", "", "The request was cancelled."};
  if (site == ErrorSite::kGenerate) {
    return error.code() == ErrorCode::kLimit ? refused("context_length_exceeded") : internal_error();
  }
  switch (error.code()) {
    case ErrorCode::kInvalidArgument:
      return refused("invalid_value");
    case ErrorCode::kNotFound:
    case ErrorCode::kFormat:
    case ErrorCode::kMismatch:
      return media ? refused("image_parse_error") : refused("invalid_value");
    case ErrorCode::kUnsupported:
      return media ? refused("invalid_image_format") : refused("unsupported_value");
    case ErrorCode::kLimit:
      return media ? refused("image_too_large") : refused("context_length_exceeded");
    case ErrorCode::kIo:
    case ErrorCode::kCancelled:
      break;
  }
  return internal_error();
}

}  // namespace qvl::serve
