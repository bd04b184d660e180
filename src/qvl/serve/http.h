// The HTTP side of the server: sockets, limits, keys and routes; nothing of models or OpenAI beyond the shape
// of an error body. HTTP/1.0 and 1.1, keep-alive and pipelining (answers in the order of requests), IPv4,
// IPv6, Unix sockets. TLS and HTTP/2 belong to a proxy in front.
//
// A connection is read all the time, also while its answer is being made: that is how a client that went away
// is noticed within moments. Boost.Beast and Asio stand behind http.cc and http_connection.cc alone.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/serve/http_error.h"

namespace qvl::serve {

struct HttpRequest {
  std::string method;      // "GET", as sent
  std::string path;        // percent-decoded, without the query; begins with '/'
  std::string rest;        // what "*" of the route stands for, percent-decoded; else empty
  std::string query;       // as sent, without '?'
  Headers headers;         // names in lower case, in the order received
  std::string body;        // complete, transfer encoding removed
  std::string peer;        // "127.0.0.1:51234", "[::1]:51234", "unix"
  std::string request_id;  // the client's X-Request-Id where it is sane, else made up; returned

  // First header of that name (any case), nullptr when there is none.
  const std::string* header(std::string_view name) const;
};

// The answer to one request. Thread-safe: any thread may call anything at any time. No call blocks on the
// network. The last owner that lets go without an answer sends 500; one that lets go of an unfinished stream
// breaks it off.
class Responder {
 public:
  virtual ~Responder() = default;

  // Answers completely. Content-Length, Date, Connection, X-Request-Id, CORS and security headers are added;
  // `body` is dropped for HEAD. Returns false, and does nothing, when an answer was begun before or the
  // client is gone. Throws kInvalidArgument for a status or header that cannot be written (line breaks).
  virtual bool send(int status, Headers headers, std::string body) = 0;

  // Begins an answer of unknown length: chunked, or until the connection closes for HTTP/1.0. The head goes
  // out at once. Returns and throws as send().
  virtual bool start_stream(int status, Headers headers) = 0;
  // Adds to the stream. Every call becomes one chunk; an empty one is nothing. Returns false, and drops the
  // bytes, when the client is gone or no stream is open. A client that leaves more than max_unsent_bytes
  // unread counts as gone.
  virtual bool write(std::string bytes) = 0;
  // Ends the stream properly. Returns false when the client is gone or no stream is open.
  virtual bool end() = 0;
  // Breaks the answer off: the connection closes without the end mark of the stream, so that the client
  // knows.
  virtual void break_off() = 0;

  // True once nobody waits for the answer: the peer closed or reset the connection (or its sending half), did
  // not read for too long, or the server was stopped hard. Not true merely because the answer is complete.
  virtual bool gone() const = 0;
  // `callback` is called once, when gone() becomes true, on a thread of the server, or at once on this one
  // when it is so already; never after the answer was completely sent. It must be quick and must not throw;
  // it may call the Responder. Several may be registered. They are dropped when the answer is complete.
  virtual void on_gone(std::function<void()> callback) = 0;

