// One request while it is answered: what the scheduler says about its choices becomes one JSON reply or a stream of events,
// with the repetition guard, the parsing of tool calls and reasoning, and log-probabilities in between. Between
// scheduler.h and openai_reply.h.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "qvl/generate/repetition.h"
#include "qvl/serve/http.h"
#include "qvl/serve/openai_reply.h"
#include "qvl/serve/openai_types.h"
#include "qvl/serve/scheduler.h"
#include "qvl/serve/tool_calls.h"
#include "qvl/text/tokenizer.h"

namespace qvl::serve {

// What a request came to, for metrics and the log.
struct ReplyReport {
  int status = 200;  // of the reply or, of a stream that had begun, of what went wrong
  bool stream = false;
  Usage usage;
  std::vector<std::string_view> endings;  // end_cause_name of each choice that ended
  std::vector<generate::Answer> answers;  // of the choices that ended; texts left out
};

// Shared by the sinks of a request's choices. Thread-safe: choices are written by different threads.
class ReplyWriter : public std::enable_shared_from_this<ReplyWriter> {
 public:
  struct Setup {
    std::shared_ptr<Responder> responder;
    ReplyHead head;
    bool stream = false;
    bool include_usage = false;
    int64_t choices = 1;
    int64_t choices_per_prompt = 1;
    bool repetition_guard = true;
    bool grounding = false;
    std::vector<std::string> details;  // of the pictures, as asked for
    std::string unenforced;            // RequestFacts::unenforced
    bool cut_by_context = false;       // the limit of tokens is what the context leaves, not what was asked for
    Json engine;                       // engine_info_json
    double time_limit_s = 0;           // for the message of a 408
    text::Tokenizer tokenizer;
    std::function<void(const ReplyReport&)> report;  // called once, at the end; must not block
  };

  explicit ReplyWriter(Setup setup);
  virtual ~ReplyWriter() = default;

  // The sink of choice `index`.
  std::shared_ptr<AnswerSink> sink(int64_t index);
  // Something failed before or between the choices: the error is sent once, what the choices say later is dropped.
  void fail(const ApiError& error);
  // Begins a stream that has said nothing for `silence_ms`, or says that the server is still there: for requests that wait
  // in the queue, before clients and proxies give up. Nothing for a whole reply.
  void keep_alive(double silence_ms);
  // Called when a choice of a request fails alone, so that the others can be cancelled; set before the first choice runs.
  void on_failed(std::function<void()> callback);

 protected:
  struct Choice {
    std::unique_ptr<AnswerSplitter> splitter;
    generate::RepetitionGuard guard;
    bool wants_end = false;  // the one tool call is whole
    std::string content;     // bytes of text that went out
    std::string reasoning;
    std::vector<ToolCallOut> calls;
    std::vector<TokenLogprob> pending;   // of tokens whose text is not out yet
    std::vector<TokenLogprob> logprobs;  // of a whole reply
    int64_t reasoning_tokens = 0;
    bool begun = false;
    Ending ending;
    std::optional<generate::Grounding> grounding;
    std::optional<generate::Answer> answer;  // once it ended; without its text
  };
  // With the lock held.
  virtual void begin_choice(int64_t index) = 0;
  virtual void write_text(int64_t index, std::string_view piece) = 0;  // into choices_[index] and, streaming, to the client
  virtual void write_last(int64_t index) = 0;                          // what the splitter held back
  virtual Json end_chunk(int64_t index, const RequestFacts* facts) = 0;
  virtual Json usage_chunk(const Usage& usage, const RequestFacts& facts) = 0;
  virtual Json reply(const Usage& usage, const RequestFacts& facts) = 0;

  void send_event(const Json& object) { setup_.responder->write(sse_event(object)); }
  // The log-probabilities that go out with the next piece of text: a stream sends them with it, a whole reply keeps them
  // (none is returned).
  std::vector<TokenLogprob> next_logprobs(int64_t index);
  Choice& choice(int64_t index) { return choices_[static_cast<size_t>(index)]; }

  Setup setup_;
  std::vector<Choice> choices_;

 private:
  class Sink;
  void on_progress(int64_t index, generate::Phase phase, int64_t done, int64_t total);
  bool on_token(int64_t index, const generate::SaidToken& token);
  void on_text(int64_t index, std::string_view piece);
  void on_done(int64_t index, generate::Answer answer);
  void on_failure(int64_t index, Failure failure);
  void start();  // the head of the stream, once
  void end_choice(int64_t index, generate::Answer answer, EndCause cause);
  void finish();
  void give_up(const ApiError& error);
  RequestFacts facts() const;
  // Of each prompt the answer that read it, the others found it in memory; null where none ended yet.
  std::vector<const generate::Answer*> readers() const;
  std::vector<generate::Answer> take_answers();
  Usage usage() const;

  std::mutex mutex_;
  bool started_ = false;
  bool over_ = false;
  int64_t open_ = 0;  // choices that have not ended
  std::chrono::steady_clock::time_point last_sign_;  // of life
  std::function<void()> on_failed_;
};

// POST /v1/chat/completions.
std::shared_ptr<ReplyWriter> chat_reply_writer(const ChatRequest& request, ReplyWriter::Setup setup);
// POST /v1/completions; `prompts` as texts, for echo (empty without it). Choice c of prompt p has index p * n + c.
std::shared_ptr<ReplyWriter> completion_reply_writer(const CompletionRequest& request, std::vector<std::string> prompts, ReplyWriter::Setup setup);

}  // namespace qvl::serve
