// What a refused request is told: a status and OpenAI's error body
// {"error":{"message","type","param","code"}}. Clients of OpenAI's libraries read all four.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/json.h"

namespace qvl::serve {

// Names as written when sent; received ones are in lower case. Order is kept.
using Headers = std::vector<std::pair<std::string, std::string>>;

// {"error": {"message", "type", "param", "code"}}; empty `param` and `code` become null.
Json error_json(std::string_view message, std::string_view type, std::string_view param, std::string_view code);

struct ErrorReply {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;  // empty: null
  std::string code;   // empty: null
  Headers headers;    // Retry-After, Allow, WWW-Authenticate

  // The JSON body. Bytes of `message` that are not UTF-8 become U+FFFD.
  std::string body() const;
};

// Thrown by a handler that knows exactly what the client shall see.
class HttpError : public Error {
 public:
  explicit HttpError(ErrorReply error, ErrorCode code = ErrorCode::kInvalidArgument);
  const ErrorReply& reply() const { return reply_; }

 private:
  ErrorReply reply_;
};

// What any qvl::Error means to a client. HttpError: its own reply. kInvalidArgument, kFormat, kMismatch,
// kUnsupported: 400; kNotFound: 404; kLimit: 413; kCancelled: 503; kIo: 500 without its text, which may name
// the operator's files. `param` is taken from the "[where]" of the message when it looks like a path into the
// request ("messages[0].content"), otherwise it is null.
ErrorReply error_reply(const Error& error);

// "Not Found" for 404; "Unknown" for what is not in the table.
std::string_view reason_phrase(int status);

}  // namespace qvl::serve
