// A server with the routes that the tests of the HTTP side ask for.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "qvl/base/format.h"
#include "qvl/serve/http.h"
#include "qvl/serve/http_testing.h"

namespace qvl::serve {

// Streams and owed answers that a test holds in its hands.
class Held {
 public:
  void add(std::shared_ptr<Responder> responder) {
    responder->on_gone([this] { ++gone; });
    const std::lock_guard lock(mutex_);
    all_.push_back(std::move(responder));
  }
  size_t size() const {
    const std::lock_guard lock(mutex_);
    return all_.size();
  }
  std::shared_ptr<Responder> at(size_t i) const {
    const std::lock_guard lock(mutex_);
    return all_.at(i);
  }
  void clear() {
    std::vector<std::shared_ptr<Responder>> dropped;
    const std::lock_guard lock(mutex_);
    dropped.swap(all_);
  }
  std::atomic<size_t> gone{0};

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Responder>> all_;
};

class TestServer {
 public:
  explicit TestServer(HttpOptions options = {}) {
    options.port = 0;
    options.on_exchanged = [this](const Exchanged& one) {
      const std::lock_guard lock(mutex_);
      exchanged_.push_back(one);
    };
    server_ = std::make_unique<HttpServer>(std::move(options));
    const Headers text{{"Content-Type", "text/plain"}};
    const auto get = [&](std::string path, Handler handler) {
      server_->add({"GET", std::move(path), std::move(handler), false});
    };
    server_->add(
        {"GET", "/hello",
         [text](const HttpRequest&, const std::shared_ptr<Responder>& r) { r->send(200, text, "hi"); }, false,
         0, false, true});
    server_->add({"GET", "/secret", [text](const HttpRequest&, const std::shared_ptr<Responder>& r) {
                    r->send(200, text, "gold");
                  }});
    const auto echo = [text](const HttpRequest& q, const std::shared_ptr<Responder>& r) {
      r->send(200, text, q.body);
    };
    server_->add({"POST", "/echo", echo, false, 100'000});
    server_->add({"POST", "/json", echo, true, 100'000, true});
    get("/items/*", [text](const HttpRequest& q, const std::shared_ptr<Responder>& r) {
      r->send(200, text, cat(q.rest, "|", q.query));
    });
    get("/items/one",
        [text](const HttpRequest&, const std::shared_ptr<Responder>& r) { r->send(200, text, "exact"); });
    get("/later", [text, this](const HttpRequest& q, const std::shared_ptr<Responder>& r) {
      later_.emplace_back([text, r, name = q.query] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        r->send(200, text, name);
      });
    });
    get("/count/*", [text](const HttpRequest& q, const std::shared_ptr<Responder>& r) {
      r->start_stream(200, text);
      const int count = std::min(1000, std::atoi(q.rest.c_str()));
      for (int i = 0; i < count; ++i) r->write(cat(i, ";"));
      r->end();
    });
    get("/hold", [this](const HttpRequest&, const std::shared_ptr<Responder>& r) { held.add(r); });
    get("/stream", [this, text](const HttpRequest&, const std::shared_ptr<Responder>& r) {
      r->start_stream(200, text);
      r->write("first");
      held.add(r);
    });
    get("/silent", [](const HttpRequest&, const std::shared_ptr<Responder>&) {});
    get("/throw/*", [text](const HttpRequest& q, const std::shared_ptr<Responder>& r) {
      if (q.rest == "stream") {
        r->start_stream(200, text);
        r->write("begun");
      }
      if (q.rest == "invalid") throw HttpError(ErrorReply("invalid_value", "expected user, got x", "messages[0].role"));
      if (q.rest == "io") fail(ErrorCode::kIo, "/secret/path", "cannot read");
      if (q.rest == "busy") {
        ErrorReply busy("rate_limit_exceeded", "busy");
        busy.headers.emplace_back("Retry-After", "7");
        throw HttpError(busy);
      }
      throw std::runtime_error("inner details");
    });
    server_->serve_bytes("/page", "text/html; charset=utf-8", "<p>page</p>", {{"X-Extra", "yes"}});
    server_->start();
  }
  ~TestServer() {
    held.clear();
    for (std::thread& thread : later_) thread.join();
  }

  HttpServer& operator*() { return *server_; }
  HttpServer* operator->() { return server_.get(); }
  uint16_t port() const { return server_->port(); }
  std::vector<Exchanged> exchanged() const {
    const std::lock_guard lock(mutex_);
    return exchanged_;
  }
  // Nothing is left of what clients began.
  bool idle() const {
    const HttpStats stats = server_->stats();
    return stats.connections == 0 && stats.responders == 0 && stats.handlers == 0;
  }

  Held held;

 private:
  mutable std::mutex mutex_;
  std::vector<Exchanged> exchanged_;
  std::vector<std::thread> later_;  // of one worker at a time: tests that use it have one
  std::unique_ptr<HttpServer> server_;
};

inline std::string get(std::string_view path, std::string_view more = "") {
  return cat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\n", more, "\r\n");
}
inline std::string post(std::string_view path, std::string_view body, std::string_view more = "") {
  return cat("POST ", path, " HTTP/1.1\r\nHost: localhost\r\nContent-Length: ", body.size(), "\r\n", more,
             "\r\n", body);
}

}  // namespace qvl::serve
