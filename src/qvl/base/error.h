// The one error type of the library. Every rejected input, file or resource ends here; the library never
// prints, exits or aborts on input. Caught at the app's main, at the server's request boundary and at the
// thread pool's join.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace qvl {

enum class ErrorCode {
  kInvalidArgument,  // the caller passed something that cannot be meant
  kNotFound,         // a file, tensor, token or option that does not exist
  kIo,               // the operating system refused to read, write, map
  kFormat,           // bytes that are not what they claim to be (corrupt, truncated)
  kMismatch,         // well-formed, but not what the model asks for (shape, dtype, count)
  kUnsupported,      // well-formed and known, but not implemented here
  kLimit,            // a limit on size, pixels, memory or context was hit
  kCancelled,        // the user asked to stop
};

// "invalid_argument", "not_found", ...
std::string_view error_code_name(ErrorCode code);

class Error : public std::runtime_error {
 public:
  // `message` = "[where] what: expected X, got Y (hint)".
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws Error{code, "[where] what"}.
[[noreturn]] void fail(ErrorCode code, std::string_view where, std::string_view what);

// Throws Error{code, "[where] what: expected EXPECTED, got GOT (HINT)"}; an empty hint is left out.
[[noreturn]] void fail(ErrorCode code, std::string_view where, std::string_view what,
                       std::string_view expected, std::string_view got, std::string_view hint = {});

// Throws Error{kIo, "[where] what: <text of errno>"}; reads errno first.
[[noreturn]] void fail_errno(std::string_view where, std::string_view what);

}  // namespace qvl
