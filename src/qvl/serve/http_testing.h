// A client for the tests of the server that speaks bytes, not HTTP: it can send what no library would.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "qvl/base/file_descriptor.h"
#include "qvl/base/stopwatch.h"
#include "qvl/serve/http_message.h"

namespace qvl::serve {

inline bool eventually(const std::function<bool()>& condition, int within_ms = 5000) {
  const auto start = Clock::now();
  while (ms_since(start) < within_ms) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return condition();
}

struct Reply {
  int status = 0;  // 0: the connection closed before a whole answer came
  Headers headers;
  std::string body;
  bool cut = false;  // head complete, body not
  std::string header(std::string_view name) const {
    const std::string* value = find_header(headers, name);
    return value ? *value : "";
  }
};

class RawClient {
 public:
  explicit RawClient(uint16_t port, int receive_bytes = 0)
      : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_bytes > 0)
      ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  explicit RawClient(const std::string& unix_path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    unix_path.copy(address.sun_path, sizeof address.sun_path - 1);
    connected_ = ::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }

  bool connected() const { return connected_; }
  // False when the other side closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  void shut_sending() { ::shutdown(fd_.get(), SHUT_WR); }
  void close() { fd_ = FileDescriptor(); }
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }

  // Adds what has come to the buffer; false at the end of the stream or after `ms` without a byte.
  bool receive(int ms = 10'000) {
    pollfd entry{fd_.get(), POLLIN, 0};
    if (::poll(&entry, 1, ms) <= 0) return false;
    char piece[65536];
    const ssize_t n = ::recv(fd_.get(), piece, sizeof piece, 0);
    if (n <= 0) {
      ended_ = true;
      return false;
    }
    buffer_.append(piece, static_cast<size_t>(n));
    return true;
  }
  // Whether the other side closed, whatever it sent before.
  bool at_end(int ms = 10'000) {
    while (receive(ms)) {
    }
    return ended_;
  }
  std::string& buffer() { return buffer_; }

  // The next answer; `head_only` for HEAD.
  Reply read(bool head_only = false, int ms = 10'000) {
    Reply reply;
    size_t end = 0;
    do {
      while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
        if (!receive(ms)) return reply;
      }
      reply = Reply{};
      read_head(buffer_.substr(0, end + 2), reply);
      buffer_.erase(0, end + 4);
    } while (reply.status == 100);
    if (head_only || reply.status == 204 || reply.status == 304) return reply;
    if (!reply.header("transfer-encoding").empty()) {
      read_chunks(reply, ms);
    } else if (const std::string length = reply.header("content-length"); !length.empty()) {
      const size_t bytes = std::stoul(length);
      while (buffer_.size() < bytes && receive(ms)) {
      }
      reply.cut = buffer_.size() < bytes;
      reply.body = buffer_.substr(0, bytes);
      buffer_.erase(0, bytes);
    } else {
      reply.cut = !at_end(ms);
      reply.body = std::exchange(buffer_, {});
    }
    return reply;
  }

  Reply ask(std::string_view request) {
    send(request);
    return read();
  }

 private:
  static void read_head(std::string_view head, Reply& reply) {
    reply.status = std::stoi(std::string(head.substr(9, 3)));
    size_t at = head.find("\r\n") + 2;
    while (at < head.size()) {
      const size_t end = head.find("\r\n", at);
      const std::string_view line = head.substr(at, end - at);
      const size_t colon = line.find(": ");
      EXPECT_NE(colon, std::string_view::npos) << line;
      if (colon == std::string_view::npos) return;
      reply.headers.emplace_back(lower_case(line.substr(0, colon)), line.substr(colon + 2));
      at = end + 2;
    }
  }

  void read_chunks(Reply& reply, int ms) {
    reply.cut = true;
    for (;;) {
      size_t line = 0;
      while ((line = buffer_.find("\r\n")) == std::string::npos) {
        if (!receive(ms)) return;
      }
      const size_t bytes = std::stoul(buffer_.substr(0, line), nullptr, 16);
      while (buffer_.size() < line + 2 + bytes + 2) {
        if (!receive(ms)) return;
      }
      EXPECT_EQ(buffer_.substr(line + 2 + bytes, 2), "\r\n");
      reply.body += buffer_.substr(line + 2, bytes);
      buffer_.erase(0, line + 2 + bytes + 2);
      if (bytes == 0) {
        reply.cut = false;
        return;
      }
    }
  }

  FileDescriptor fd_;
  bool connected_ = false, ended_ = false;
  std::string buffer_;
};

}  // namespace qvl::serve
