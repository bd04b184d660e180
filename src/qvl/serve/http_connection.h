// One connection of the server: a coroutine that takes requests one after another, hands each to its route,
// and sends what its Exchange has, while the socket is read all the time. Everything but the constructor,
// stop_soon() and stop_now() happens on the connection's strand.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "qvl/base/stopwatch.h"
#include "qvl/serve/exchange.h"
#include "qvl/serve/http.h"
#include "qvl/serve/http_gate.h"
#include "qvl/serve/http_message.h"

namespace qvl::serve {

class Connection;

// What all connections share. Outlives the last of them.
struct ServerCore {
  explicit ServerCore(HttpOptions o) : options(std::move(o)), gate(options) {}

  HttpOptions options;
  Gate gate;

  boost::asio::io_context io;
  std::unique_ptr<boost::asio::thread_pool> workers;

  std::atomic<bool> stopping{false};
  std::atomic<size_t> handlers{0};
  std::atomic<size_t> receiving_bytes{0};  // of bodies that are arriving, as announced
  std::atomic<uint64_t> accepted{0}, refused{0}, requests{0};
  std::shared_ptr<std::atomic<size_t>> responders = std::make_shared<std::atomic<size_t>>(0);

  std::mutex mutex;
  std::condition_variable changed;  // connections came or went, the server is stopped
  std::unordered_map<Connection*, std::weak_ptr<Connection>> connections;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;  // its executor is a strand

  // `refuse`: there are too many, say 503 and close.
  Connection(std::shared_ptr<ServerCore> core, Socket socket, std::string peer, bool refuse);
  ~Connection();

  void start();
  // Close when idle, else after the answer that is owed. Any thread.
  void stop_soon();
  // Close now; who makes an answer learns that the client is gone. Any thread.
  void stop_now();

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using Deadline = Clock::time_point;
  template <typename T>
  using Task = boost::asio::awaitable<T>;

  Task<void> run();
  // These return whether to go on: with the request, or with the connection.
  Task<bool> serve_one();
  Task<bool> read_head(Parser& parser);
  Task<bool> read_body(Parser& parser, RequestHead& head);
  Task<bool> refuse(RequestHead& head, ErrorReply error);
  Task<bool> deliver();
  Task<bool> write_all(std::string bytes);
  Task<void> linger();
  Task<void> wait(Deadline deadline);

  RequestHead head_of(const Parser& parser) const;
  void open_exchange(const RequestHead& head);
  void close_exchange(bool complete);
  void call_handler(const Route& route, HttpRequest request);

  void start_read();
  void on_read(const boost::system::error_code& error, size_t bytes);
  bool peer_hung_up();
  void on_end(bool lost);
  void notify();
  void close_socket();
  void consume(size_t bytes);

  std::shared_ptr<ServerCore> core_;
  Socket socket_;
  std::string peer_;
  bool refuse_;
  bool first_ = true;  // no request yet
  boost::asio::steady_timer wake_;

  std::array<char, size_t{32} << 10> chunk_;  // what is being read lands here
  std::string input_;                         // read and not yet understood
  size_t input_limit_;                        // no more is read while there is so much
  bool reading_ = false;
  bool discard_ = false;  // what comes is thrown away
  bool eof_ = false;      // nothing will come any more
  bool dead_ = false;     // the socket is closed
  bool writable_ = false;
  bool stopping_ = false;
  Deadline left_at_{};  // when eof_ came

  // Of the request at hand.
  std::shared_ptr<Exchange> exchange_;
  Exchanged record_;
  Deadline began_{};
};

}  // namespace qvl::serve
