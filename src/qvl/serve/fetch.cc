#include "qvl/serve/fetch.h"

#include <curl/curl.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>

#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/stopwatch.h"
#include "qvl/serve/http_message.h"
#include "qvl/serve/media_error.h"

namespace qvl::serve {

namespace {

using std::chrono::milliseconds;

constexpr int kPollMs = 50;  // how long a cancellation may go unnoticed

struct CloseUrl {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
struct CloseEasy {
  void operator()(CURL* easy) const { curl_easy_cleanup(easy); }
};
struct CloseMulti {
  void operator()(CURLM* multi) const { curl_multi_cleanup(multi); }
};
using Url = std::unique_ptr<CURLU, CloseUrl>;

// What a hop is bound by.
struct Bounds {
  const MediaPolicy& policy;
  std::string_view param;
  const Cancelled& cancelled;
  Clock::time_point deadline;
};

[[noreturn]] void fail_url(const Bounds& bounds, std::string_view what) {
  fail_media(ErrorCode::kInvalidArgument, bounds.param, MediaFault::kInvalid, cat("picture URL: ", what));
}

[[noreturn]] void fail_fetch(const Bounds& bounds, ErrorCode code, std::string_view what) {
  fail_media(code, bounds.param, MediaFault::kFetchFailed, cat("picture URL: ", what));
}

// One message for names that do not exist and names of machines inside, so that nobody learns which is which.
[[noreturn]] void fail_address(const Bounds& bounds) {
  fail_media(ErrorCode::kInvalidArgument, bounds.param, MediaFault::kNotAllowed,
             "picture URL: the host is not known or has no public address");
}

std::string part(const Url& url, CURLUPart which, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url.get(), which, &text, flags) != CURLUE_OK) return {};
  std::string copy(text);
  curl_free(text);
  return copy;
}

// Parsed by the same code that will connect, so that the two cannot read it differently.
Url checked_url(const std::string& text, const Bounds& bounds) {
  if (text.size() > 8192) fail_url(bounds, "longer than 8192 bytes");
  Url url(curl_url());
  if (!url) throw std::bad_alloc();
  if (const CURLUcode code = curl_url_set(url.get(), CURLUPART_URL, text.c_str(), CURLU_NON_SUPPORT_SCHEME);
      code != CURLUE_OK) {
    fail_url(bounds, curl_url_strerror(code));
  }
  const std::string scheme = part(url, CURLUPART_SCHEME);
  if (scheme != "http" && scheme != "https") {
    fail_url(bounds, cat("expected http or https, got ", shortened(scheme)));
  }
  if (!part(url, CURLUPART_USER).empty() || !part(url, CURLUPART_PASSWORD).empty() ||
      !part(url, CURLUPART_OPTIONS).empty()) {
    fail_url(bounds, "user and password are not taken");
  }
  std::string host = lower_case(part(url, CURLUPART_HOST));
  const bool plain = std::ranges::all_of(host, [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (!plain) fail_url(bounds, "the host has other characters than ASCII's (write it as xn--...)");
  if (host.ends_with('.')) host.pop_back();
  const int port = std::atoi(part(url, CURLUPART_PORT, CURLU_DEFAULT_PORT).c_str());
  if (host.empty() || !host_allowed(bounds.policy, host, port)) {
    fail_media(
        ErrorCode::kInvalidArgument, bounds.param, MediaFault::kNotAllowed,
        cat("picture URL: ", shortened(host), ":", port, " is not among the hosts this server may ask"));
  }
  return url;
}

// One request and what came of it.
class Transfer {
 public:
  Transfer(Url url, const Bounds& bounds) : bounds_(bounds), url_(std::move(url)) {
    easy_.reset(curl_easy_init());
    multi_.reset(curl_multi_init());
    if (!easy_ || !multi_) throw std::bad_alloc();
    const auto left = std::chrono::duration_cast<milliseconds>(bounds.deadline - Clock::now()).count();
    set(CURLOPT_CURLU, url_.get());
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_FOLLOWLOCATION, 0L);  // every hop is checked here
    set(CURLOPT_PROXY, "");           // also against http_proxy in the environment
    set(CURLOPT_NOPROXY, "*");
    set(CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
    set(CURLOPT_OPENSOCKETFUNCTION, &Transfer::open_socket);
    set(CURLOPT_OPENSOCKETDATA, this);
    set(CURLOPT_WRITEFUNCTION, &Transfer::take);
    set(CURLOPT_WRITEDATA, this);
    set(CURLOPT_MAXFILESIZE_LARGE, static_cast<curl_off_t>(bounds.policy.max_bytes));
    set(CURLOPT_TIMEOUT_MS, std::max<long>(1, left));
    set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(bounds.policy.connect_timeout.count()));
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    set(CURLOPT_FORBID_REUSE, 1L);
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_QUICK_EXIT, 1L);  // a name server that does not answer is not waited for
    set(CURLOPT_USERAGENT, "qvl");
  }
  ~Transfer() {
    if (added_) curl_multi_remove_handle(multi_.get(), easy_.get());
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // The URL to go on to, or nothing: then body() is the picture.
  std::optional<std::string> run() {
    if (curl_multi_add_handle(multi_.get(), easy_.get()) != CURLM_OK) throw std::bad_alloc();
    added_ = true;
    for (int running = 1; running > 0;) {
      if (bounds_.cancelled && bounds_.cancelled()) fail_fetch(bounds_, ErrorCode::kCancelled, "cancelled");
      if (Clock::now() >= bounds_.deadline) fail_time();
      CURLMcode code = curl_multi_perform(multi_.get(), &running);
      if (code == CURLM_OK && running > 0) code = curl_multi_poll(multi_.get(), nullptr, 0, kPollMs, nullptr);
      if (code != CURLM_OK) fail_fetch(bounds_, ErrorCode::kIo, curl_multi_strerror(code));
    }
    int left = 0;
    const CURLMsg* message = curl_multi_info_read(multi_.get(), &left);
    check(message && message->msg == CURLMSG_DONE ? message->data.result : CURLE_RECV_ERROR);
    long status = 0;
    curl_easy_getinfo(easy_.get(), CURLINFO_RESPONSE_CODE, &status);
    if (status == 200) return std::nullopt;
    char* location = nullptr;
    curl_easy_getinfo(easy_.get(), CURLINFO_REDIRECT_URL, &location);
    const bool redirect = status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
    if (!redirect || !location)
      fail_fetch(bounds_, ErrorCode::kIo, cat("its server answered with status ", status));
    return std::string(location);
  }

  std::string body() { return std::move(body_); }

 private:
  // An option that is not taken would open what it was to close.
  template <typename T>
  void set(CURLoption option, T value) {
    if (const CURLcode code = curl_easy_setopt(easy_.get(), option, value); code != CURLE_OK) {
      fail_fetch(bounds_, ErrorCode::kUnsupported, cat("libcurl: ", curl_easy_strerror(code)));
    }
  }

  static curl_socket_t open_socket(void* self, curlsocktype, curl_sockaddr* address) {
    auto& transfer = *static_cast<Transfer*>(self);
    const auto& allowed = transfer.bounds_.policy.address_allowed;
    if (!(allowed ? allowed(&address->addr) : is_public_address(&address->addr))) {
      transfer.refused_ = true;
      return CURL_SOCKET_BAD;
    }
    return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  }

  static size_t take(char* data, size_t, size_t bytes, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    if (transfer.body_.size() + bytes > transfer.bounds_.policy.max_bytes) {
      transfer.too_large_ = true;
      return 0;
    }
    transfer.body_.append(data, bytes);
    return bytes;
  }

  [[noreturn]] void fail_time() {
    fail_fetch(bounds_, ErrorCode::kLimit,
               cat("it took longer than ", bounds_.policy.timeout.count(), " ms"));
  }

  void check(CURLcode code) {
    if (code == CURLE_OK) return;
    if (too_large_ || code == CURLE_FILESIZE_EXCEEDED)
      fail_too_large(bounds_.param, 0, bounds_.policy.max_bytes);
    if (refused_) {
      log_message(LogLevel::kWarning,
                  cat("[media] refused to connect to a private address for ", bounds_.param));
      fail_address(bounds_);
    }
    switch (code) {
      case CURLE_OPERATION_TIMEDOUT:
        fail_time();
      case CURLE_COULDNT_RESOLVE_HOST:
        fail_address(bounds_);
      case CURLE_PARTIAL_FILE:
        fail_fetch(bounds_, ErrorCode::kFormat, "the answer was cut short");
      case CURLE_COULDNT_CONNECT:
        fail_fetch(bounds_, ErrorCode::kIo, "its server cannot be reached");
      case CURLE_PEER_FAILED_VERIFICATION:
        fail_fetch(bounds_, ErrorCode::kIo, "its server's certificate is not accepted");
      default:
        fail_fetch(bounds_, ErrorCode::kIo, curl_easy_strerror(code));
    }
  }

  const Bounds& bounds_;
  Url url_;  // before the handle that uses it
  std::unique_ptr<CURLM, CloseMulti> multi_;
  std::unique_ptr<CURL, CloseEasy> easy_;
  std::string body_;
  bool added_ = false, refused_ = false, too_large_ = false;
};

// "example.com:8443" -> name and port; 0 without one.
struct HostPattern {
  std::string name;
  int port = 0;
};

HostPattern parse_pattern(std::string_view text) {
  HostPattern pattern{lower_case(text), 0};
  const size_t colon = pattern.name.rfind(':');
  const size_t bracket = pattern.name.rfind(']');
  if (colon != std::string::npos && (bracket == std::string::npos || bracket < colon)) {
    pattern.port = std::atoi(pattern.name.c_str() + colon + 1);
    pattern.name.resize(colon);
  }
  if (pattern.name.ends_with('.')) pattern.name.pop_back();
  return pattern;
}

}  // namespace

bool host_allowed(const MediaPolicy& policy, std::string_view host, int port) {
  const bool usual_port = port == 80 || port == 443;
  if (policy.allowed_hosts.empty()) return usual_port;
  return std::ranges::any_of(policy.allowed_hosts, [&](const std::string& text) {
    const HostPattern pattern = parse_pattern(text);
    if (pattern.port == 0 ? !usual_port : pattern.port != port) return false;
    if (!pattern.name.starts_with("*.")) return pattern.name == host;
    const std::string_view below = std::string_view(pattern.name).substr(1);
    return host.size() > below.size() && host.ends_with(below);
  });
}

std::string fetch_url(std::string_view url, const MediaPolicy& policy, std::string_view param,
                      const Cancelled& cancelled) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  const Bounds bounds{policy, param, cancelled, Clock::now() + policy.timeout};
  if (url.find('\0') != std::string_view::npos) fail_url(bounds, "malformed");
  std::string next(url);
  for (int redirects = 0;; ++redirects) {
    if (redirects > policy.max_redirects) {
      fail_fetch(bounds, ErrorCode::kLimit, cat("more than ", policy.max_redirects, " redirects"));
    }
    Transfer transfer(checked_url(next, bounds), bounds);
    const std::optional<std::string> redirect = transfer.run();
    if (!redirect) {
      std::string body = transfer.body();
      if (body.empty()) fail_fetch(bounds, ErrorCode::kFormat, "the answer is empty");
      return body;
    }
    next = *redirect;
  }
}

}  // namespace qvl::serve
