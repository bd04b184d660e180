// Reads what is certain of a conversation's next turn while its user reads the answer, thinks and types, on a thread of its
// own: pictures that were attached, and the prompt up to the question. Beside it waits whoever reads the user's line (`qvl chat`); the server does the same in its scheduler.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "qvl/generate/pipeline.h"

namespace qvl::generate {

class IdleReader {
 public:
  // What `conversation` will be continued with, `visuals` first, is encoded, found (Pipeline::expect_turn) and read after
  // `pause`: a question that was there already is answered first. The four outlive this object, and nobody touches them
  // meanwhile.
  IdleReader(Pipeline& pipeline, const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
             const std::vector<std::shared_ptr<Visual>>& visuals,
             std::chrono::milliseconds pause = std::chrono::milliseconds(30));
  // Stops it within one report of the decoder's progress, milliseconds. What failed is logged: the turn that needs it
  // computes it, and says so if it cannot.
  ~IdleReader();
  IdleReader(const IdleReader&) = delete;
  IdleReader& operator=(const IdleReader&) = delete;

  // Begins nothing more. A picture that is being encoded is waited for, since half a picture is worth nothing; progress is
  // told of its patches, and false gives it up.
  void finish_picture(const engine::ProgressFn& progress);

 private:
  void read(const std::stop_token& stop, std::chrono::milliseconds pause);
  void encode(const std::stop_token& stop, Visual& visual);

  Pipeline& pipeline_;
  const std::vector<ChatMessage>& conversation_;
  const AnswerOptions& options_;
  const std::vector<std::shared_ptr<Visual>>& visuals_;
  std::exception_ptr error_;
  std::atomic<bool> gives_up_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool encoding_ = false;            // with mutex_, like the next two
  int64_t done_ = 0, total_ = 0;     // patches of the picture
  std::jthread thread_;  // last: it uses the others
};

}  // namespace qvl::generate
