#include "qvl/serve/http_connection.h"

#include <poll.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "qvl/base/format.h"
#include "qvl/base/log.h"

// A false alarm of GCC about the frames of coroutines, which Asio allocates itself.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace qvl::serve {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using std::chrono::milliseconds;

namespace {

// A client that closed its sending half may still read a short answer.
constexpr milliseconds kHalfClosedGrace{2000};
// Closing while bytes of the client are unread resets the connection, and the answer may be lost with it.
constexpr milliseconds kLingerTime{2000};
// How often a client that sent ahead more than is read is asked whether it is still there.
constexpr milliseconds kHangUpInterval{250};
constexpr size_t kInputBytes = size_t{64} << 10;

ErrorReply head_error(const error_code& error, bool in_request_line) {
  if (error == http::error::bad_version) {
    return {"unsupported_http_version", "Only HTTP/1.0 and HTTP/1.1 are spoken here."};
  }
  if (error != http::error::header_limit) {
    return {"bad_request", cat("This is no HTTP request: ", error.message(), ".")};
  }
  if (in_request_line) return {"uri_too_long", "The request line is too long."};
  return {"headers_too_large", "The header fields are too large."};
}

std::string text_of(boost::beast::string_view view) {
  return std::string(view.data(), view.size());
}

}  // namespace

Connection::Connection(std::shared_ptr<ServerCore> core, Socket socket, std::string peer, bool refuse)
    : core_(std::move(core)),
      socket_(std::move(socket)),
      peer_(std::move(peer)),
      refuse_(refuse),
      wake_(socket_.get_executor()),
      input_limit_(std::max(kInputBytes, core_->options.max_header_bytes + 16)) {}

Connection::~Connection() {
  const std::lock_guard lock(core_->mutex);
  core_->connections.erase(this);
  core_->changed.notify_all();
}

void Connection::start() {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  asio::co_spawn(socket_.get_executor(), [self = shared_from_this()] { return self->run(); }, asio::detached);
}

void Connection::stop_soon() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->stopping_ = true;
    if (self->exchange_) self->exchange_->close_after();
    self->notify();
  });
}

void Connection::stop_now() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->close_socket(); });
}

void Connection::notify() {
  wake_.cancel();
}

Connection::Task<void> Connection::wait(Deadline deadline) {
  error_code woken;
  wake_.expires_at(deadline);
  co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, woken));
}

void Connection::close_socket() {
  if (dead_) return;
  dead_ = true;
  error_code ignored;
  socket_.close(ignored);
  if (exchange_) exchange_->peer_lost();
  notify();
}

void Connection::start_read() {
  if (reading_ || eof_ || dead_) return;
  reading_ = true;
  socket_.async_read_some(
      asio::buffer(chunk_),
      [self = shared_from_this()](const error_code& error, size_t bytes) { self->on_read(error, bytes); });
}

void Connection::on_read(const error_code& error, size_t bytes) {
  reading_ = false;
  if (error) {
    on_end(error != asio::error::eof);
    return;
  }
  if (!discard_) input_.append(chunk_.data(), bytes);
  if (input_.size() < input_limit_) start_read();
  notify();
}

// Nothing more will come; `lost`: and nothing can be sent.
void Connection::on_end(bool lost) {
  eof_ = true;
  left_at_ = Clock::now();
  if (exchange_ && lost) exchange_->peer_lost();
  if (exchange_ && !lost) exchange_->peer_left();
  notify();
}

void Connection::consume(size_t bytes) {
  input_.erase(0, bytes);
  if (input_.size() < input_limit_) start_read();
}

