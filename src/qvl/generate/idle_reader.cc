#include "qvl/generate/idle_reader.h"

#include <condition_variable>
#include <mutex>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"

namespace qvl::generate {

IdleReader::IdleReader(Pipeline& pipeline, const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                       std::chrono::milliseconds pause)
    : pipeline_(pipeline), conversation_(conversation), options_(options) {
  thread_ = std::jthread([this, pause](const std::stop_token& stop) { read(stop, pause); });
}

IdleReader::~IdleReader() {
  thread_.request_stop();
  thread_.join();
  if (!error_) return;
  try {
    std::rethrow_exception(error_);
  } catch (const std::exception& e) {
    log_message(LogLevel::kWarning, cat("reading ahead: ", e.what()));
  }
}

void IdleReader::read(const std::stop_token& stop, std::chrono::milliseconds pause) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  if (std::condition_variable_any().wait_for(lock, stop, pause, [&] { return stop.stop_requested(); })) return;
  try {
    pipeline_.expect_turn(conversation_, options_);
    while (pipeline_.has_unread() && !stop.stop_requested()) {
      pipeline_.read_ahead(kReadAheadTokens, [&](int64_t, int64_t) { return !stop.stop_requested(); });
    }
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kCancelled) error_ = std::current_exception();
  } catch (...) {
    error_ = std::current_exception();
  }
}

}  // namespace qvl::generate
