#include "qvl/serve/http.h"

#include <netinet/tcp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <thread>
#include <variant>

#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/sha256.h"
#include "qvl/serve/http_connection.h"

namespace qvl::serve {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using Local = asio::local::stream_protocol;

namespace {

constexpr std::string_view kUnixPrefix = "unix:";
// Connections beyond the limit are told so; beyond this many more they are just closed.
constexpr size_t kMostRefusing = 64;
constexpr milliseconds kAcceptPause{100};

std::string address_text(const asio::ip::address& address) {
  if (address.is_v6() && address.to_v6().is_v4_mapped()) {
    return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6()).to_string();
  }
  return address.is_v6() ? cat("[", address.to_string(), "]") : address.to_string();
}

std::string peer_name(const tcp::socket& socket) {
  error_code error;
  const tcp::endpoint peer = socket.remote_endpoint(error);
  return error ? std::string("unknown") : cat(address_text(peer.address()), ":", peer.port());
}

std::string peer_name(const Local::socket&) {
  return "unix";
}

[[noreturn]] void fail_listen(const std::string& where, const error_code& error) {
  fail(ErrorCode::kIo, "serve", cat("cannot listen on ", where, ": ", error.message()));
}

void check_options(const HttpOptions& o) {
  const auto check = [](bool good, std::string_view what) {
    if (!good) fail(ErrorCode::kInvalidArgument, "serve", what);
  };
  check(o.io_threads >= 1 && o.io_threads <= 64, "io_threads: expected 1 to 64");
  check(o.worker_threads >= 1 && o.worker_threads <= 1024, "worker_threads: expected 1 to 1024");
  check(o.max_connections >= 1, "max_connections: expected at least 1");
  check(o.max_header_bytes >= 256 && o.max_header_bytes <= (size_t{1} << 20),
        "max_header_bytes: expected 256 to 1048576");
  check(!o.host.empty(), "host: expected a name, an address or unix:/path, got nothing");
  for (const std::string& key : o.api_keys) {
    const bool plain = std::ranges::all_of(key, [](unsigned char c) { return c > 0x20 && c < 0x7f; });
    check(!key.empty() && plain, "API key: expected printable characters without blanks");
  }
  check_answer(200, o.extra_headers);
}

// The socket file of a server that is gone is removed; one in use stays and bind() fails.
void remove_stale_socket(const std::string& path) {
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0 || !S_ISSOCK(info.st_mode)) return;
  asio::io_context io;
  Local::socket probe(io);
  error_code error;
  probe.connect(Local::endpoint(path), error);
  if (error == asio::error::connection_refused) ::unlink(path.c_str());
}

}  // namespace

const std::string* HttpRequest::header(std::string_view name) const {
  return find_header(headers, name);
}

bool send_error(Responder& responder, const ErrorReply& error) {
  Headers headers = error.headers;
  headers.emplace_back("Content-Type", "application/json");
  return responder.send(error.status, std::move(headers), error.body());
}

bool send_exception(Responder& responder, const std::exception& exception) {
  const auto* exact = dynamic_cast<const HttpError*>(&exception);
  const ErrorReply reply = exact ? exact->reply() : ErrorReply("internal_error", cat("The server failed to answer (request ", responder.request_id(), ")."));
  if (reply.status >= 500) {
    log_message(LogLevel::kWarning,
                cat("[http] request ", responder.request_id(), ": ", reply.status, ": ", exception.what()));
  }
  return send_error(responder, reply);
}

class HttpServer::Impl {
 public:
  explicit Impl(HttpOptions options) : core_(std::make_shared<ServerCore>(std::move(options))) {}

