#include "qvl/serve/reply_writer.h"

#include <algorithm>
#include <cmath>

#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/report.h"
#include "qvl/text/unicode.h"

namespace qvl::serve {
namespace {

// Proxies and clients give up on a stream that says nothing; nobody needs to see every layer.
constexpr double kProgressIntervalMs = 250;

EndCause cause_of(generate::EndCause cause) {
  switch (cause) {
    case generate::EndCause::kEndToken:
      return EndCause::kEndToken;
    case generate::EndCause::kStopString:
      return EndCause::kStopString;
    case generate::EndCause::kConstraint:
      return EndCause::kConstraint;
    case generate::EndCause::kMaxTokens:
      return EndCause::kMaxTokens;
    case generate::EndCause::kContext:
      return EndCause::kContext;
    case generate::EndCause::kCallback:  // told apart by the choice itself
    case generate::EndCause::kCancelled:
      return EndCause::kTimeout;
  }
  return EndCause::kEndToken;
}

const std::vector<TokenLogprob>* if_any(const std::vector<TokenLogprob>& logprobs) {
  return logprobs.empty() ? nullptr : &logprobs;
}

}  // namespace

class ReplyWriter::Sink : public AnswerSink {
 public:
  Sink(std::shared_ptr<ReplyWriter> writer, int64_t index) : writer_(std::move(writer)), index_(index) {}
  void progress(generate::Phase phase, int64_t done, int64_t total) override { writer_->on_progress(index_, phase, done, total); }
  bool token(const generate::SaidToken& token) override { return writer_->on_token(index_, token); }
  void text(std::string_view piece) override { writer_->on_text(index_, piece); }
  void done(generate::Answer answer) override { writer_->on_done(index_, std::move(answer)); }
  void failed(Failure failure) override { writer_->on_failure(index_, std::move(failure)); }

