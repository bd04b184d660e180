#include "qvl/generate/idle_reader.h"

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"

namespace qvl::generate {

IdleReader::IdleReader(Pipeline& pipeline, const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
                       const std::vector<std::shared_ptr<Visual>>& visuals, std::chrono::milliseconds pause)
    : pipeline_(pipeline), conversation_(conversation), options_(options), visuals_(visuals) {
  thread_ = std::jthread([this, pause](const std::stop_token& stop) { read(stop, pause); });
}

IdleReader::~IdleReader() {
  gives_up_ = true;
  thread_.request_stop();
  thread_.join();
  if (!error_) return;
  try {
    std::rethrow_exception(error_);
  } catch (const std::exception& e) {
    log_message(LogLevel::kWarning, cat("reading ahead: ", e.what()));
  }
}

void IdleReader::finish_picture(const engine::ProgressFn& progress) {
  thread_.request_stop();
  std::unique_lock lock(mutex_);
  while (encoding_) {
    const int64_t done = done_, total = total_;
    lock.unlock();
    if (total > 0 && !progress(done, total)) gives_up_ = true;
    lock.lock();
    changed_.wait_for(lock, std::chrono::milliseconds(50), [&] { return !encoding_ || done_ != done; });
  }
}

void IdleReader::encode(const std::stop_token& stop, Visual& visual) {
  {
    const std::lock_guard lock(mutex_);
    if (stop.stop_requested()) return;
    encoding_ = true;
    done_ = total_ = 0;
  }
  const std::shared_ptr<void> ends(nullptr, [this](void*) {
    const std::lock_guard lock(mutex_);
    encoding_ = false;
    changed_.notify_all();
  });
  const int64_t patches = visual.info().grid.patches();
  pipeline_.encode(visual, [&](int64_t done, int64_t units) {
    const std::lock_guard lock(mutex_);
    done_ = units > 0 ? patches * done / units : 0;
    total_ = patches;
    changed_.notify_all();
    return !gives_up_;
  });
  pipeline_.engine().vision().give_back();
}

void IdleReader::read(const std::stop_token& stop, std::chrono::milliseconds pause) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  if (std::condition_variable_any().wait_for(lock, stop, pause, [&] { return stop.stop_requested(); })) return;
  try {
    // What of the pictures is kept is found first. One that cannot be remembered is left to the answer.
    const Visual* last = nullptr;
    for (std::shared_ptr<Visual> missing;
         (missing = pipeline_.expect_turn(conversation_, options_, visuals_)) && missing.get() != last && !stop.stop_requested();
         last = missing.get()) {
      encode(stop, *missing);
    }
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
