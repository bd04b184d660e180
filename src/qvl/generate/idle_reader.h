// Reads what is certain of a conversation's next turn while its user reads the answer and thinks, on a thread of its own.
// Beside it waits whoever reads the user's line (`qvl chat`); the server does the same in its scheduler.
#pragma once

#include <chrono>
#include <exception>
#include <thread>
#include <vector>

#include "qvl/generate/pipeline.h"

namespace qvl::generate {

class IdleReader {
 public:
  // What `conversation` will be continued with is found (Pipeline::expect_turn) and read after `pause`: a question that was
  // there already is answered first. The three outlive this object, and nobody touches them meanwhile.
  IdleReader(Pipeline& pipeline, const std::vector<ChatMessage>& conversation, const AnswerOptions& options,
             std::chrono::milliseconds pause = std::chrono::milliseconds(30));
  // Stops it within one report of the decoder's progress, milliseconds. What failed is logged: the turn that needs it
  // computes it, and says so if it cannot.
  ~IdleReader();
  IdleReader(const IdleReader&) = delete;
  IdleReader& operator=(const IdleReader&) = delete;

 private:
  void read(const std::stop_token& stop, std::chrono::milliseconds pause);

  Pipeline& pipeline_;
  const std::vector<ChatMessage>& conversation_;
  const AnswerOptions& options_;
  std::exception_ptr error_;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace qvl::generate