 private:
  std::shared_ptr<ReplyWriter> writer_;
  int64_t index_;
};

ReplyWriter::ReplyWriter(Setup setup) : setup_(std::move(setup)), open_(setup_.choices), last_sign_(Clock::now()) {
  choices_.resize(static_cast<size_t>(setup_.choices));
}

std::shared_ptr<AnswerSink> ReplyWriter::sink(int64_t index) {
  return std::make_shared<Sink>(shared_from_this(), index);
}

void ReplyWriter::on_failed(std::function<void()> callback) {
  std::lock_guard lock(mutex_);
  on_failed_ = std::move(callback);
}

std::vector<TokenLogprob> ReplyWriter::next_logprobs(int64_t index) {
  Choice& c = choice(index);
  std::vector<TokenLogprob> out = std::exchange(c.pending, {});
  if (setup_.stream) return out;
  c.logprobs.insert(c.logprobs.end(), std::make_move_iterator(out.begin()), std::make_move_iterator(out.end()));
  return {};
}

void ReplyWriter::start() {
  if (started_ || !setup_.stream) return;
  started_ = true;
  setup_.responder->start_stream(200, {{"Content-Type", "text/event-stream"}, {"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
}

void ReplyWriter::keep_alive(double silence_ms) {
  std::lock_guard lock(mutex_);
  if (over_ || !setup_.stream || ms_since(last_sign_) < silence_ms) return;
  start();
  last_sign_ = Clock::now();
  setup_.responder->write(std::string(kSseKeepAlive));
}

void ReplyWriter::on_progress(int64_t, generate::Phase phase, int64_t done, int64_t total) {
  std::lock_guard lock(mutex_);
  if (over_ || !setup_.stream) return;
  if (started_ && ms_since(last_sign_) < kProgressIntervalMs) return;
  start();
  last_sign_ = Clock::now();
  // A comment: whoever only knows OpenAI's events does not see it.
  const Json progress = {{"phase", phase == generate::Phase::kVision ? "vision" : "prefill"}, {"done", done}, {"total", total}};
  setup_.responder->write(": progress " + progress.dump() + "\n\n");
}

bool ReplyWriter::on_token(int64_t index, const generate::SaidToken& token) {
  std::lock_guard lock(mutex_);
  if (over_) return false;
  Choice& c = choice(index);
  if (c.wants_end) return false;
  if (c.splitter && c.splitter->in_reasoning()) ++c.reasoning_tokens;
  if (token.logprobs) {
    TokenLogprob out;
    out.bytes = std::string(setup_.tokenizer.token_bytes(token.id));
    out.logprob = token.logprobs->said.logprob;
    for (const auto& t : token.logprobs->top)
      out.top.push_back({std::string(setup_.tokenizer.token_bytes(t.id)), t.logprob});
    c.pending.push_back(std::move(out));
  }
  if (!setup_.repetition_guard) return true;
  c.ending.repetition = c.guard.push(token.id);
  return !c.ending.repetition;
}

void ReplyWriter::on_text(int64_t index, std::string_view piece) {
  std::lock_guard lock(mutex_);
  if (over_) return;
  start();
  if (!choice(index).begun) {
    choice(index).begun = true;
    begin_choice(index);
  }
  write_text(index, piece);
  last_sign_ = Clock::now();
}

void ReplyWriter::end_choice(int64_t index, generate::Answer answer, EndCause cause) {
  Choice& c = choice(index);
  start();
  if (!c.begun) {
    c.begun = true;
    begin_choice(index);
  }
  write_last(index);
  c.ending.cause = cause;
  if (cause == EndCause::kStopString) c.ending.stop_string = answer.stop_string;
  if (c.ending.repetition) {
    const auto sensible = std::min(static_cast<size_t>(c.ending.repetition->sensible_tokens()), answer.token_ids.size());
    c.ending.sensible_characters = text::count_characters(setup_.tokenizer.decode(std::span(answer.token_ids).first(sensible), true));
  }
  answer.text = c.content;  // without reasoning and calls
  if (setup_.grounding) c.grounding = generate::grounding_of(answer);
  answer.text.clear();
  c.answer = std::move(answer);
  --open_;
  if (setup_.stream) {
    const std::optional<RequestFacts> about = open_ == 0 && !setup_.include_usage ? std::optional(facts()) : std::nullopt;
    send_event(end_chunk(index, about ? &*about : nullptr));
  }
  if (open_ == 0) finish();
}

void ReplyWriter::on_done(int64_t index, generate::Answer answer) {
  std::lock_guard lock(mutex_);
  if (over_) return;
  EndCause cause = cause_of(answer.cause);
  if (cause == EndCause::kMaxTokens && setup_.cut_by_context) cause = EndCause::kContext;
  if (answer.cause == generate::EndCause::kCallback) cause = choice(index).ending.repetition ? EndCause::kRepetition : EndCause::kToolCall;
  end_choice(index, std::move(answer), cause);
}

void ReplyWriter::on_failure(int64_t index, Failure failure) {
  std::function<void()> tell;
  {
    std::lock_guard lock(mutex_);
    if (over_) return;
    using Kind = Failure::Kind;
    // What was said by then, by any of the choices, is worth having, and usage says what it was.
    const auto said = [](const Choice& c) { return c.answer && !c.answer->token_ids.empty(); };
    if (failure.kind == Kind::kTimeout && (open_ > 1 || !failure.partial.token_ids.empty() || std::any_of(choices_.begin(), choices_.end(), said)))
      return end_choice(index, std::move(failure.partial), EndCause::kTimeout);
    switch (failure.kind) {
      case Kind::kTimeout:
        give_up(request_timeout(setup_.time_limit_s));
        break;
      case Kind::kShutdown:
        give_up(shutting_down(5));
        break;
      case Kind::kCancelled:
        give_up(to_api_error(Error(ErrorCode::kCancelled, failure.message), ErrorSite::kGenerate));
        break;
      case Kind::kError:
        log_message(LogLevel::kWarning, cat("[serve] request ", setup_.responder->request_id(), ": ", failure.message));
        give_up(to_api_error(Error(failure.code, failure.message), ErrorSite::kGenerate));
        break;
    }
    tell = std::move(on_failed_);
    on_failed_ = nullptr;
  }
  if (tell) tell();
}

void ReplyWriter::fail(const ApiError& error) {
  std::lock_guard lock(mutex_);
  if (!over_) give_up(error);
}

void ReplyWriter::give_up(const ApiError& error) {
  over_ = true;
  if (started_) {
    setup_.responder->write(sse_error(error));
    setup_.responder->end();
  } else {
    send_error(*setup_.responder, error.reply());
  }
  if (setup_.report) setup_.report({.status = error.status, .stream = setup_.stream, .usage = usage(), .endings = {}, .answers = take_answers()});
}

std::vector<const generate::Answer*> ReplyWriter::readers() const {
  std::vector<const generate::Answer*> out(static_cast<size_t>(setup_.choices / setup_.choices_per_prompt), nullptr);
  for (size_t i = 0; i < choices_.size(); ++i) {
    const auto& answer = choices_[i].answer;
    const generate::Answer*& best = out[i / static_cast<size_t>(setup_.choices_per_prompt)];
    if (!answer || answer->prompt_tokens == 0) continue;  // its time was up before its prompt was read
    if (!best || answer->cached_tokens < best->cached_tokens) best = &*answer;
  }
  return out;
}

Usage ReplyWriter::usage() const {
  Usage out;
  for (const generate::Answer* a : readers()) {
    if (!a) continue;
    out.prompt_tokens += a->prompt_tokens;
    out.image_tokens += a->image_tokens;
    out.cached_tokens += a->cached_tokens;
  }
  for (const Choice& c : choices_) {
    if (c.answer) out.completion_tokens += static_cast<int64_t>(c.answer->token_ids.size());
    out.reasoning_tokens += c.reasoning_tokens;
  }
  return out;
}

RequestFacts ReplyWriter::facts() const {
  RequestFacts out;
  out.details = setup_.details;
  out.unenforced = setup_.unenforced;
  out.engine = setup_.engine;
  const generate::Answer* first = readers().front();
  if (!first) return out;
  out.visuals = first->visuals;
  out.timings = generate::timings_json(*first, 0);
  return out;
}

std::vector<generate::Answer> ReplyWriter::take_answers() {
  std::vector<generate::Answer> out;
  for (Choice& c : choices_) {
    if (c.answer) out.push_back(*std::move(c.answer));
  }
  return out;
}

void ReplyWriter::finish() {
  over_ = true;
  const Usage used = usage();
  const RequestFacts about = facts();
  if (setup_.stream) {
    if (setup_.include_usage) send_event(usage_chunk(used, about));
    setup_.responder->write(std::string(kSseDone));
    setup_.responder->end();
  } else {
    setup_.responder->send(200, {{"Content-Type", "application/json"}}, dump_json(reply(used, about)));
  }
  ReplyReport report{.status = 200, .stream = setup_.stream, .usage = used, .endings = {}, .answers = {}};
  for (const Choice& c : choices_) report.endings.push_back(end_cause_name(c.ending.cause));
  report.answers = take_answers();
  if (setup_.report) setup_.report(report);
}

namespace {

class ChatReplyWriter : public ReplyWriter {
 public:
  ChatReplyWriter(const ChatRequest& request, Setup setup)
      : ReplyWriter(std::move(setup)), stream_(setup_.head, setup_.include_usage), wants_logprobs_(request.logprobs) {
    SplitterOptions options;
    options.reasoning = request.thinking ? SplitterOptions::Reasoning::kBegun : SplitterOptions::Reasoning::kNone;
    if (request.tool_choice.kind != ToolChoice::Kind::kNone) {
      for (const ToolSpec& t : request.tools) options.tools.push_back(t.name);
    }
    if (!request.parallel_tool_calls) options.max_calls = 1;
    for (Choice& c : choices_) c.splitter = std::make_unique<AnswerSplitter>(options);
  }

 private:
  void begin_choice(int64_t index) override {
    if (setup_.stream) send_event(stream_.begin(index));
  }

  void write_text(int64_t index, std::string_view piece) override {
    write(index, choice(index).splitter->push(piece));
    choice(index).wants_end = !choice(index).calls.empty() && choice(index).splitter->done();
  }

  void write_last(int64_t index) override {
    write(index, choice(index).splitter->finish());
    last_logprobs_ = next_logprobs(index);  // of tokens without text of their own (parts of tags, stop strings)
  }

  void write(int64_t index, const std::vector<AnswerEvent>& events) {
    Choice& c = choice(index);
    for (const AnswerEvent& e : events) {
      const std::vector<TokenLogprob> logprobs = next_logprobs(index);
      switch (e.kind) {
        case AnswerEvent::Kind::kReasoning:
          c.reasoning += e.text;
          if (setup_.stream) send_event(stream_.reasoning(index, e.text, if_any(logprobs)));
          break;
        case AnswerEvent::Kind::kContent:
          c.content += e.text;
          if (setup_.stream) send_event(stream_.content(index, e.text, if_any(logprobs)));
          break;
        case AnswerEvent::Kind::kToolCall:
          c.calls.push_back({new_id("call_"), e.name, e.text});
          if (setup_.stream) send_event(stream_.tool_call(index, e.index, c.calls.back(), if_any(logprobs)));
          break;
      }
    }
  }

  Json end_chunk(int64_t index, const RequestFacts* facts) override {
    const Choice& c = choice(index);
    return stream_.end(index, c.ending, !c.calls.empty(), c.grounding ? &*c.grounding : nullptr, facts, if_any(last_logprobs_));
  }

  Json usage_chunk(const Usage& usage, const RequestFacts& facts) override { return stream_.usage(usage, facts); }

  Json reply(const Usage& usage, const RequestFacts& facts) override {
    std::vector<ChatChoice> out;
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& c = choices_[i];
      ChatChoice one;
      one.index = static_cast<int64_t>(i);
      one.content = std::move(c.content);
      one.reasoning = std::move(c.reasoning);
      one.tool_calls = std::move(c.calls);
      one.ending = c.ending;
      if (wants_logprobs_) one.logprobs = std::move(c.logprobs);
      one.grounding = std::move(c.grounding);
      out.push_back(std::move(one));
    }
    return chat_completion(setup_.head, out, usage, facts);
  }

  ChatStream stream_;
  bool wants_logprobs_;
  std::vector<TokenLogprob> last_logprobs_;
};

class CompletionReplyWriter : public ReplyWriter {
 public:
  CompletionReplyWriter(const CompletionRequest& request, std::vector<std::string> prompts, Setup setup)
      : ReplyWriter(std::move(setup)), stream_(setup_.head, setup_.include_usage), prompts_(std::move(prompts)), n_(request.n), wants_logprobs_(request.logprobs.has_value()), characters_(choices_.size()) {}

 private:
  void begin_choice(int64_t index) override {
    if (prompts_.empty()) return;
    const std::string& echo = prompts_[static_cast<size_t>(index / n_)];
    if (setup_.stream) send_event(stream_.piece(index, echo, nullptr, 0));
    choice(index).content = echo;
    characters_[static_cast<size_t>(index)] = text::count_characters(echo);
  }

  void write_text(int64_t index, std::string_view piece) override {
    int64_t& characters = characters_[static_cast<size_t>(index)];
    const std::vector<TokenLogprob> logprobs = next_logprobs(index);
    if (setup_.stream) send_event(stream_.piece(index, piece, if_any(logprobs), characters));
    choice(index).content += piece;
    characters += text::count_characters(piece);
  }

  void write_last(int64_t index) override {
    if (!choice(index).pending.empty()) write_text(index, "");  // tokens without text of their own
  }

  Json end_chunk(int64_t index, const RequestFacts* facts) override { return stream_.end(index, choice(index).ending, facts); }
  Json usage_chunk(const Usage& usage, const RequestFacts& facts) override { return stream_.usage(usage, facts); }

  Json reply(const Usage& usage, const RequestFacts& facts) override {
    std::vector<TextChoice> out;
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& c = choices_[i];
      TextChoice one{.index = static_cast<int64_t>(i), .text = std::move(c.content), .ending = c.ending, .logprobs = {}};
      if (wants_logprobs_) one.logprobs = std::move(c.logprobs);
      out.push_back(std::move(one));
    }
    return text_completion(setup_.head, out, usage, facts);
  }

  TextStream stream_;
  std::vector<std::string> prompts_;
  int64_t n_;
  bool wants_logprobs_;
  std::vector<int64_t> characters_;  // of each choice's content
};

}  // namespace

std::shared_ptr<ReplyWriter> chat_reply_writer(const ChatRequest& request, ReplyWriter::Setup setup) {
  return std::make_shared<ChatReplyWriter>(request, std::move(setup));
}

std::shared_ptr<ReplyWriter> completion_reply_writer(const CompletionRequest& request, std::vector<std::string> prompts, ReplyWriter::Setup setup) {
  return std::make_shared<CompletionReplyWriter>(request, std::move(prompts), std::move(setup));
}

}  // namespace qvl::serve
