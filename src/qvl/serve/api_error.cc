#include "qvl/serve/api_error.h"

#include "qvl/base/format.h"

namespace qvl::serve {
namespace {

constexpr std::string_view kInvalidRequest = "invalid_request_error";
constexpr std::string_view kServerError = "server_error";

ApiError make(int status, std::string_view type, std::string_view code, std::string_view param, const std::string& message) {
  return ApiError(status, std::string(type), std::string(code), std::string(param), message);
}

}  // namespace

Json ApiError::to_json() const {
  return error_json(what(), type, param, code);
}

ErrorReply ApiError::reply() const {
  ErrorReply out{.status = status, .message = what(), .type = type, .param = param, .code = code, .headers = {}};
  if (retry_after_s) out.headers.emplace_back("Retry-After", cat(*retry_after_s));
  return out;
}

ApiError bad_request(std::string_view code, std::string_view param, const std::string& message) {
  return make(400, kInvalidRequest, code, param, message);
}

ApiError unauthorized() {
  return make(401, kInvalidRequest, "invalid_api_key", "",
              "This server asks for an API key: send one that it knows in the header \"Authorization: Bearer KEY\".");
}

ApiError no_such_route(std::string_view method, std::string_view path) {
  return make(404, kInvalidRequest, "unknown_url", "", cat("Unknown request URL: ", method, " ", path, "."));
}

ApiError method_not_allowed(std::string_view method, std::string_view path) {
  return make(405, kInvalidRequest, "method_not_supported", "", cat("Not allowed to ", method, " on ", path, "."));
}

ApiError model_not_found(std::string_view model) {
  return make(404, kInvalidRequest, "model_not_found", "model",
              cat("The model '", model, "' does not exist here; GET /v1/models lists what is served."));
}

ApiError request_timeout(double limit_s) {
  return make(408, kInvalidRequest, "request_timeout", "",
              cat("The request took longer than this server's limit of ", limit_s, " s."));
}

ApiError body_too_large(uint64_t limit_bytes) {
  return make(413, kInvalidRequest, "request_too_large", "",
              cat("The body is larger than this server's limit of ", limit_bytes, " bytes."));
}

ApiError unsupported_media_type(std::string_view got) {
  return make(415, kInvalidRequest, "unsupported_content_type", "",
              cat("Expected the header \"Content-Type: application/json\", got \"", got, "\"."));
}

ApiError queue_full(int64_t waiting, int retry_after_s) {
  ApiError e = make(429, "rate_limit_error", "rate_limit_exceeded", "",
                    cat("Too many requests: ", waiting, " are waiting already. Try again in ", retry_after_s, " s."));
  e.retry_after_s = retry_after_s;
  return e;
}

ApiError shutting_down(int retry_after_s) {
  ApiError e = make(503, kServerError, "server_shutting_down", "", "The server is being stopped and takes no new requests.");
  e.retry_after_s = retry_after_s;
  return e;
}

ApiError internal_error() {
  return make(500, kServerError, "internal_error", "",
              "The server had an error while it worked on this request; its log says more.");
}

ApiError to_api_error(const Error& error, ErrorSite site, std::string_view param) {
  const bool media = site == ErrorSite::kMedia;
  auto refused = [&](std::string_view code) { return make(400, kInvalidRequest, code, param, error.what()); };
  if (error.code() == ErrorCode::kCancelled) {
    return make(503, kServerError, "cancelled", "", "The request was cancelled.");
  }
  if (site == ErrorSite::kGenerate) {
    return error.code() == ErrorCode::kLimit ? refused("context_length_exceeded") : internal_error();
  }
  switch (error.code()) {
    case ErrorCode::kInvalidArgument:
      return refused("invalid_value");
    case ErrorCode::kNotFound:
      return refused(media ? "media_not_found" : "invalid_value");
    case ErrorCode::kFormat:
    case ErrorCode::kMismatch:
      return refused(media ? "invalid_media" : "invalid_value");
    case ErrorCode::kUnsupported:
      return refused(media ? "unsupported_media" : "unsupported_value");
    case ErrorCode::kLimit:
      return media ? make(413, kInvalidRequest, "media_too_large", param, error.what()) : refused("context_length_exceeded");
    case ErrorCode::kIo:
    case ErrorCode::kCancelled:
      break;
  }
  return internal_error();
}

}  // namespace qvl::serve
