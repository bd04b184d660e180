#include "qvl/serve/http_gate.h"

#include <algorithm>

#include "qvl/base/format.h"
#include "qvl/serve/http_message.h"

namespace qvl::serve {

ErrorReply too_large(size_t limit) {
  if (limit == 0) return {"request_too_large", "This path takes no body."};
  return {"request_too_large", cat("The body is larger than the ", limit, " bytes that are taken here.")};
}

void Gate::judge(RequestHead& head) const {
  HttpRequest& request = head.request;
  const std::string* id = request.header("x-request-id");
  request.request_id = id && is_sane_request_id(*id) ? *id : make_request_id();
  const std::optional<Target> target = parse_target(head.target);
  if (target) {
    request.path = target->path;
    request.query = target->query;
    head.refusal = judge_framing(head);
    if (!head.refusal) head.refusal = judge_host(head);
    if (!head.refusal) head.refusal = find_route(head);
    if (!head.refusal && head.route) head.refusal = judge_body(head);
  } else {
    head.refusal = ErrorReply("bad_request", "The request target is malformed.");
  }
  if (head.refusal && head.refusal->status == 400) head.keep_alive = false;
  // What is left of a body that nobody wants cannot be told from the next request.
  if ((head.refusal || !head.route) && head.has_body()) head.keep_alive = false;
}

std::optional<ErrorReply> Gate::judge_framing(RequestHead& head) const {
  const auto is_coding = [](const auto& field) { return field.first == "transfer-encoding"; };
  const auto codings = std::ranges::count_if(head.request.headers, is_coding);
  if (codings == 0) return std::nullopt;
  const std::string* coding = head.request.header("transfer-encoding");
  if (codings == 1 && equal_ignoring_case(*coding, "chunked") && !head.http_1_0) return std::nullopt;
  head.keep_alive = false;
  return ErrorReply("unsupported_transfer_encoding", "The only transfer coding taken is chunked, with HTTP/1.1.");
}

std::optional<ErrorReply> Gate::judge_host(const RequestHead& head) const {
  const HttpRequest& request = head.request;
  const auto hosts = std::ranges::count_if(request.headers, [](const auto& h) { return h.first == "host"; });
  const std::string* host = request.header("host");
  if (hosts > 1) return ErrorReply("bad_request", "There is more than one Host field.");
  if (!host && head.http_1_0) return std::nullopt;
  if (!host) return ErrorReply("bad_request", "HTTP/1.1 requests need a Host field.");
  const std::optional<std::string> name = host_name(*host);
  if (!name && !host->empty()) return ErrorReply("bad_request", "The Host field is malformed.");
  if (!check_host || (name && is_loopback_name(*name))) return std::nullopt;
  for (const std::string& allowed : options_.allowed_hosts) {
    if (allowed == "*" || (name && equal_ignoring_case(allowed, *name))) return std::nullopt;
  }
  return ErrorReply("host_not_allowed", "This server does not answer to that Host name (--allowed-host).");
}

std::optional<ErrorReply> Gate::find_route(RequestHead& head) const {
  HttpRequest& request = head.request;
  std::vector<const Route*> candidates;
  size_t prefix = 0;
  for (const Route& route : routes) {
    if (route.path == request.path) {
      if (prefix > 0) candidates.clear();
      prefix = 0;
      candidates.push_back(&route);
    } else if (route.path.ends_with("/*")) {
      const std::string_view stem = std::string_view(route.path).substr(0, route.path.size() - 1);
      const bool exact = !candidates.empty() && prefix == 0;
      if (exact || !request.path.starts_with(stem) || request.path.size() == stem.size() ||
          stem.size() < prefix) {
        continue;
      }
      if (stem.size() > prefix) candidates.clear();
      prefix = stem.size();
      candidates.push_back(&route);
    }
  }
  if (candidates.empty() && !(request.method == "OPTIONS" && request.path == "*")) {
    return ErrorReply("unknown_url", cat("Unknown request URL: ", request.method, " ", request.path.substr(0, 200), "."));
  }
  std::string allow;
  const Route* found = nullptr;
  for (const Route* route : candidates) {
    allow += cat(route->method, ", ");
    if (route->method == "GET") allow += "HEAD, ";
    const bool matches =
        route->method == request.method || (route->method == "GET" && request.method == "HEAD");
    if (matches && !found) found = route;
  }
  allow += "OPTIONS";
  if (!found && request.method == "OPTIONS") {
    answer_options(head, allow);
    return std::nullopt;
  }
  if (!found) {
    ErrorReply error("method_not_supported", cat(request.path.substr(0, 200), " takes ", allow, " only."));
    error.headers.emplace_back("Allow", allow);
    return error;
  }
  if (found->needs_key && !options_.api_keys.empty()) {
    const std::string* authorization = request.header("authorization");
    if (!authorization || !has_key(*authorization, options_.api_keys)) {
      ErrorReply error("invalid_api_key", authorization ? "The API key is not one of this server's."
                                                        : "An API key is needed: send 'Authorization: Bearer KEY'.");
      error.headers.emplace_back("WWW-Authenticate", "Bearer");
      return error;
    }
  }
  head.route = found;
  if (prefix > 0) request.rest = request.path.substr(prefix);
  return std::nullopt;
}

// Of a CORS preflight too: what a page of an allowed origin may send.
void Gate::answer_options(RequestHead& head, const std::string& allow) const {
  head.option_headers.emplace_back("Allow", allow);
  const Headers common = common_headers(head.request);
  if (!find_header(common, "Access-Control-Allow-Origin")) return;
  if (!head.request.header("access-control-request-method")) return;
  head.option_headers.emplace_back("Access-Control-Allow-Methods", allow);
  head.option_headers.emplace_back("Access-Control-Max-Age", "600");
  if (const std::string* wanted = head.request.header("access-control-request-headers")) {
    const bool sane = std::ranges::all_of(*wanted, [](unsigned char c) { return c >= 0x20 && c < 0x7f; });
    if (sane) head.option_headers.emplace_back("Access-Control-Allow-Headers", *wanted);
  }
}

std::optional<ErrorReply> Gate::judge_body(const RequestHead& head) const {
  const Route& route = *head.route;
  const HttpRequest& request = head.request;
  if (route.needs_json) {
    const std::string* type = request.header("content-type");
    if (!type || !is_json_type(*type)) {
      return ErrorReply("unsupported_content_type", "The body must be sent as 'Content-Type: application/json'.");
    }
    if (!head.chunked && !head.content_length) {
      return ErrorReply("length_required", "The request has no Content-Length.");
    }
  }
  if (head.content_length.value_or(0) > route.max_body_bytes || (head.chunked && route.max_body_bytes == 0)) {
    return too_large(route.max_body_bytes);
  }
  const std::string* expect = request.header("expect");
  if (expect && !equal_ignoring_case(*expect, "100-continue")) {
    return ErrorReply("expectation_failed", "The only expectation met is 100-continue.");
  }
  return std::nullopt;
}

Headers Gate::common_headers(const HttpRequest& request) const {
  Headers headers = options_.extra_headers;
  headers.emplace_back("X-Request-Id", request.request_id);
  if (!find_header(headers, "X-Content-Type-Options"))
    headers.emplace_back("X-Content-Type-Options", "nosniff");
  if (!find_header(headers, "Referrer-Policy")) headers.emplace_back("Referrer-Policy", "no-referrer");
  if (options_.allowed_origins.empty()) return headers;
  headers.emplace_back("Vary", "Origin");
  const std::string* origin = request.header("origin");
  const bool any = std::ranges::find(options_.allowed_origins, "*") != options_.allowed_origins.end();
  if (!origin) return headers;
  if (!any && std::ranges::find(options_.allowed_origins, *origin) == options_.allowed_origins.end())
    return headers;
  headers.emplace_back("Access-Control-Allow-Origin", any ? "*" : *origin);
  headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
  return headers;
}

}  // namespace qvl::serve
