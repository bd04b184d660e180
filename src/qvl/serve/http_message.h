// The words of HTTP that need no socket: targets, header fields, the head of an answer. RFC 9110, 9112.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/serve/http_error.h"

namespace qvl::serve {

struct Target {
  std::string path;   // percent-decoded; "*" for OPTIONS *
  std::string query;  // as sent
};

// "/path?query", "http://host/path?query" or "*"; nothing for what is malformed (no such form, a '%' without
// two digits, a control character).
std::optional<Target> parse_target(std::string_view target);
// Nothing for a '%' that is not followed by two hexadecimal digits.
std::optional<std::string> percent_decode(std::string_view text);

bool equal_ignoring_case(std::string_view a, std::string_view b);
std::string lower_case(std::string_view text);
// Without blanks and tabs at both ends.
std::string_view trimmed(std::string_view text);
// First value of that name (any case), nullptr when there is none.
const std::string* find_header(const Headers& headers, std::string_view name);

// The name in a Host field, in lower case and without port and a dot at the end; IPv6 keeps its brackets.
// Nothing for what is no host.
std::optional<std::string> host_name(std::string_view host);
// "localhost", a name below it, 127.x.y.z, [::1].
bool is_loopback_name(std::string_view host);

// Whether "Bearer KEY" has one of `keys`; how long it takes does not tell how much of a key was right.
bool has_key(std::string_view authorization, const std::vector<std::string>& keys);

// application/json or application/*+json, with any parameters.
bool is_json_type(std::string_view content_type);

// Whether an If-None-Match field names `etag` (with its quotes), weakly or not, or is "*".
bool names_etag(std::string_view if_none_match, std::string_view etag);

// 1 to 128 letters, digits, and "-_.:".
bool is_sane_request_id(std::string_view id);
// "req_" and 24 random hexadecimal digits.
std::string make_request_id();

// "Sun, 06 Nov 1994 08:49:37 GMT", now.
std::string http_date();

// The status line, `headers` and the empty line.
std::string response_head(int status, const Headers& headers);
// Throws kInvalidArgument for a status outside 200..599, a name that is no token, a value with control
// characters, and for Content-Length, Transfer-Encoding and Connection, which are the connection's business.
void check_answer(int status, const Headers& headers);

}  // namespace qvl::serve
