// What a client is told when a request is refused or fails: status, and the error object of OpenAI's API to the letter.
// What parser, service and scheduler refuse ends here.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/serve/http_error.h"

namespace qvl::serve {

// Thrown by whatever looks at a request. what() is the message.
struct ApiError : std::runtime_error {
  ApiError(ErrorCodeName name, std::string_view param_, const std::string& message)
      : std::runtime_error(message), status(name.status()), type(name.type()), code(name.code()), param(param_), name_(name) {}

  int status;                          // of HTTP, 400..599
  std::string type;                    // "invalid_request_error", "rate_limit_error", "server_error"
  std::string code;                    // "invalid_value", "context_length_exceeded", ...: error_codes.h
  std::string param;                   // "messages[2].content[0].image_url.url"; empty: null
  std::optional<int> retry_after_s;    // becomes the header Retry-After

  // {"error": {"message", "type", "param", "code"}}: the body of a reply, and the event in a stream that has begun.
  Json to_json() const;
  // The reply, Retry-After included; send_error() sends it.
  ErrorReply reply() const;

 private:
  ErrorCodeName name_;
};

// For what is wrong with the request itself.
inline ApiError bad_request(ErrorCodeName name, std::string_view param, const std::string& message) { return {name, param, message}; }

// The rest of what the service says no with; what is refused before a body is read, http_gate.cc says. Limits stand in the messages.
ApiError model_not_found(std::string_view model);                     // 404 model_not_found
ApiError request_timeout(double limit_s);                             // 408 request_timeout
ApiError queue_full(int64_t waiting, int retry_after_s);              // 429 rate_limit_exceeded
ApiError shutting_down(int retry_after_s);                            // 503 server_shutting_down
ApiError internal_error();                                            // 500; says nothing of the cause, the log does

// Where in a request's way an Error of the library came up: the same code means another status there.
enum class ErrorSite {
  kMedia,     // reading, decoding, preprocessing a picture
  kPrompt,    // template, tokens, context, sampling values, grammars
  kGenerate,  // stages and decode loop
};

// The library's message as it is, except where it would tell about the server and not about the request (kIo and
// whatever a stage throws: 500 internal_error()).
//   code              kMedia                      kPrompt                          kGenerate
//   kInvalidArgument  400 invalid_value           400 invalid_value                500
//   kNotFound         400 image_parse_error       400 invalid_value                500
//   kIo               500                         500                              500
//   kFormat           400 image_parse_error       400 invalid_value                500
//   kMismatch         400 image_parse_error       400 invalid_value                500
//   kUnsupported      400 invalid_image_format    400 unsupported_value            500
//   kLimit            413 image_too_large         400 context_length_exceeded      400 context_length_exceeded
//   kCancelled        503 cancelled (a client that left reads nothing; this is for one that is still there)
// `param` is the place in the request that it is about, if known.
ApiError to_api_error(const Error& error, ErrorSite site, std::string_view param = {});

}  // namespace qvl::serve
