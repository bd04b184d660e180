#include "qvl/serve/http_message.h"

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <mutex>
#include <random>

#include "qvl/base/format.h"
#include "qvl/base/sha256.h"

namespace qvl::serve {

namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_alpha(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}
char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}
int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (lower(c) >= 'a' && lower(c) <= 'f') return lower(c) - 'a' + 10;
  return -1;
}
bool is_token(std::string_view text) {
  constexpr std::string_view kOthers = "!#$%&'*+-.^_`|~";
  return !text.empty() && std::ranges::all_of(text, [&](char c) {
    return is_digit(c) || is_alpha(c) || kOthers.find(c) != std::string_view::npos;
  });
}

// Of equal length always (digests), so that time tells nothing of where they differ.
bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned char difference = a.size() != b.size();
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  }
  return difference == 0;
}

}  // namespace

std::optional<std::string> percent_decode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

std::optional<Target> parse_target(std::string_view target) {
  if (target == "*") return Target{"*", ""};
  if (!target.starts_with('/')) {
    const size_t scheme_end = target.find("://");
    if (scheme_end == std::string_view::npos) return std::nullopt;
    const std::string_view scheme = target.substr(0, scheme_end);
    if (!equal_ignoring_case(scheme, "http") && !equal_ignoring_case(scheme, "https")) return std::nullopt;
    const size_t path = target.find_first_of("/?", scheme_end + 3);
    target = path == std::string_view::npos ? "/" : target.substr(path);
  }
  const size_t query = target.find('?');
  Target parsed;
  if (query != std::string_view::npos) parsed.query = target.substr(query + 1);
  std::optional<std::string> path = percent_decode(target.substr(0, query));
  if (!path || std::ranges::any_of(*path, is_control)) return std::nullopt;
  parsed.path = path->empty() ? "/" : std::move(*path);
  return parsed;
}

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](char x, char y) { return lower(x) == lower(y); });
}

std::string lower_case(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), lower);
  return out;
}

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

const std::string* find_header(const Headers& headers, std::string_view name) {
  const auto it = std::ranges::find_if(
      headers, [&](const auto& header) { return equal_ignoring_case(header.first, name); });
  return it == headers.end() ? nullptr : &it->second;
}

std::optional<std::string> host_name(std::string_view host) {
  std::string_view name = host, port;
  if (host.starts_with('[')) {
    const size_t end = host.find(']');
    if (end == std::string_view::npos) return std::nullopt;
    name = host.substr(0, end + 1);
    const std::string_view rest = host.substr(end + 1);
    if (!rest.empty() && !rest.starts_with(':')) return std::nullopt;
    port = rest.empty() ? rest : rest.substr(1);
    const bool plain = std::ranges::all_of(name.substr(1, name.size() - 2),
                                           [](char c) { return hex_digit(c) >= 0 || c == ':' || c == '.'; });
    if (!plain || name.size() < 4) return std::nullopt;
  } else {
    const size_t colon = host.find(':');
    if (colon != std::string_view::npos) {
      name = host.substr(0, colon);
      port = host.substr(colon + 1);
    }
    const bool plain = std::ranges::all_of(
        name, [](char c) { return is_digit(c) || is_alpha(c) || c == '-' || c == '.' || c == '_'; });
    if (!plain) return std::nullopt;
    if (name.ends_with('.')) name.remove_suffix(1);
    if (name.empty()) return std::nullopt;
  }
  if (port.size() > 5 || !std::ranges::all_of(port, is_digit)) return std::nullopt;
  return lower_case(name);
}

bool is_loopback_name(std::string_view host) {
  if (host == "localhost" || host.ends_with(".localhost") || host == "[::1]") return true;
  return host.starts_with("127.") && std::ranges::count(host, '.') == 3 &&
         std::ranges::all_of(host, [](char c) { return is_digit(c) || c == '.'; });
}

bool has_key(std::string_view authorization, const std::vector<std::string>& keys) {
  const size_t space = authorization.find(' ');
  if (space == std::string_view::npos || !equal_ignoring_case(authorization.substr(0, space), "Bearer"))
    return false;
  const std::string given = sha256_hex(trimmed(authorization.substr(space)));
  bool found = false;
  for (const std::string& key : keys) found |= equal_in_constant_time(given, sha256_hex(key));
  return found;
}

bool is_json_type(std::string_view content_type) {
  const std::string type = lower_case(trimmed(content_type.substr(0, content_type.find(';'))));
  return type == "application/json" || (type.starts_with("application/") && type.ends_with("+json"));
}

bool names_etag(std::string_view if_none_match, std::string_view etag) {
  if (trimmed(if_none_match) == "*") return true;
  for (size_t at = 0; at <= if_none_match.size();) {
    const size_t comma = std::min(if_none_match.find(',', at), if_none_match.size());
    std::string_view one = trimmed(if_none_match.substr(at, comma - at));
    if (one.starts_with("W/")) one.remove_prefix(2);
    if (one == etag) return true;
    at = comma + 1;
  }
  return false;
}

bool is_sane_request_id(std::string_view id) {
  constexpr std::string_view kOthers = "-_.:";
  return !id.empty() && id.size() <= 128 && std::ranges::all_of(id, [&](char c) {
    return is_digit(c) || is_alpha(c) || kOthers.find(c) != std::string_view::npos;
  });
}

std::string make_request_id() {
  static std::mutex mutex;
  static std::mt19937_64 random = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  const std::lock_guard lock(mutex);
  const uint64_t high = random(), low = random();
  return fmt::format("req_{:016x}{:08x}", high, low >> 32);
}

std::string http_date() {
  constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[utc.tm_wday], utc.tm_mday,
                     kMonths[utc.tm_mon], utc.tm_year + 1900, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

std::string response_head(int status, const Headers& headers) {
  std::string head = cat("HTTP/1.1 ", status, " ", reason_phrase(status), "\r\n");
  for (const auto& [name, value] : headers) head.append(name).append(": ").append(value).append("\r\n");
  head.append("\r\n");
  return head;
}

void check_answer(int status, const Headers& headers) {
  if (status < 200 || status > 599) {
    fail(ErrorCode::kInvalidArgument, "http", "status of an answer", "200 to 599", cat(status));
  }
  for (const auto& [name, value] : headers) {
    const bool ours = equal_ignoring_case(name, "content-length") ||
                      equal_ignoring_case(name, "connection") ||
                      equal_ignoring_case(name, "transfer-encoding");
    if (ours || !is_token(name)) {
      fail(ErrorCode::kInvalidArgument, "http", cat("an answer cannot have the header '", name, "'"));
    }
    if (std::ranges::any_of(value, [](char c) { return is_control(c) && c != '\t'; })) {
      fail(ErrorCode::kInvalidArgument, "http", cat("control characters in the header ", name));
    }
  }
}

}  // namespace qvl::serve
