// What a refused request is told: a status and OpenAI's error body
// {"error":{"message","type","param","code"}}. Clients of OpenAI's libraries read all four.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/serve/error_codes.h"

namespace qvl::serve {

// Names as written when sent; received ones are in lower case. Order is kept.
using Headers = std::vector<std::pair<std::string, std::string>>;

// {"error": {"message", "type", "param", "code"}}; empty `param` and `code` become null.
Json error_json(std::string_view message, std::string_view type, std::string_view param, std::string_view code);

// Status, type and code are those of error_codes.h.
struct ErrorReply {
  // `param`: the place in the request that it is about; empty: null.
  ErrorReply(ErrorCodeName name, std::string message_, std::string param_ = {})
      : status(name.status()), message(std::move(message_)), type(name.type()), param(std::move(param_)), code(name.code()) {}

  int status;
  std::string message;
  std::string type;
  std::string param;
  std::string code;
  Headers headers;  // Retry-After, Allow, WWW-Authenticate

  // The JSON body. Bytes of `message` that are not UTF-8 become U+FFFD.
  std::string body() const;
};

// Thrown by whoever knows exactly what the client shall see.
class HttpError : public Error {
 public:
  explicit HttpError(ErrorReply error, ErrorCode code = ErrorCode::kInvalidArgument);
  const ErrorReply& reply() const { return reply_; }

 private:
  ErrorReply reply_;
};

// "Not Found" for 404; "Unknown" for what is not in the table.
std::string_view reason_phrase(int status);

}  // namespace qvl::serve
