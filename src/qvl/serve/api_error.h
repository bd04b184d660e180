// What a client is told when a request is refused or fails: status, and the error object of OpenAI's API to the letter.
// Every refusal of the server ends here, whoever finds it: HTTP, parser, media, scheduler.
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
  ApiError(int status_, std::string type_, std::string code_, std::string param_, const std::string& message)
      : std::runtime_error(message), status(status_), type(std::move(type_)), code(std::move(code_)),
        param(std::move(param_)) {}

  int status;                          // of HTTP, 400..599
  std::string type;                    // "invalid_request_error", "rate_limit_error", "server_error"
  std::string code;                    // "invalid_value", "context_length_exceeded", ...; empty: null
  std::string param;                   // "messages[2].content[0].image_url.url"; empty: null
  std::optional<int> retry_after_s;    // becomes the header Retry-After

  // {"error": {"message", "type", "param", "code"}}: the body of a reply, and the event in a stream that has begun.
  Json to_json() const;
  // The reply, Retry-After included; send_error() sends it.
  ErrorReply reply() const;
};

// 400 invalid_request_error.
ApiError bad_request(std::string_view code, std::string_view param, const std::string& message);

// The rest of what a server says no with. Limits stand in the messages.
ApiError unauthorized();                                              // 401 invalid_api_key
ApiError no_such_route(std::string_view method, std::string_view path);  // 404 unknown_url
ApiError method_not_allowed(std::string_view method, std::string_view path);  // 405
ApiError model_not_found(std::string_view model);                     // 404 model_not_found
ApiError request_timeout(double limit_s);                             // 408 request_timeout
ApiError body_too_large(uint64_t limit_bytes);                        // 413 request_too_large
ApiError unsupported_media_type(std::string_view got);                // 415
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
//   kNotFound         400 media_not_found         400 invalid_value                500
//   kIo               500                         500                              500
//   kFormat           400 invalid_media           400 invalid_value                500
//   kMismatch         400 invalid_media           400 invalid_value                500
//   kUnsupported      400 unsupported_media       400 unsupported_value            500
//   kLimit            413 media_too_large         400 context_length_exceeded      400 context_length_exceeded
//   kCancelled        503 cancelled (a client that left reads nothing; this is for one that is still there)
// `param` is the place in the request that it is about, if known.
ApiError to_api_error(const Error& error, ErrorSite site, std::string_view param = {});

}  // namespace qvl::serve