// Reading rests while input_ is full, so the end of the stream is asked for instead. Where the system's buffer
// is full as well, the end cannot arrive, and the client is missed when its answer is written.
bool Connection::peer_hung_up() {
  pollfd entry{socket_.native_handle(), POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

Connection::Task<void> Connection::run() {
  const auto self = shared_from_this();
  try {
    if (refuse_) {
      RequestHead head;
      head.request.request_id = make_request_id();
      ErrorReply error("too_many_connections", "There are too many connections. Try again soon.");
      error.headers.emplace_back("Retry-After", "1");
      co_await refuse(head, std::move(error));
    } else {
      start_read();
      for (bool go_on = true; go_on && !dead_;) go_on = co_await serve_one();
    }
    co_await linger();
  } catch (const std::exception& e) {
    log_message(LogLevel::kWarning, cat("[http] connection of ", peer_, ": ", e.what()));
  }
  close_socket();
  if (exchange_) close_exchange(false);
}

Connection::Task<void> Connection::linger() {
  if (dead_ || eof_) co_return;
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  discard_ = true;
  input_.clear();
  start_read();
  const Deadline deadline = Clock::now() + kLingerTime;
  while (!eof_ && !dead_ && Clock::now() < deadline) co_await wait(deadline);
}

Connection::Task<bool> Connection::serve_one() {
  Parser parser;
  const bool complete = co_await read_head(parser);
  if (!complete) co_return false;
  first_ = false;
  began_ = Clock::now();
  ++core_->requests;
  RequestHead head = head_of(parser);
  core_->gate.judge(head);
  record_ = Exchanged{};
  record_.method = head.request.method;
  if (head.route) record_.route = head.route->path;
  if (head.refusal) {
    const bool go_on = co_await refuse(head, *head.refusal);
    co_return go_on;
  }
  if (head.route) {
    const bool whole = co_await read_body(parser, head);
    if (!whole) co_return false;
    head.request.body = std::move(parser.get().body());
    open_exchange(head);
    call_handler(*head.route, std::move(head.request));
  } else {
    open_exchange(head);
    exchange_->send(204, std::move(head.option_headers), "");
  }
  const bool go_on = co_await deliver();
  co_return go_on;
}

Connection::Task<bool> Connection::read_head(Parser& parser) {
  const HttpOptions& options = core_->options;
  Deadline deadline = Clock::now() + (first_ ? options.header_timeout : options.idle_timeout);
  for (;;) {
    while (input_.starts_with("\r\n")) consume(2);  // RFC 9112 2.2: empty lines before a request
    if (!input_.empty() && input_ != "\r") break;
    if (eof_ || dead_ || stopping_ || Clock::now() >= deadline) {
      close_socket();
      co_return false;
    }
    co_await wait(deadline);
  }
  parser.header_limit(static_cast<uint32_t>(options.max_header_bytes));
  parser.body_limit(boost::none);  // the route's limit is held against it first
  parser.eager(false);
  deadline = Clock::now() + options.header_timeout;
  for (;;) {
    error_code error;
    if (!input_.empty()) consume(parser.put(asio::const_buffer(input_.data(), input_.size()), error));
    if (parser.is_header_done() && !error) co_return true;
    std::optional<ErrorReply> no;
    if (error && error != http::error::need_more) {
      no = head_error(error, parser.get().target().empty());
    } else if (eof_ || dead_) {
      close_socket();
      co_return false;
    } else if (Clock::now() >= deadline) {
      no = ErrorReply("request_timeout", "The request did not arrive in time.");
    }
    if (no) {
      RequestHead head;
      head.request.request_id = make_request_id();
      record_ = Exchanged{};
      began_ = Clock::now();
      co_await refuse(head, std::move(*no));
      co_return false;
    }
    co_await wait(deadline);
  }
}

Connection::Task<bool> Connection::read_body(Parser& parser, RequestHead& head) {
  const HttpOptions& options = core_->options;
  const size_t limit = head.route->max_body_bytes;
  const size_t share = head.chunked ? limit : static_cast<size_t>(head.content_length.value_or(0));
  const size_t others = core_->receiving_bytes.fetch_add(share);
  const std::shared_ptr<void> release(nullptr,
                                      [core = core_, share](void*) { core->receiving_bytes -= share; });
  if (others > 0 && others + share > options.max_receiving_bytes) {
    ErrorReply error("overloaded", "Too many large requests are arriving at once. Try again soon.");
    error.headers.emplace_back("Retry-After", "1");
    head.keep_alive = false;
    co_await refuse(head, std::move(error));
    co_return false;
  }
  const std::string* expect = head.request.header("expect");
  if (head.has_body() && expect && !head.http_1_0 && input_.empty()) {
    error_code ignored;  // a client that is not there is noticed when its body does not come
    socket_.write_some(asio::buffer(std::string_view("HTTP/1.1 100 Continue\r\n\r\n")), ignored);
  }
  parser.body_limit(limit);
  parser.eager(true);
  const Deadline start = Clock::now();
  uint64_t received = 0;
  while (!parser.is_done()) {
    std::optional<ErrorReply> no;
    if (!input_.empty()) {
      error_code error;
      const size_t used = parser.put(asio::const_buffer(input_.data(), input_.size()), error);
      consume(used);
      received += used;
      if (error == http::error::body_limit) {
        no = too_large(limit);
      } else if ((error && error != http::error::need_more) || input_.size() >= input_limit_) {
        no = ErrorReply("bad_request", "The body is not what its header fields say.");
      } else if (used > 0) {
        continue;
      }
    }
    const auto extra = milliseconds(1000 * received / std::max<size_t>(1, options.min_body_bytes_per_s));
    const Deadline deadline = start + options.body_timeout + extra;
    if (!no && (eof_ || dead_)) {
      close_socket();
      co_return false;
    }
    if (!no && Clock::now() >= deadline)
      no = ErrorReply("request_timeout", "The body did not arrive in time.");
    if (no) {
      head.keep_alive = false;
      co_await refuse(head, std::move(*no));
      co_return false;
    }
    co_await wait(deadline);
  }
  co_return true;
}

// A request that was not understood (no method yet) ends the connection: where the next one begins is not
// known.
Connection::Task<bool> Connection::refuse(RequestHead& head, ErrorReply error) {
  if (head.request.method.empty()) head.keep_alive = false;
  open_exchange(head);
  error.headers.emplace_back("Content-Type", "application/json");
  exchange_->send(error.status, error.headers, error.body());
  const bool go_on = co_await deliver();
  co_return go_on;
}

Connection::Task<bool> Connection::deliver() {
  const std::shared_ptr<Exchange> exchange = exchange_;
  bool complete = false, broken = false;
  if (eof_) exchange->peer_left();
  while (!complete && !broken && !dead_) {
    Exchange::Output output = exchange->take();
    bool written = true;
    for (std::string& bytes : output.bytes) {
      written = co_await write_all(std::move(bytes));
      if (!written) break;
    }
    if (!written) break;
    complete = output.finished;
    broken = output.broken;
    if (complete || broken || !output.bytes.empty()) continue;
    Deadline deadline = Deadline::max();
    if (eof_) {
      deadline = left_at_ + kHalfClosedGrace;
      if (Clock::now() >= deadline) break;
    } else if (!reading_) {
      deadline = Clock::now() + kHangUpInterval;
      if (peer_hung_up()) {
        on_end(false);
        continue;
      }
    }
    co_await wait(deadline);
  }
  if (!complete && !broken) close_socket();
  const bool keep_alive = complete && exchange->keep_alive();
  close_exchange(complete);
  co_return keep_alive;
}

Connection::Task<bool> Connection::write_all(std::string bytes) {
  Deadline deadline = Clock::now() + core_->options.write_timeout;
  size_t at = 0;
  while (at < bytes.size()) {
    if (dead_ || exchange_->lost()) co_return false;
    error_code error;
    const size_t n = socket_.write_some(asio::buffer(bytes.data() + at, bytes.size() - at), error);
    if (!error) {
      at += n;
      exchange_->sent(n);
      deadline = Clock::now() + core_->options.write_timeout;
      continue;
    }
    if (error != asio::error::would_block && error != asio::error::try_again) co_return false;
    writable_ = false;
    socket_.async_wait(Socket::wait_write, [self = shared_from_this()](const error_code&) {
      self->writable_ = true;
      self->notify();
    });
    while (!writable_) {
      if (dead_ || exchange_->lost() || Clock::now() >= deadline) co_return false;
      co_await wait(deadline);
    }
  }
  co_return true;
}

void Connection::open_exchange(const RequestHead& head) {
  const HttpRequest& request = head.request;
  record_.peer = peer_;
  record_.request_id = request.request_id;
  Exchange::Shape shape;
  shape.head_request = request.method == "HEAD";
  shape.http_1_0 = head.http_1_0;
  shape.keep_alive = head.keep_alive && !stopping_;
  shape.common = core_->gate.common_headers(request);
  shape.request_id = request.request_id;
  shape.max_unsent_bytes = core_->options.max_unsent_bytes;
  exchange_ = std::make_shared<Exchange>(std::move(shape), [weak = weak_from_this()] {
    std::shared_ptr<Connection> self = weak.lock();
    if (!self) return;
    const auto executor = self->socket_.get_executor();
    asio::post(executor, [self = std::move(self)] { self->notify(); });
  });
}

void Connection::close_exchange(bool complete) {
  const std::shared_ptr<Exchange> exchange = std::exchange(exchange_, nullptr);
  record_.status = exchange->status();
  record_.sent_bytes = exchange->sent_bytes();
  record_.seconds = seconds_since(began_);
  record_.gone = !complete && exchange->gone();
  exchange->detach();
  if (core_->options.on_exchanged) core_->options.on_exchanged(record_);
}

void Connection::call_handler(const Route& route, HttpRequest request) {
  ++core_->handlers;
  auto responder = make_responder(exchange_, request.request_id, core_->responders);
  auto job = [core = core_, &handler = route.handler, exchange = exchange_, responder = std::move(responder),
              request = std::move(request)]() mutable {
    try {
      if (!exchange->lost()) handler(std::move(request), responder);
    } catch (const std::exception& e) {
      if (!send_exception(*responder, e)) responder->break_off();
    } catch (...) {
      log_message(LogLevel::kWarning, "[http] a handler threw something that is no exception");
    }
    responder.reset();
    --core->handlers;
  };
  if (route.quick) {
    job();
  } else {
    asio::post(*core_->workers, std::move(job));
  }
}

// What of the parser the gate has to know.
RequestHead Connection::head_of(const Parser& parser) const {
  const auto& message = parser.get();
  RequestHead head;
  HttpRequest& request = head.request;
  request.peer = peer_;
  request.method = text_of(message.method_string());
  for (const auto& field : message) {
    request.headers.emplace_back(lower_case(text_of(field.name_string())), text_of(field.value()));
  }
  head.target = text_of(message.target());
  head.http_1_0 = message.version() == 10;
  head.keep_alive = parser.keep_alive();
  head.chunked = parser.chunked();
  if (const auto length = parser.content_length()) head.content_length = *length;
  return head;
}

}  // namespace qvl::serve
