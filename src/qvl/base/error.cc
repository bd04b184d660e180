#include "qvl/base/error.h"

#include <cerrno>
#include <system_error>

namespace qvl {

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kNotFound:
      return "not_found";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kFormat:
      return "format";
    case ErrorCode::kMismatch:
      return "mismatch";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kLimit:
      return "limit";
    case ErrorCode::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

void fail(ErrorCode code, std::string_view where, std::string_view what) {
  std::string message = "[";
  message.append(where).append("] ").append(what);
  throw Error(code, message);
}

void fail(ErrorCode code, std::string_view where, std::string_view what, std::string_view expected,
          std::string_view got, std::string_view hint) {
  std::string message = "[";
  message.append(where)
      .append("] ")
      .append(what)
      .append(": expected ")
      .append(expected)
      .append(", got ")
      .append(got);
  if (!hint.empty()) message.append(" (").append(hint).append(")");
  throw Error(code, message);
}

void fail_errno(std::string_view where, std::string_view what) {
  const int saved = errno;
  std::string message(what);
  message.append(": ").append(std::generic_category().message(saved));
  fail(saved == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo, where, message);
}

}  // namespace qvl