  void add(Route route) {
    if (started_) fail(ErrorCode::kInvalidArgument, "serve", "routes are fixed once the server runs");
    const bool path_good = route.path.starts_with('/') && route.path.find('*') >= route.path.size() - 1;
    if (!path_good || route.method.empty() || !route.handler) {
      fail(ErrorCode::kInvalidArgument, "serve", "route", "a method, a path and a handler",
           cat(route.method, " ", route.path));
    }
    for (const Route& other : core_->gate.routes) {
      if (other.method == route.method && other.path == route.path) {
        fail(ErrorCode::kInvalidArgument, "serve",
             cat("route ", route.method, " ", route.path, " is there twice"));
      }
    }
    core_->gate.routes.push_back(std::move(route));
  }

  void start() {
    if (started_) fail(ErrorCode::kInvalidArgument, "serve", "the server was started before");
    check_options(core_->options);
    listen();
    started_ = true;
    core_->workers = std::make_unique<asio::thread_pool>(static_cast<size_t>(core_->options.worker_threads));
    for (auto& acceptor : tcp_acceptors_) accept(*acceptor);
    if (local_acceptor_) accept(*local_acceptor_);
    for (int i = 0; i < core_->options.io_threads; ++i) threads_.emplace_back([this] { run_io(); });
  }

  void stop(milliseconds grace) {
    if (!started_) return;
    bool first = false;
    {
      const std::lock_guard lock(core_->mutex);  // with take(): what is accepted from now on is dropped
      first = !core_->stopping.exchange(true);
    }
    if (first) asio::post(accepting_, [this] { close_acceptors(); });
    const auto deadline = Clock::now() + grace;
    for (const auto& connection : connections()) connection->stop_soon();
    if (!wait_for_connections(deadline)) {
      for (const auto& connection : connections()) connection->stop_now();
      wait_for_connections(Clock::time_point::max());
    }
    finish();
  }

  void wait() {
    std::unique_lock lock(core_->mutex);
    core_->changed.wait(lock, [&] { return finished_; });
  }

  HttpStats stats() const {
    HttpStats stats;
    {
      const std::lock_guard lock(core_->mutex);
      stats.connections = core_->connections.size();
    }
    stats.responders = *core_->responders;
    stats.handlers = core_->handlers;
    stats.accepted = core_->accepted;
    stats.refused = core_->refused;
    stats.requests = core_->requests;
    return stats;
  }

  const std::string& url() const { return url_; }
  uint16_t port() const { return port_; }
  bool loopback_only() const { return loopback_only_; }

 private:
  void listen() {
    const std::string& host = core_->options.host;
    if (host.starts_with(kUnixPrefix)) return listen_local(host.substr(kUnixPrefix.size()));
    error_code error;
    const std::string bare =
        host.starts_with('[') && host.ends_with(']') ? host.substr(1, host.size() - 2) : host;
    std::vector<asio::ip::address> addresses;
    const asio::ip::address literal = asio::ip::make_address(bare, error);
    if (!error) {
      addresses.push_back(literal);
    } else {
      tcp::resolver resolver(core_->io);
      for (const auto& entry : resolver.resolve(bare, "", error))
        addresses.push_back(entry.endpoint().address());
      if (error) {
        fail(ErrorCode::kInvalidArgument, "serve", cat("host ", host, " is not known: ", error.message()));
      }
    }
    std::ranges::sort(addresses);  // IPv4 first
    addresses.erase(std::ranges::unique(addresses).begin(), addresses.end());
    port_ = core_->options.port;
    error_code last;
    for (const asio::ip::address& address : addresses) {
      if (const error_code failed = listen_tcp(address)) {
        // "localhost" often names ::1 on machines without IPv6.
        if (failed != asio::error::address_family_not_supported && failed != asio::error::no_such_device &&
            failed != boost::system::errc::address_not_available) {
          tcp_acceptors_.clear();
          fail_listen(cat(address_text(address), ":", port_), failed);
        }
        last = failed;
        continue;
      }
      loopback_only_ = loopback_only_ && address.is_loopback();
    }
    if (tcp_acceptors_.empty()) fail_listen(cat(host, ":", port_), last);
    core_->gate.check_host = loopback_only_ || !core_->options.allowed_hosts.empty();
    asio::ip::address shown = tcp_acceptors_.front()->local_endpoint().address();
    if (shown.is_unspecified()) {
      shown = shown.is_v4() ? asio::ip::address(asio::ip::address_v4::loopback())
                            : asio::ip::address(asio::ip::address_v6::loopback());
    }
    url_ = cat("http://", address_text(shown), ":", port_);
  }

