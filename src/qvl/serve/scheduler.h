// Who computes when: one inference thread group answers all requests. Between HTTP (which only hands over requests) and
// the pipelines of the generate room.
//
// Each slot holds one conversation's timeline. Answers that are being written share every decode step (continuous
// batching); prompts and pictures that are being read run in slices between those steps: their work yields at every
// progress report of a stage (an operator of a picture, a part of a layer of a prompt), so a long picture delays a stream
// by one such piece, not by itself. While both wait they share the time by SchedulerOptions::decode_share. Of several
// prompts the one with the least left goes first, older ones the sooner, behind those of a lower priority number, and one whose
// picture is just being encoded for another waits for that.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/generate/pipeline.h"
#include "qvl/generate/prefill_chunk.h"

namespace qvl::serve {

struct SchedulerOptions {
  int slots = 4;                 // answers in the making at once, 1..64
  int64_t queue_limit = 64;      // requests waiting for a slot; one more is refused
  int64_t prefill_chunk_tokens = generate::kPrefillChunkTokens;
  double decode_share = 0.5;     // of the time, for answers being written while prompts are being read; above 0, below 1
  int64_t kv_limit_bytes = 0;    // keys and values of all slots; idle timelines are forgotten first. 0: no limit
};

// Why a request ended without an answer.
struct Failure {
  enum class Kind {
    kCancelled,  // by its client
    kTimeout,    // its time was up
    kShutdown,   // the server stops
    kError,      // `code` and `message` say what
  };
  Kind kind = Kind::kError;
  ErrorCode code = ErrorCode::kCancelled;
  std::string message;
  // What was said by then; its text is what the sink got piece by piece.
  generate::Answer partial;
};

// Receives one request's answer. Called by threads of the scheduler, one call at a time and in order; inference waits
// meanwhile, so a call must neither block nor throw. Exactly one of done() and failed() comes last.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  virtual void progress(generate::Phase phase, int64_t done, int64_t total) = 0;
  // Every token said, an end token excepted; the text pieces it completes follow. False ends the answer there.
  virtual bool token(const generate::SaidToken& token) = 0;
  virtual void text(std::string_view piece) = 0;
  virtual void done(generate::Answer answer) = 0;
  virtual void failed(Failure failure) = 0;
};

// Thrown by submit(); the queue is full (HTTP: 429).
class QueueFull : public Error {
 public:
  QueueFull(const std::string& message, double seconds) : Error(ErrorCode::kLimit, message), retry_after_s(seconds) {}
  double retry_after_s;  // by when a place should be free, from what answers took lately
};

class Scheduler {
  struct Job;

 public:
  using Clock = std::chrono::steady_clock;

  struct Request {
    generate::Prompt prompt;  // without features
    std::vector<std::shared_ptr<generate::Visual>> visuals;  // those of the prompt, in its order
    generate::AnswerOptions options;
    // The answer will be part of the next prompt: it is read as one while nobody waits, so that the next turn finds it.
    bool read_ahead = false;
    std::string client;  // clients take turns: requests of one wait behind each other
    int64_t priority = 0;  // those with a lower number are taken from the queue and read before; nothing that has begun is given up
    std::shared_ptr<AnswerSink> sink;
    Clock::time_point deadline = Clock::time_point::max();
  };

  // A submitted request. Copies name the same one.
  class Ticket {
   public:
    Ticket() = default;
    // Ends it within one step; the sink hears failed(kCancelled) unless it was over already. Any thread.
    void cancel() const;

   private:
    friend class Scheduler;
    std::weak_ptr<Job> job_;
  };

  struct Load {
    int64_t waiting = 0;
    int64_t reading = 0;  // pictures and prompts
    int64_t writing = 0;
    int64_t slots = 0;
    int64_t kv_bytes = 0;
    int64_t decode_steps = 0;  // since the start
    int64_t decode_rows = 0;   // in them: rows over steps is how full they were
    int64_t unread = 0;        // answers that are still to be read ahead
    double busy_s = 0;         // inference, since the start
  };

  // Throws kInvalidArgument for options out of range, and what pipelines throw.
  Scheduler(std::shared_ptr<const engine::Engine> engine, std::shared_ptr<const generate::Assets> assets,
            std::shared_ptr<generate::ImageMemory> memory, std::shared_ptr<generate::DiskMemory> disk,
            const SchedulerOptions& options);
  // As stop() with no time left.
  ~Scheduler();

  // Any thread. `after`: not begun before that request's prompt is read or it is over, so that it finds keys and values
  // there (the other answers of "n"). Throws QueueFull; kCancelled when stopping; kLimit when the prompt does not fit the
  // context or the memory for keys and values even alone. The sink may be called before this returns.
  Ticket submit(Request request, const Ticket& after = {});

  // For reading pictures on other threads: Pipeline::load and make_prompt, nothing else.
  generate::Pipeline& loader();

  Load load() const;

  // Takes no more requests, lets those in slots end within `grace`, and fails the rest with kShutdown. Returns when all
  // sinks have heard their end.
  void stop(std::chrono::milliseconds grace);

 private:
  struct Slot;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qvl::serve
