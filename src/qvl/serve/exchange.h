// One answer between whoever makes it, on any thread, and the connection that sends it, on its own. Knows the
// form of an answer (heads, chunks, what HEAD and HTTP/1.0 leave out), nothing of sockets.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "qvl/serve/http.h"

namespace qvl::serve {

class Exchange {
 public:
  struct Shape {
    bool head_request = false;  // no bodies
    bool http_1_0 = false;      // no chunks
    bool keep_alive = true;
    Headers common;  // added to the answer's head where it has none of that name
    std::string request_id;
    size_t max_unsent_bytes = 0;
  };
  // `wake` tells the connection that take() has something new. It is called with a lock held: it must only
  // pass on the word.
  Exchange(Shape shape, std::function<void()> wake);

  // For the maker: see Responder.
  bool send(int status, Headers headers, std::string body);
  bool start_stream(int status, Headers headers);
  bool write(std::string bytes);
  bool end();
  void break_off();
  bool gone() const;
  void on_gone(std::function<void()> callback);
  // Nobody will say any more: 500 when nothing was said, a broken stream when one is open.
  void abandon();

  // For the connection.
  struct Output {
    std::deque<std::string> bytes;  // to be written now
    bool finished = false;          // after these the answer is complete
    bool broken = false;  // after these the connection must be closed: the answer will never be complete
  };
  Output take();
  // Bytes of take() that the socket has accepted.
  void sent(size_t bytes);
  // Nothing can be written any more, whoever said so.
  bool lost() const;
  // The client closed its sending half: most likely it is gone, but what can be written is still tried.
  void peer_left();
  void peer_lost();
  // The answer shall be the last of its connection, if its head is not made yet.
  void close_after();
  // The connection is done with it: no more wakes, no more callbacks.
  void detach();
  bool keep_alive() const;
  int status() const;  // 0: none yet
  uint64_t sent_bytes() const;

 private:
  enum class State { kPending, kStreaming, kFinished, kBroken };

  std::string head(int status, Headers headers, const std::string& length);
  void push(std::string bytes);
  void leave(bool lost);

  Shape shape_;
  mutable std::mutex mutex_;
  std::function<void()> wake_;
  State state_ = State::kPending;
  std::deque<std::string> queue_;
  size_t unsent_bytes_ = 0;
  uint64_t sent_bytes_ = 0;
  int status_ = 0;
  bool chunked_ = false;
  bool gone_ = false;  // nobody waits
  bool lost_ = false;  // nothing can be written
  std::vector<std::function<void()>> on_gone_;
};

// The face of an Exchange that handlers hold. `alive` counts them.
std::shared_ptr<Responder> make_responder(std::shared_ptr<Exchange> exchange, std::string request_id,
                                          std::shared_ptr<std::atomic<size_t>> alive);

}  // namespace qvl::serve