  error_code listen_tcp(const asio::ip::address& address) {
    error_code error;
    auto acceptor = std::make_unique<tcp::acceptor>(accepting_);
    const tcp::endpoint endpoint(address, port_);
    acceptor->open(endpoint.protocol(), error);
    if (!error) acceptor->set_option(tcp::acceptor::reuse_address(true), error);
    if (!error && address.is_v6()) {
      acceptor->set_option(asio::ip::v6_only(!address.is_unspecified()), error);
    }
    if (!error) acceptor->bind(endpoint, error);
    if (!error) acceptor->listen(asio::socket_base::max_listen_connections, error);
    if (error) return error;
    port_ = acceptor->local_endpoint().port();
    tcp_acceptors_.push_back(std::move(acceptor));
    return {};
  }

  void listen_local(const std::string& path) {
    if (path.empty() || path.size() > 100) {
      fail(ErrorCode::kInvalidArgument, "serve", "path of a Unix socket", "1 to 100 bytes", path);
    }
    remove_stale_socket(path);
    local_acceptor_ = std::make_unique<Local::acceptor>(accepting_);
    error_code error;
    local_acceptor_->open(Local(), error);
    if (!error) {
      const mode_t before = ::umask(0177);
      local_acceptor_->bind(Local::endpoint(path), error);
      ::umask(before);
    }
    if (!error) {
      local_path_ = path;
      local_acceptor_->listen(asio::socket_base::max_listen_connections, error);
    }
    if (error) {
      local_acceptor_.reset();
      fail_listen(path, error);
    }
    port_ = 0;
    url_ = cat(kUnixPrefix, path);
  }

  template <typename Acceptor>
  void accept(Acceptor& acceptor) {
    acceptor.async_accept(asio::any_io_executor(asio::make_strand(core_->io)),
                          [this, &acceptor](const error_code& error, auto socket) {
                            if (core_->stopping || error == asio::error::operation_aborted) return;
                            if (error) {
                              pause(acceptor, error);
                              return;
                            }
                            take(std::move(socket));
                            accept(acceptor);
                          });
  }

  // Out of file descriptors, mostly: trying again at once would only burn time.
  template <typename Acceptor>
  void pause(Acceptor& acceptor, const error_code& error) {
    log_message(LogLevel::kWarning, cat("[http] cannot accept a connection: ", error.message()));
    auto timer = std::make_shared<asio::steady_timer>(accepting_, kAcceptPause);
    timer->async_wait([this, &acceptor, timer](const error_code&) {
      if (!core_->stopping) accept(acceptor);
    });
  }

  template <typename Socket>
  void take(Socket socket) {
    ++core_->accepted;
    const std::string peer = peer_name(socket);
    if constexpr (std::is_same_v<typename Socket::protocol_type, tcp>) {
      error_code ignored;  // the client may be gone already
      socket.set_option(tcp::no_delay(true), ignored);
      // A machine that lost its network says nothing: it is asked, and what it does not confirm is not waited
      // for long.
      socket.set_option(asio::socket_base::keep_alive(true), ignored);
      const auto patience = static_cast<unsigned>(core_->options.write_timeout.count());
      ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
    }
    std::shared_ptr<Connection> connection;
    {
      const std::lock_guard lock(core_->mutex);
      if (core_->stopping) return;
      const size_t open = core_->connections.size();
      const bool refuse = open >= core_->options.max_connections;
      if (refuse) ++core_->refused;
      if (open >= core_->options.max_connections + kMostRefusing) return;
      connection = std::make_shared<Connection>(core_, Connection::Socket(std::move(socket)), peer, refuse);
      core_->connections.emplace(connection.get(), connection);
    }
    connection->start();
  }

