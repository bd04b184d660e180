// Every way in which the server says no, once: status, type and code of the error object. A code that is not in the table does not
// compile; docs/server.md, openapi.json and the page's own list are held to it by error_codes_test.cc, and
// tests/server/proof_limits.py provokes them at a running server. Names are OpenAI's wherever OpenAI has one.
#pragma once

#include <iterator>
#include <string_view>

namespace qvl::serve {

struct ErrorEntry {
  int status;             // of HTTP
  std::string_view type;  // "invalid_request_error", "rate_limit_error", "server_error"
  std::string_view code;
};

inline constexpr std::string_view kRequestError = "invalid_request_error";
inline constexpr std::string_view kRateError = "rate_limit_error";
inline constexpr std::string_view kServerError = "server_error";

// In the order of the statuses; a code has one status.
inline constexpr ErrorEntry kErrorTable[] = {
    // Fields
    {400, kRequestError, "unknown_parameter"},
    {400, kRequestError, "unsupported_parameter"},
    {400, kRequestError, "unsupported_value"},
    {400, kRequestError, "missing_required_parameter"},
    {400, kRequestError, "invalid_type"},
    {400, kRequestError, "invalid_value"},
    {400, kRequestError, "integer_below_min_value"},
    {400, kRequestError, "integer_above_max_value"},
    {400, kRequestError, "decimal_below_min_value"},
    {400, kRequestError, "decimal_above_max_value"},
    {400, kRequestError, "string_above_max_length"},
    {400, kRequestError, "array_above_max_length"},
    {400, kRequestError, "empty_array"},
    // The body as JSON
    {400, kRequestError, "invalid_json"},
    {400, kRequestError, "duplicate_key"},
    // Prompt and answer
    {400, kRequestError, "context_length_exceeded"},
    // Pictures
    {400, kRequestError, "invalid_image_url"},
    {400, kRequestError, "invalid_base64_image"},
    {400, kRequestError, "image_url_not_allowed"},
    {400, kRequestError, "failed_to_download_image"},
    {400, kRequestError, "image_parse_error"},
    {400, kRequestError, "invalid_image_format"},
    {400, kRequestError, "too_many_media"},
    // HTTP
    {400, kRequestError, "bad_request"},
    {401, kRequestError, "invalid_api_key"},
    {403, kRequestError, "host_not_allowed"},
    {404, kRequestError, "model_not_found"},
    {404, kRequestError, "unknown_url"},
    {405, kRequestError, "method_not_supported"},
    {408, kRequestError, "request_timeout"},
    {411, kRequestError, "length_required"},
    {413, kRequestError, "request_too_large"},
    {413, kRequestError, "image_too_large"},
    {413, kRequestError, "media_too_large"},
    {414, kRequestError, "uri_too_long"},
    {415, kRequestError, "unsupported_content_type"},
    {417, kRequestError, "expectation_failed"},
    {429, kRateError, "rate_limit_exceeded"},
    {431, kRequestError, "headers_too_large"},
    {500, kServerError, "internal_error"},
    {501, kServerError, "unsupported_transfer_encoding"},
    {503, kServerError, "server_shutting_down"},
    {503, kServerError, "too_many_connections"},
    {503, kServerError, "overloaded"},
    {503, kServerError, "cancelled"},
    {505, kServerError, "unsupported_http_version"},
};

// A line of the table by its code, found by the compiler: ErrorCodeName name = "invalid_value".
class ErrorCodeName {
 public:
  consteval ErrorCodeName(const char* code) : entry_(find(code)) {}  // NOLINT(google-explicit-constructor): it is the code

  constexpr int status() const { return entry_->status; }
  constexpr std::string_view type() const { return entry_->type; }
  constexpr std::string_view code() const { return entry_->code; }

 private:
  static consteval const ErrorEntry* find(std::string_view code) {
    for (const ErrorEntry& entry : kErrorTable) {
      if (entry.code == code) return &entry;
    }
    throw "not in kErrorTable";  // to a compiler: an error that names the caller
  }

  const ErrorEntry* entry_;
};

}  // namespace qvl::serve
