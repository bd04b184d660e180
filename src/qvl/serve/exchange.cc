#include "qvl/serve/exchange.h"

#include <algorithm>
#include <utility>

#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/serve/http_message.h"

namespace qvl::serve {

namespace {

// Small pieces are sent together; a stream of tokens is a few bytes a piece.
constexpr size_t kJoinBytes = size_t{16} << 10;

bool bodiless(int status) {
  return status == 204 || status == 304;
}

class ExchangeResponder : public Responder {
 public:
  ExchangeResponder(std::shared_ptr<Exchange> exchange, std::string request_id,
                    std::shared_ptr<std::atomic<size_t>> alive)
      : exchange_(std::move(exchange)), request_id_(std::move(request_id)), alive_(std::move(alive)) {
    ++*alive_;
  }
  ~ExchangeResponder() override {
    exchange_->abandon();
    --*alive_;
  }
  ExchangeResponder(const ExchangeResponder&) = delete;
  ExchangeResponder& operator=(const ExchangeResponder&) = delete;

  bool send(int status, Headers headers, std::string body) override {
    return exchange_->send(status, std::move(headers), std::move(body));
  }
  bool start_stream(int status, Headers headers) override {
    return exchange_->start_stream(status, std::move(headers));
  }
  bool write(std::string bytes) override { return exchange_->write(std::move(bytes)); }
  bool end() override { return exchange_->end(); }
  void break_off() override { exchange_->break_off(); }
  bool gone() const override { return exchange_->gone(); }
  void on_gone(std::function<void()> callback) override { exchange_->on_gone(std::move(callback)); }
  const std::string& request_id() const override { return request_id_; }

 private:
  std::shared_ptr<Exchange> exchange_;
  std::string request_id_;
  std::shared_ptr<std::atomic<size_t>> alive_;
};

}  // namespace

Exchange::Exchange(Shape shape, std::function<void()> wake)
    : shape_(std::move(shape)), wake_(std::move(wake)) {}

// The lock is held. `length` is the Content-Length, or empty for a stream.
std::string Exchange::head(int status, Headers headers, const std::string& length) {
  for (const auto& [name, value] : shape_.common) {
    if (!find_header(headers, name)) headers.emplace_back(name, value);
  }
  if (!find_header(headers, "Date")) headers.emplace_back("Date", http_date());
  if (length.empty()) {
    chunked_ = !shape_.http_1_0;
    if (chunked_) headers.emplace_back("Transfer-Encoding", "chunked");
    if (!chunked_) shape_.keep_alive = false;
  } else if (!bodiless(status)) {
    headers.emplace_back("Content-Length", length);
  }
  if (!shape_.keep_alive) {
    headers.emplace_back("Connection", "close");
  } else if (shape_.http_1_0) {
    headers.emplace_back("Connection", "keep-alive");
  }
  status_ = status;
  return response_head(status, headers);
}

// The lock is held.
void Exchange::push(std::string bytes) {
  unsent_bytes_ += bytes.size();
  if (!queue_.empty() && queue_.back().size() + bytes.size() <= kJoinBytes) {
    queue_.back() += bytes;
  } else {
    queue_.push_back(std::move(bytes));
  }
  if (wake_) wake_();
}

bool Exchange::send(int status, Headers headers, std::string body) {
  check_answer(status, headers);
  const std::lock_guard lock(mutex_);
  if (state_ != State::kPending || lost_) return false;
  state_ = State::kFinished;
  push(head(status, std::move(headers), cat(body.size())));
  if (!shape_.head_request && !bodiless(status) && !body.empty()) push(std::move(body));
  return !gone_;
}

bool Exchange::start_stream(int status, Headers headers) {
  check_answer(status, headers);
  if (bodiless(status))
    fail(ErrorCode::kInvalidArgument, "http", cat("a stream cannot have status ", status));
  const std::lock_guard lock(mutex_);
  if (state_ != State::kPending || lost_) return false;
  state_ = State::kStreaming;
  push(head(status, std::move(headers), ""));
  return !gone_;
}

bool Exchange::write(std::string bytes) {
  bool full = false;
  {
    const std::lock_guard lock(mutex_);
    if (state_ != State::kStreaming || lost_) return false;
    if (bytes.empty() || shape_.head_request) return !gone_;
    full = unsent_bytes_ > shape_.max_unsent_bytes;
    if (!full) {
      push(chunked_ ? fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes) : std::move(bytes));
      return !gone_;
    }
  }
  leave(true);
  return false;
}

