// Downloads against servers of our own on the loopback address, which the policy of a test lets through.
#include "qvl/serve/fetch.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/file_descriptor.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/serve/http_error.h"

namespace qvl::serve {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view kParam = "image_url";

// Answers every connection with the bytes that a test wants, after reading its head.
class TinyServer {
 public:
  using Answer = std::function<void(int fd, const std::string& head)>;

  explicit TinyServer(Answer answer) : answer_(std::move(answer)) {
    fd_ = FileDescriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(fd_.get(), 16), 0);
    EXPECT_EQ(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~TinyServer() {
    stop_ = true;
    thread_.join();
  }
  int port() const { return port_; }
  int connections() const { return connections_; }
  std::string last_head() const {
    const std::lock_guard lock(mutex_);
    return head_;
  }
  bool stopping() const { return stop_; }

  static void say(int fd, std::string_view bytes) { ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  static void say_ok(int fd, std::string_view body) {
    say(fd, cat("HTTP/1.1 200 OK\r\nContent-Length: ", body.size(), "\r\nConnection: close\r\n\r\n", body));
  }

 private:
  void run() {
    while (!stop_) {
      pollfd entry{fd_.get(), POLLIN, 0};
      if (::poll(&entry, 1, 20) <= 0) continue;
      const FileDescriptor client(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      ++connections_;
      std::string head;
      char piece[4096];
      while (head.find("\r\n\r\n") == std::string::npos) {
        const ssize_t n = ::recv(client.get(), piece, sizeof piece, 0);
        if (n <= 0) break;
        head.append(piece, static_cast<size_t>(n));
      }
      {
        const std::lock_guard lock(mutex_);
        head_ = head;
      }
      answer_(client.get(), head);
    }
  }

  Answer answer_;
  FileDescriptor fd_;
  int port_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<int> connections_{0};
  mutable std::mutex mutex_;
  std::string head_;
  std::thread thread_;
};

bool only_127_0_0_1(const sockaddr* address) {
  if (is_public_address(address)) return true;
  if (address->sa_family != AF_INET) return false;
  sockaddr_in in{};
  std::memcpy(&in, address, sizeof in);
  return in.sin_addr.s_addr == htonl(INADDR_LOOPBACK);
}

// URLs of `server` under both its names, from the one address that the tests' policy adds.
MediaPolicy policy_for(const TinyServer& server) {
  MediaPolicy policy;
  policy.urls = true;
  policy.allowed_hosts = {cat("127.0.0.1:", server.port()), cat("localhost:", server.port())};
  policy.address_allowed = only_127_0_0_1;
  policy.timeout = milliseconds(3000);
  policy.max_bytes = 100'000;
  return policy;
}

struct Refusal {
  std::string message, code;
  ErrorCode kind = ErrorCode::kIo;
  int status = 0;
};

Refusal refusal(std::string_view url, const MediaPolicy& policy, const Cancelled& cancelled = {}) {
  try {
    load_media(url, policy, kParam, cancelled);
  } catch (const HttpError& e) {
    EXPECT_EQ(e.reply().param, kParam);
    return {e.reply().message, e.reply().code, e.code(), e.reply().status};
  }
  return {};
}

TEST(Fetch, BringsTheBytes) {
  const std::string body("\x89PNG\r\n\0x", 8);
  TinyServer server([&](int fd, const std::string&) { TinyServer::say_ok(fd, body); });
  const MediaPolicy policy = policy_for(server);
  EXPECT_EQ(load_media(cat("http://127.0.0.1:", server.port(), "/a?q=1#frag"), policy, kParam), body);
  EXPECT_TRUE(server.last_head().starts_with("GET /a?q=1 HTTP/1.1\r\n")) << server.last_head();
  EXPECT_EQ(server.last_head().find("Accept-Encoding"), std::string::npos);
  EXPECT_EQ(server.last_head().find("Authorization"), std::string::npos);
  EXPECT_EQ(load_media(cat("HTTP://LocalHost:", server.port(), "/"), policy, kParam), body);
}

TEST(Fetch, ProxiesOfTheEnvironmentAreIgnored) {
  TinyServer proxy([](int fd, const std::string&) { TinyServer::say_ok(fd, "from the proxy"); });
  TinyServer server([](int fd, const std::string&) { TinyServer::say_ok(fd, "direct"); });
  ::setenv("http_proxy", cat("http://127.0.0.1:", proxy.port()).c_str(), 1);
  ::setenv("all_proxy", cat("http://127.0.0.1:", proxy.port()).c_str(), 1);
  EXPECT_EQ(load_media(cat("http://127.0.0.1:", server.port(), "/"), policy_for(server), kParam), "direct");
  ::unsetenv("http_proxy");
  ::unsetenv("all_proxy");
  EXPECT_EQ(proxy.connections(), 0);
}

TEST(Fetch, PrivateAddressesAreRefusedWhateverTheName) {
  TinyServer server([](int fd, const std::string&) { TinyServer::say_ok(fd, "inner"); });
  MediaPolicy policy = policy_for(server);
  policy.address_allowed = {};  // as every operator has it
  const int port = server.port();
  policy.allowed_hosts.push_back(cat("[::1]:", port));
  policy.allowed_hosts.push_back(cat("[::ffff:127.0.0.1]:", port));
  policy.allowed_hosts.push_back(cat("0.0.0.0:", port));
  for (const std::string_view host :
       {"127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "[::1]",
        "[::ffff:127.0.0.1]", "0", "0.0.0.0", "%31%32%37.0.0.1"}) {
    const Refusal r = refusal(cat("http://", host, ":", port, "/"), policy);
    EXPECT_EQ(r.code, "image_url_not_allowed") << host << ": " << r.message;
    EXPECT_EQ(r.kind, ErrorCode::kInvalidArgument) << host;
  }
  // A name that resolves to it, and one that does not exist, get the same words.
  const std::string inner = refusal(cat("http://localhost:", port, "/"), policy).message;
  policy.allowed_hosts.push_back(cat("does-not-exist.invalid:", port));
  const Refusal unknown = refusal(cat("http://does-not-exist.invalid:", port, "/"), policy);
  if (unknown.kind != ErrorCode::kLimit) {  // a machine whose name server does not answer
    EXPECT_EQ(unknown.message, inner);
  }
  EXPECT_EQ(server.connections(), 0);
}

TEST(Fetch, HostsAreHeldAgainstTheList) {
  TinyServer server([](int fd, const std::string&) { TinyServer::say_ok(fd, "inner"); });
  MediaPolicy policy = policy_for(server);
  const int port = server.port();
  policy.allowed_hosts = {"example.com", cat("*.example.org:", port)};
  for (const std::string& url :
       {cat("http://127.0.0.1:", port, "/"), cat("http://localhost:", port, "/"),
        cat("http://example.com:", port, "/"), cat("http://example.com@127.0.0.1:", port, "/"),
        cat("http://127.0.0.1:", port, "#@example.com/"), cat("http://127.0.0.1:", port, "\\@example.com/"),
        cat("http://example.com.127.0.0.1.nip.io:", port, "/"), cat("http://example.org:", port, "/"),
        cat("http://xexample.org:", port, "/"), std::string("http://a.example.org/"),
        std::string("http://user:password@example.com/"), std::string("http://ex\xc3\xa4mple.com/"),
        std::string("http://example.com:99999/"), std::string("http://example.com:22/"),
        std::string("http://"), std::string("http://exa mple.com/"),
        std::string("http://example.com\r\nX: y/"), cat("http://", std::string(9000, 'a'))}) {
    const Refusal r = refusal(url, policy);
    EXPECT_EQ(r.status, 400) << url;
    EXPECT_TRUE(r.code == "image_url_not_allowed" || r.code == "invalid_image_url")
        << url << ": " << r.message;
    EXPECT_LT(r.message.size(), 300u);
  }
  EXPECT_EQ(server.connections(), 0);
  MediaPolicy any;
  any.urls = true;
  EXPECT_TRUE(host_allowed(any, "example.com", 443));
  EXPECT_FALSE(host_allowed(any, "example.com", 8080));
  any.allowed_hosts = {"Example.COM", "*.sub.example.net", "h:8443", "[2001:db8::1]:81"};
  EXPECT_TRUE(host_allowed(any, "example.com", 80));
  EXPECT_FALSE(host_allowed(any, "www.example.com", 80));
  EXPECT_TRUE(host_allowed(any, "a.b.sub.example.net", 443));
  EXPECT_FALSE(host_allowed(any, "sub.example.net", 443));
  EXPECT_TRUE(host_allowed(any, "h", 8443));
  EXPECT_FALSE(host_allowed(any, "h", 443));
  EXPECT_TRUE(host_allowed(any, "[2001:db8::1]", 81));
}

TEST(Fetch, RedirectsAreCheckedHopByHop) {
  std::string location;
  TinyServer server([&](int fd, const std::string& head) {
    if (head.starts_with("GET /go ")) {
      TinyServer::say(fd, cat("HTTP/1.1 302 Found\r\nLocation: ", location, "\r\nContent-Length: 0\r\n\r\n"));
    } else if (head.starts_with("GET /loop")) {
      TinyServer::say(fd, "HTTP/1.1 307 Again\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n");
    } else {
      TinyServer::say_ok(fd, "reached");
    }
  });
  MediaPolicy policy = policy_for(server);
  const std::string start = cat("http://127.0.0.1:", server.port(), "/go");
  for (const std::string& good :
       {std::string("/there"), std::string("there"), cat("http://localhost:", server.port(), "/there"),
        cat("//localhost:", server.port(), "/x")}) {
    location = good;
    EXPECT_EQ(load_media(start, policy, kParam), "reached") << good;
  }
  for (const std::string& bad :
       {std::string("file:///etc/passwd"), std::string("ftp://127.0.0.1/x"),
        std::string("gopher://127.0.0.1/x"), std::string("http://169.254.169.254/latest/meta-data"),
        std::string("http://10.0.0.1/"), cat("http://u:p@127.0.0.1:", server.port(), "/there"),
        std::string("http://127.0.0.1:1/"), std::string("data:image/png;base64,QQ=="),
        std::string("http://[::1]/")}) {
    location = bad;
    const Refusal r = refusal(start, policy);
    EXPECT_EQ(r.status, 400) << bad;
    EXPECT_TRUE(r.code == "image_url_not_allowed" || r.code == "invalid_image_url")
        << bad << ": " << r.message;
  }
  // The list lets the name through, the address does not.
  policy.allowed_hosts.push_back("127.0.0.2");
  policy.allowed_hosts.push_back("169.254.169.254");
  for (const std::string_view bad : {"http://127.0.0.2/", "http://169.254.169.254/latest/meta-data"}) {
    location = bad;
    const auto began = Clock::now();
    EXPECT_NE(refusal(start, policy).message.find("no public address"), std::string::npos) << bad;
    EXPECT_LT(ms_since(began), 1000);
  }
  const int before = server.connections();
  const Refusal loop = refusal(cat("http://127.0.0.1:", server.port(), "/loop"), policy);
  EXPECT_EQ(loop.kind, ErrorCode::kLimit) << loop.message;
  EXPECT_EQ(server.connections() - before, 1 + policy.max_redirects);
}

TEST(Fetch, SizeIsLimitedWhileItComes) {
  std::atomic<size_t> sent{0};
  TinyServer server([&](int fd, const std::string& head) {
    if (head.starts_with("GET /said")) {
      TinyServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n");
      return;
    }
    TinyServer::say(fd, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    const std::string piece(10'000, 'x');
    while (::send(fd, piece.data(), piece.size(), MSG_NOSIGNAL) > 0 && sent < (size_t{200} << 20))
      sent += piece.size();
  });
  for (const std::string_view path : {"/said", "/endless"}) {
    const Refusal r = refusal(cat("http://127.0.0.1:", server.port(), path), policy_for(server));
    EXPECT_EQ(r.kind, ErrorCode::kLimit) << path;
    EXPECT_EQ(r.status, 413);
    EXPECT_EQ(r.code, "image_too_large");
  }
  EXPECT_LT(sent, size_t{20} << 20);
}

TEST(Fetch, TimeIsLimitedAndCancellationHeeded) {
  TinyServer server([&](int fd, const std::string& head) {
    TinyServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    if (!head.starts_with("GET /drip")) return;
    for (int i = 0; i < 300 && ::send(fd, "x", 1, MSG_NOSIGNAL) > 0; ++i)
      std::this_thread::sleep_for(milliseconds(10));
  });
  MediaPolicy policy = policy_for(server);
  policy.timeout = milliseconds(300);
  const std::string url = cat("http://127.0.0.1:", server.port(), "/drip");
  auto start = Clock::now();
  const Refusal slow = refusal(url, policy);
  EXPECT_EQ(slow.kind, ErrorCode::kLimit) << slow.message;
  EXPECT_EQ(slow.code, "failed_to_download_image");
  EXPECT_LT(ms_since(start), 2000);
  policy.timeout = milliseconds(30'000);
  start = Clock::now();
  EXPECT_EQ(refusal(url, policy, [&] { return ms_since(start) > 100; }).kind, ErrorCode::kCancelled);
  EXPECT_LT(ms_since(start), 1000);
  const Refusal cut = refusal(cat("http://127.0.0.1:", server.port(), "/cut"), policy);
  EXPECT_EQ(cut.kind, ErrorCode::kFormat) << cut.message;
}

TEST(Fetch, OtherAnswersAreErrors) {
  std::string answer;
  TinyServer server([&](int fd, const std::string&) { TinyServer::say(fd, answer); });
  const MediaPolicy policy = policy_for(server);
  const std::string url = cat("http://127.0.0.1:", server.port(), "/");
  const auto says = [&](std::string_view what, std::string_view bytes) {
    answer = bytes;
    const Refusal r = refusal(url, policy);
    EXPECT_NE(r.message.find(what), std::string::npos) << bytes << ": " << r.message;
    EXPECT_EQ(r.code, "failed_to_download_image");
  };
  says("status 404", "HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno");
  says("status 206", "HTTP/1.1 206 Part\r\nContent-Length: 2\r\n\r\nno");
  says("status 302", "HTTP/1.1 302 Where\r\nContent-Length: 0\r\n\r\n");
  says("empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  says("", "SSH-2.0-OpenSSH\r\n");
  says("", "");
}

TEST(Fetch, PublicAddresses) {
  const auto is_public = [](const char* text) {
    sockaddr_in four{};
    sockaddr_in6 six{};
    if (::inet_pton(AF_INET, text, &four.sin_addr) == 1) {
      four.sin_family = AF_INET;
      return is_public_address(reinterpret_cast<const sockaddr*>(&four));
    }
    EXPECT_EQ(::inet_pton(AF_INET6, text, &six.sin6_addr), 1) << text;
    six.sin6_family = AF_INET6;
    return is_public_address(reinterpret_cast<const sockaddr*>(&six));
  };
  for (const char* good :
       {"8.8.8.8",          "1.1.1.1",         "9.255.255.255",   "11.0.0.0",        "100.63.255.255",
        "100.128.0.0",      "126.255.255.255", "128.0.0.0",       "169.253.255.255", "172.15.255.255",
        "172.32.0.0",       "192.0.1.0",       "192.167.255.255", "192.169.0.0",     "198.17.255.255",
        "198.20.0.0",       "223.255.255.255", "2606:4700::1111", "2a00:1450::1",    "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8", "2001:4860::8888"}) {
    EXPECT_TRUE(is_public(good)) << good;
  }
  for (const char* bad : {"0.0.0.0",
                          "0.1.2.3",
                          "10.0.0.0",
                          "10.255.255.255",
                          "100.64.0.0",
                          "100.100.100.200",
                          "100.127.255.255",
                          "127.0.0.1",
                          "127.255.255.255",
                          "169.254.0.0",
                          "169.254.169.254",
                          "172.16.0.0",
                          "172.31.255.255",
                          "192.0.0.1",
                          "192.0.0.192",
                          "192.0.2.1",
                          "192.88.99.1",
                          "192.168.0.0",
                          "192.168.255.255",
                          "198.18.0.0",
                          "198.19.255.255",
                          "198.51.100.1",
                          "203.0.113.1",
                          "224.0.0.1",
                          "239.255.255.255",
                          "240.0.0.1",
                          "255.255.255.255",
                          "168.63.129.16",
                          "::",
                          "::1",
                          "::ffff:127.0.0.1",
                          "::ffff:10.0.0.1",
                          "::127.0.0.1",
                          "::8.8.8.8",
                          "64:ff9b::10.0.0.1",
                          "64:ff9b::7f00:1",
                          "64:ff9b:1::1",
                          "100::1",
                          "2001::1",
                          "2001:0:4136:e378:8000:63bf:3fff:fdd2",
                          "2001:2::1",
                          "2001:10::1",
                          "2001:db8::1",
                          "2002:7f00:1::",
                          "2002:a00:1::1",
                          "3fff::1",
                          "4000::1",
                          "5f00::1",
                          "fc00::1",
                          "fd12:3456::1",
                          "fe80::1",
                          "fec0::1",
                          "ff02::1"}) {
    EXPECT_FALSE(is_public(bad)) << bad;
  }
  const sockaddr local{AF_UNIX, {}};
  EXPECT_FALSE(is_public_address(&local));
}

}  // namespace
}  // namespace qvl::serve
