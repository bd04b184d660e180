// What is decided about a request when its head is there and its body is not: Host, path, key, type, length.
// Needs no socket.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "qvl/serve/http.h"

namespace qvl::serve {

struct RequestHead {
  HttpRequest
      request;  // without path, query, rest, request_id and body until judge() and the connection add them
  std::string target;
  bool http_1_0 = false;
  bool keep_alive = false;
  bool chunked = false;
  std::optional<uint64_t> content_length;

  const Route* route = nullptr;     // none: answered at once,
  std::optional<ErrorReply> refusal;  // with this,
  Headers option_headers;           // or with 204 and these

  bool has_body() const { return chunked || content_length.value_or(0) > 0; }
};

// 413 for more than `limit` bytes.
ErrorReply too_large(size_t limit);

class Gate {
 public:
  // `options` must outlive it.
  explicit Gate(const HttpOptions& options) : options_(options) {}

  std::vector<Route> routes;
  bool check_host = false;  // decided when the addresses are known

  // Fills in the rest of `head`: path and request id, then route, refusal or option_headers.
  void judge(RequestHead& head) const;
  // Of every answer to this request.
  Headers common_headers(const HttpRequest& request) const;

 private:
  std::optional<ErrorReply> judge_framing(RequestHead& head) const;
  std::optional<ErrorReply> judge_host(const RequestHead& head) const;
  std::optional<ErrorReply> find_route(RequestHead& head) const;
  std::optional<ErrorReply> judge_body(const RequestHead& head) const;
  void answer_options(RequestHead& head, const std::string& allow) const;

  const HttpOptions& options_;
};

}  // namespace qvl::serve