bool Exchange::end() {
  const std::lock_guard lock(mutex_);
  if (state_ != State::kStreaming || lost_) return false;
  state_ = State::kFinished;
  if (chunked_ && !shape_.head_request) {
    push("0\r\n\r\n");
  } else if (wake_) {
    wake_();
  }
  return !gone_;
}

void Exchange::break_off() {
  const std::lock_guard lock(mutex_);
  if (state_ == State::kFinished || state_ == State::kBroken) return;
  state_ = State::kBroken;
  if (wake_) wake_();
}

bool Exchange::gone() const {
  const std::lock_guard lock(mutex_);
  return gone_;
}

void Exchange::on_gone(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (!gone_) {
      if (wake_) on_gone_.push_back(std::move(callback));
      return;
    }
  }
  callback();
}

void Exchange::abandon() {
  bool pending = false;
  {
    const std::lock_guard lock(mutex_);
    pending = state_ == State::kPending;
  }
  if (!pending) return break_off();
  if (!gone())
    log_message(LogLevel::kWarning, cat("[http] request ", shape_.request_id, ": nobody answered it"));
  const ErrorReply error("internal_error", cat("The server failed to answer (request ", shape_.request_id, ")."));
  send(error.status, {{"Content-Type", "application/json"}}, error.body());
}

Exchange::Output Exchange::take() {
  const std::lock_guard lock(mutex_);
  Output output;
  output.bytes = std::exchange(queue_, {});
  output.finished = state_ == State::kFinished;
  output.broken = state_ == State::kBroken || lost_;
  return output;
}

void Exchange::sent(size_t bytes) {
  const std::lock_guard lock(mutex_);
  unsent_bytes_ -= bytes;
  sent_bytes_ += bytes;
}

bool Exchange::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

void Exchange::peer_left() {
  leave(false);
}

void Exchange::peer_lost() {
  leave(true);
}

void Exchange::leave(bool lost) {
  std::vector<std::function<void()>> callbacks;
  {
    const std::lock_guard lock(mutex_);
    lost_ |= lost;
    if (!gone_) callbacks = std::exchange(on_gone_, {});
    gone_ = true;
    if (wake_) wake_();
  }
  for (const auto& callback : callbacks) callback();
}

void Exchange::close_after() {
  const std::lock_guard lock(mutex_);
  if (status_ == 0) shape_.keep_alive = false;
}

void Exchange::detach() {
  std::vector<std::function<void()>> dropped;  // destroyed without the lock: they may own a Responder
  std::function<void()> wake;
  const std::lock_guard lock(mutex_);
  wake = std::exchange(wake_, nullptr);
  dropped = std::exchange(on_gone_, {});
}

bool Exchange::keep_alive() const {
  const std::lock_guard lock(mutex_);
  return shape_.keep_alive;
}

int Exchange::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

uint64_t Exchange::sent_bytes() const {
  const std::lock_guard lock(mutex_);
  return sent_bytes_;
}

std::shared_ptr<Responder> make_responder(std::shared_ptr<Exchange> exchange, std::string request_id,
                                          std::shared_ptr<std::atomic<size_t>> alive) {
  return std::make_shared<ExchangeResponder>(std::move(exchange), std::move(request_id), std::move(alive));
}

}  // namespace qvl::serve