  virtual const std::string& request_id() const = 0;
};

// Sends `error` with its headers and body.
bool send_error(Responder& responder, const ErrorReply& error);
// Sends what an exception means: HttpError as it says, anything else 500 with the request id and no details: what a client can
// be told of it has been told by whoever threw it. 500s are logged with their text.
bool send_exception(Responder& responder, const std::exception& exception);

// Runs on a worker thread (or on an I/O thread, Route::quick). It may answer later from elsewhere by keeping
// the Responder. What it throws is answered by send_exception(); when a stream is open already, the stream is
// broken off.
using Handler = std::function<void(HttpRequest request, std::shared_ptr<Responder> responder)>;

struct Route {
  std::string method;  // "GET" also answers HEAD
  std::string path;    // exact, or ending in "/*": any non-empty rest (slashes too)
  Handler handler;
  bool needs_key = true;      // 401 without one of HttpOptions::api_keys (none: never)
  size_t max_body_bytes = 0;  // 413 above; 0: 413 for any body
  bool needs_json = false;    // 415 unless application/json, which a form of another site cannot send
  bool quick = false;         // never blocks: runs on an I/O thread, so that /health waits for no worker
};

// What became of a request, for logs and metrics.
struct Exchanged {
  std::string method;  // "" when the request was not understood
  std::string route;   // Route::path, "" when there was none
  std::string peer, request_id;
  int status = 0;           // 0: no answer was sent
  uint64_t sent_bytes = 0;  // of the body, as far as written to the socket
  double seconds = 0;       // from the complete head to the last byte written
  bool gone = false;        // the client did not wait for all of it
};

struct HttpOptions {
  // A name, an IPv4 or IPv6 address ("::" takes IPv4 too), or "unix:/path" (the socket file is made with mode
  // 0600; one that nobody listens on is replaced).
  std::string host = "127.0.0.1";
  uint16_t port = 8080;  // 0: any free one
  int io_threads = 1;
  int worker_threads = 4;
  size_t max_connections = 256;                      // more get 503
  size_t max_header_bytes = size_t{16} << 10;        // 431; a request line that alone is longer: 414
  std::chrono::milliseconds header_timeout{10'000};  // from the first byte to the end of the head; 408
  // A body has this long, and a second more for every min_body_bytes_per_s received; 408.
  std::chrono::milliseconds body_timeout{20'000};
  size_t min_body_bytes_per_s = size_t{16} << 10;
  // Of all bodies that are arriving at one time, as announced (chunked: as allowed); 503 above, except for
  // the only one.
  size_t max_receiving_bytes = size_t{512} << 20;
  std::chrono::milliseconds idle_timeout{75'000};   // between requests; closed without a word
  std::chrono::milliseconds write_timeout{30'000};  // without a byte accepted by the client: gone
  size_t max_unsent_bytes = size_t{4} << 20;        // of a stream; above: gone
  std::vector<std::string> api_keys;                // none: no key asked for
  std::vector<std::string> allowed_origins;         // CORS: "https://example.com" or "*"; none by default
  // Names (without port, any case) that Host may have, against DNS rebinding; else 403. Empty: "localhost"
  // and loopback addresses when every address listened on is loopback, otherwise any.
  std::vector<std::string> allowed_hosts;
  Headers extra_headers;                            // added to every answer that does not set them itself
  // Called after every request, on an I/O thread; quick, must not throw.
  std::function<void(const Exchanged&)> on_exchanged;
};

struct HttpStats {
  size_t connections = 0;  // open now
  size_t responders = 0;   // alive now: requests whose answer is owed or being sent
  size_t handlers = 0;     // running or waiting for a worker
  uint64_t accepted = 0;   // connections, ever
  uint64_t refused = 0;    // of these, with 503
  uint64_t requests = 0;   // with a complete head, ever
};

class HttpServer {
 public:
  explicit HttpServer(HttpOptions options);
  ~HttpServer();  // stop(0)
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Before start(). Throws kInvalidArgument for a route that is there already or malformed.
  void add(Route route);
  // GET (and HEAD) of fixed bytes, with an ETag made of them, 304 for If-None-Match, "Cache-Control:
  // no-cache" unless `headers` has one. Asks for no key.
  void serve_bytes(std::string path, std::string content_type, std::string bytes, Headers headers = {});

  // Binds, listens, starts the threads, returns. Throws kIo (address in use, not permitted), kInvalidArgument
  // (host that cannot be resolved, options out of range), kInvalidArgument when called twice.
  void start();
  // Where it listens: "http://127.0.0.1:8080" (an address of all interfaces is shown as the loopback one),
  // "unix:/path".
  std::string url() const;
  uint16_t port() const;  // the one bound; 0 for a Unix socket
  // After start(): whether only this machine can reach it: every address bound is a loopback one, or it is a Unix socket.
  bool loopback_only() const;

  // Stops accepting and closes idle connections; answers that are owed or running may finish within `grace`,
  // what is left then is gone. Returns when all connections are closed and all handlers have returned. Any
  // thread but the server's own; a second call shortens the grace of the first.
  void stop(std::chrono::milliseconds grace);
  // Blocks until a stop() by another thread is complete.
  void wait();

  HttpStats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qvl::serve
