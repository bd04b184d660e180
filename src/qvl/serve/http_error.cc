#include "qvl/serve/http_error.h"

#include <algorithm>
#include <cctype>

namespace qvl::serve {

namespace {

// "[messages[0].content] what": the part in the outer brackets, when it could be the name of a field.
std::string field_of(std::string_view message) {
  if (!message.starts_with('[')) return {};
  const size_t end = message.find("] ");
  if (end == std::string_view::npos) return {};
  const std::string_view where = message.substr(1, end - 1);
  const bool plain = !where.empty() && where.size() <= 200 && std::ranges::all_of(where, [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '.' || c == '[' || c == ']';
  });
  return plain ? std::string(where) : std::string();
}

}  // namespace

Json error_json(std::string_view message, std::string_view type, std::string_view param, std::string_view code) {
  const auto or_null = [](std::string_view text) { return text.empty() ? Json() : Json(text); };
  return {{"error", {{"message", message}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
}

std::string ErrorReply::body() const {
  return error_json(message, type, param, code).dump(-1, ' ', false, Json::error_handler_t::replace);
}

HttpError::HttpError(ErrorReply error, ErrorCode code) : Error(code, error.message), reply_(std::move(error)) {}

ErrorReply error_reply(const Error& error) {
  if (const auto* exact = dynamic_cast<const HttpError*>(&error)) return exact->reply();
  ErrorReply reply;
  reply.message = error.what();
  reply.param = field_of(reply.message);
  reply.code = error_code_name(error.code());
  switch (error.code()) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kFormat:
    case ErrorCode::kMismatch:
    case ErrorCode::kUnsupported:
      reply.status = 400;
      break;
    case ErrorCode::kNotFound:
      reply.status = 404;
      break;
    case ErrorCode::kLimit:
      reply.status = 413;
      break;
    case ErrorCode::kCancelled:
      reply.status = 503;
      reply.type = "server_error";
      break;
    case ErrorCode::kIo:
      reply.status = 500;
      reply.type = "server_error";
      reply.message = "The server failed to read or write something it needs.";
      reply.param.clear();
      break;
  }
  return reply;
}

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 301:
      return "Moved Permanently";
    case 302:
      return "Found";
    case 303:
      return "See Other";
    case 304:
      return "Not Modified";
    case 307:
      return "Temporary Redirect";
    case 308:
      return "Permanent Redirect";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 406:
      return "Not Acceptable";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 410:
      return "Gone";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 421:
      return "Misdirected Request";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    case 507:
      return "Insufficient Storage";
    default:
      return "Unknown";
  }
}

}  // namespace qvl::serve