  void run_io() {
    for (;;) {
      try {
        core_->io.run();
        return;
      } catch (const std::exception& e) {
        log_message(LogLevel::kWarning, cat("[http] ", e.what()));
      }
    }
  }

  void close_acceptors() {
    error_code ignored;
    for (auto& acceptor : tcp_acceptors_) acceptor->close(ignored);
    if (local_acceptor_) {
      local_acceptor_->close(ignored);
      ::unlink(local_path_.c_str());
    }
  }

  std::vector<std::shared_ptr<Connection>> connections() {
    std::vector<std::shared_ptr<Connection>> all;
    const std::lock_guard lock(core_->mutex);
    for (const auto& [pointer, weak] : core_->connections) {
      if (auto connection = weak.lock()) all.push_back(std::move(connection));
    }
    return all;
  }

  bool wait_for_connections(Clock::time_point deadline) {
    std::unique_lock lock(core_->mutex);
    return core_->changed.wait_until(lock, deadline, [&] { return core_->connections.empty(); });
  }

  void finish() {
    const std::lock_guard once(finish_mutex_);
    if (finished_) return;
    core_->workers->join();
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
    const std::lock_guard lock(core_->mutex);
    finished_ = true;
    core_->changed.notify_all();
  }

  std::shared_ptr<ServerCore> core_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{core_->io.get_executor()};
  // Acceptors may be closed by one thread only while no other accepts: whatever is done with them is done here.
  asio::strand<asio::io_context::executor_type> accepting_{core_->io.get_executor()};
  std::vector<std::unique_ptr<tcp::acceptor>> tcp_acceptors_;
  std::unique_ptr<Local::acceptor> local_acceptor_;
  std::string local_path_;
  std::vector<std::thread> threads_;
  std::string url_;
  uint16_t port_ = 0;
  bool loopback_only_ = true;
  bool started_ = false;
  std::mutex finish_mutex_;
  bool finished_ = false;
};

HttpServer::HttpServer(HttpOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}

HttpServer::~HttpServer() {
  stop(milliseconds(0));
}

void HttpServer::add(Route route) {
  impl_->add(std::move(route));
}

void HttpServer::serve_bytes(std::string path, std::string content_type, std::string bytes, Headers headers) {
  const std::string etag = cat("\"", sha256_hex(bytes).substr(0, 32), "\"");
  if (!find_header(headers, "Cache-Control")) headers.emplace_back("Cache-Control", "no-cache");
  headers.emplace_back("ETag", etag);
  Headers full = headers;
  full.emplace_back("Content-Type", std::move(content_type));
  check_answer(200, full);
  Route route{"GET", std::move(path), {}, false, 0, false, true};
  route.handler = [etag, headers = std::move(headers), full = std::move(full),
                   bytes = std::make_shared<const std::string>(std::move(bytes))](
                      const HttpRequest& request, const std::shared_ptr<Responder>& responder) {
    const std::string* known = request.header("if-none-match");
    if (known && names_etag(*known, etag)) {
      responder->send(304, headers, "");
    } else {
      responder->send(200, full, *bytes);
    }
  };
  add(std::move(route));
}

void HttpServer::start() {
  impl_->start();
}
std::string HttpServer::url() const {
  return impl_->url();
}
bool HttpServer::loopback_only() const {
  return impl_->loopback_only();
}

uint16_t HttpServer::port() const {
  return impl_->port();
}
void HttpServer::stop(milliseconds grace) {
  impl_->stop(grace);
}
void HttpServer::wait() {
  impl_->wait();
}
HttpStats HttpServer::stats() const {
  return impl_->stats();
}

}  // namespace qvl::serve
