// Turns, fairness, cancelling, limits and the end of the scheduler, on the fake engine: whatever runs beside it, each answer
// must be the one that the request gets alone.
#include "qvl/serve/scheduler.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <set>

#include "qvl/base/format.h"
#include "qvl/generate/fake_engine.h"

namespace qvl::serve {
namespace {

namespace fs = std::filesystem;
using generate::testing::FakeEngine;
using namespace std::chrono_literals;

const fs::path kSmall = fs::path(QVL_SOURCE_DIR) / "models/small";
const fs::path kExamples = fs::path(QVL_SOURCE_DIR) / "examples";

// Keeps what it hears, and checks the order of it.
class Listener : public AnswerSink {
 public:
  void progress(generate::Phase phase, int64_t done, int64_t total) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(over_);
    EXPECT_LE(done, total);
    phases_.insert(phase);
    changed_.notify_all();
    if (on_progress) on_progress();
  }
  bool token(const generate::SaidToken& token) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(over_);
    tokens_.push_back(token.id);
    changed_.notify_all();
    if (on_token) on_token(tokens_.size());
    return static_cast<int64_t>(tokens_.size()) < stop_after;
  }
  void text(std::string_view piece) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(over_);
    text_ += piece;
  }
  void done(generate::Answer a) override { end(std::move(a), std::nullopt); }
  void failed(Failure f) override { end(f.partial, f); }

  bool wait(std::chrono::milliseconds time = 20s) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, time, [this] { return over_; });
  }
  bool wait_for_tokens(size_t n) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 20s, [&] { return tokens_.size() >= n || over_; });
  }
  size_t tokens() {
    std::lock_guard lock(mutex_);
    return tokens_.size();
  }
  bool over() {
    std::lock_guard lock(mutex_);
    return over_;
  }

  // After wait().
  generate::Answer answer;
  std::optional<Failure> failure;
  std::string text_;
  std::set<generate::Phase> phases_;
  int64_t stop_after = 1 << 30;
  std::function<void()> on_progress;
  std::function<void(size_t)> on_token;

 private:
  void end(generate::Answer a, std::optional<Failure> f) {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(over_) << "ended twice";
    over_ = true;
    answer = std::move(a);
    failure = std::move(f);
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> tokens_;
  bool over_ = false;
};

class SchedulerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const model::ModelConfig real = model::ModelConfig::load(kSmall);
    engine_ = FakeEngine::with_tokens_of(real);
    assets_ = std::make_shared<const generate::Assets>(generate::Assets::load(kSmall, real));
    memory_ = std::make_shared<generate::ImageMemory>(size_t{1} << 30);
  }

  void start(SchedulerOptions options = {}) {
    options.prefill_chunk_tokens = 16;
    scheduler_ = std::make_unique<Scheduler>(engine_, assets_, memory_, nullptr, options);
  }

  void set_prompt(Scheduler::Request& out, const std::vector<generate::ChatMessage>& conversation) {
    const generate::Pipeline pipeline(engine_, assets_, memory_, 16);
    out.prompt = pipeline.make_prompt(conversation, out.options);
    out.visuals = generate::visuals_of(conversation);
  }

  Scheduler::Request request(std::string text, int64_t tokens = 20) {
    Scheduler::Request out;
    out.options.sampling.temperature = 1.0;
    out.options.seed = std::hash<std::string>{}(text);
    set_prompt(out, {generate::user_message({}, std::move(text))});
    out.options.max_tokens = tokens;
    out.options.ignore_eos = true;
    out.client = "someone";
    return out;
  }

  std::shared_ptr<Listener> submit(Scheduler::Request request, Scheduler::Ticket* ticket = nullptr, const Scheduler::Ticket& after = {}) {
    auto listener = std::make_shared<Listener>();
    request.sink = listener;
    const Scheduler::Ticket t = scheduler_->submit(std::move(request), after);
    if (ticket) *ticket = t;
    return listener;
  }

  // Submits requests of two tokens and notes by name in which order they begin to answer.
  class Order {
   public:
    explicit Order(SchedulerTest& test) : test_(test) {}
    void add(const std::string& client, const std::string& name, int64_t priority = 0) {
      Scheduler::Request r = test_.request(name, 2);
      r.client = client;
      r.priority = priority;
      auto l = std::make_shared<Listener>();
      l->on_token = [this, name](size_t n) {
        if (n != 1) return;
        std::lock_guard lock(mutex_);
        names_.push_back(name);
      };
      r.sink = l;
      test_.scheduler_->submit(std::move(r));
      listeners_.push_back(l);
    }
    // When all are over; empty if they do not end.
    std::vector<std::string> names() {
      for (auto& l : listeners_) {
        if (!l->wait()) return {};
      }
      return names_;
    }

   private:
    SchedulerTest& test_;
    std::mutex mutex_;
    std::vector<std::string> names_;
    std::vector<std::shared_ptr<Listener>> listeners_;
  };

  // What the request gets from a pipeline of its own. And on an engine of its own: the fake one counts its calls, and the
  // scheduler may be using the other just now.
  std::vector<int32_t> alone(const Scheduler::Request& request) {
    const auto engine = std::make_shared<FakeEngine>();
    engine->config_ = engine_->config_;
    engine->script_ = engine_->script_;
    generate::Pipeline pipeline(engine, assets_, std::make_shared<generate::ImageMemory>(size_t{1} << 30), 16);
    const auto answering = pipeline.begin(request.prompt, request.visuals, request.options);
    if (!answering->done()) generate::run_alone(*engine, *answering->generation(), nullptr);
    return answering->finish().token_ids;
  }

  std::shared_ptr<FakeEngine> engine_;
  std::shared_ptr<const generate::Assets> assets_;
  std::shared_ptr<generate::ImageMemory> memory_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, ManyAnswersAreEachTheOneOfItsRequest) {
  std::vector<Scheduler::Request> requests;
  for (int i = 0; i < 24; ++i) {
    requests.push_back(request(cat("Question number ", i, std::string(static_cast<size_t>(i * 7), 'x')), 5 + i));
    requests.back().client = cat("client ", i % 5);
  }
  std::vector<std::vector<int32_t>> expected;
  for (const auto& r : requests) expected.push_back(alone(r));
  start({.slots = 5});
  std::vector<std::shared_ptr<Listener>> listeners;
  for (const auto& r : requests) listeners.push_back(submit(r));
  for (size_t i = 0; i < listeners.size(); ++i) {
    ASSERT_TRUE(listeners[i]->wait()) << i;
    ASSERT_FALSE(listeners[i]->failure) << listeners[i]->failure->message;
    EXPECT_EQ(listeners[i]->answer.token_ids, expected[i]) << i;
    EXPECT_EQ(listeners[i]->text_, listeners[i]->answer.text) << i;
  }
  const Scheduler::Load load = scheduler_->load();
  EXPECT_GT(load.decode_rows, load.decode_steps) << "no step was shared";
  EXPECT_EQ(load.waiting + load.reading + load.writing, 0);
}

TEST_F(SchedulerTest, MoreAnswersThanRowsOfAStepTakeTurns) {
  std::vector<Scheduler::Request> requests;
  for (int i = 0; i < 40; ++i) requests.push_back(request(cat("Q", i), 12));
  std::vector<std::vector<int32_t>> expected;
  for (const auto& r : requests) expected.push_back(alone(r));
  start({.slots = 40});
  std::vector<std::shared_ptr<Listener>> listeners;
  for (const auto& r : requests) listeners.push_back(submit(r));
  for (size_t i = 0; i < listeners.size(); ++i) {
    ASSERT_TRUE(listeners[i]->wait()) << i;
    EXPECT_EQ(listeners[i]->answer.token_ids, expected[i]) << i;
  }
}

TEST_F(SchedulerTest, AStreamGoesOnWhileAnotherPromptIsRead) {
  engine_->config_.text.max_positions = 1 << 30;  // the stream must not end by itself
  start({.slots = 2});
  auto stream = submit(request("Tell me a long story.", 1 << 29));
  ASSERT_TRUE(stream->wait_for_tokens(5));
  // The prompt asks for the stream's progress at each of its own reports.
  size_t at_first = 0, at_last = 0;
  auto reader = std::make_shared<Listener>();
  reader->on_progress = [&] {
    if (at_first == 0) at_first = stream->tokens();
    at_last = stream->tokens();
    std::this_thread::sleep_for(1ms);  // the fake prompt must take as long as many steps, however slow those are
  };
  Scheduler::Request long_prompt = request(std::string(600, 'y') + "?", 1);
  const std::vector<int32_t> expected = alone(long_prompt);
  long_prompt.sink = reader;
  scheduler_->submit(std::move(long_prompt));
  ASSERT_TRUE(reader->wait());
  EXPECT_GT(at_last, at_first + 5) << "the stream stood still";
  EXPECT_EQ(reader->answer.token_ids, expected);
  scheduler_->stop(0ms);
  ASSERT_TRUE(stream->wait());
  ASSERT_TRUE(stream->failure);
  EXPECT_EQ(stream->failure->kind, Failure::Kind::kShutdown);
}

TEST_F(SchedulerTest, CancellingEndsWithinAStepWhereverTheRequestIs) {
  start({.slots = 1});
  Scheduler::Ticket writing, waiting;
  auto a = submit(request("A", 1 << 30), &writing);
  ASSERT_TRUE(a->wait_for_tokens(3));
  auto b = submit(request("B"), &waiting);
  waiting.cancel();
  ASSERT_TRUE(b->wait());
  ASSERT_TRUE(b->failure);
  EXPECT_EQ(b->failure->kind, Failure::Kind::kCancelled);
  EXPECT_FALSE(a->over());
  writing.cancel();
  ASSERT_TRUE(a->wait());
  ASSERT_TRUE(a->failure);
  EXPECT_EQ(a->failure->kind, Failure::Kind::kCancelled);
  EXPECT_GE(a->failure->partial.token_ids.size(), 3u);
  // While its prompt is read.
  Scheduler::Ticket reading;
  auto c = std::make_shared<Listener>();
  std::atomic<bool> began{false};
  c->on_progress = [&] {
    began = true;
    std::this_thread::sleep_for(1ms);  // the prompt must not be read before it is cancelled
  };
  Scheduler::Request long_prompt = request(std::string(3500, 'z'), 5);
  long_prompt.sink = c;
  reading = scheduler_->submit(std::move(long_prompt));
  while (!began) std::this_thread::yield();
  reading.cancel();
  ASSERT_TRUE(c->wait());
  ASSERT_TRUE(c->failure);
  EXPECT_EQ(c->failure->kind, Failure::Kind::kCancelled);
  // The slot is free and well.
  const Scheduler::Request again = request("D");
  auto d = submit(again);
  ASSERT_TRUE(d->wait());
  EXPECT_EQ(d->answer.token_ids, alone(again));
}

TEST_F(SchedulerTest, TheQueueIsBoundedAndSaysWhenToComeBack) {
  start({.slots = 1, .queue_limit = 2});
  auto busy = submit(request("busy", 1 << 30));
  ASSERT_TRUE(busy->wait_for_tokens(1));
  auto one = submit(request("one"));
  auto two = submit(request("two"));
  try {
    submit(request("three"));
    FAIL() << "not refused";
  } catch (const QueueFull& e) {
    EXPECT_GE(e.retry_after_s, 1.0);
    EXPECT_NE(std::string(e.what()).find("fewer than 2"), std::string::npos) << e.what();
  }
  EXPECT_EQ(scheduler_->load().waiting, 2);
}

TEST_F(SchedulerTest, DeadlinesEndRequestsInTheQueueAndInTheMiddle) {
  engine_->config_.text.max_positions = 1 << 20;  // the answer must not end by itself
  start({.slots = 1});
  Scheduler::Request slow = request("slow", 1 << 30);
  slow.deadline = Scheduler::Clock::now() + 1500ms;  // time for a token on a busy machine, too
  auto a = submit(std::move(slow));
  ASSERT_TRUE(a->wait_for_tokens(1));
  Scheduler::Request queued = request("queued");
  queued.deadline = Scheduler::Clock::now() + 50ms;
  auto b = submit(std::move(queued));
  ASSERT_TRUE(b->wait());
  ASSERT_TRUE(b->failure);
  EXPECT_EQ(b->failure->kind, Failure::Kind::kTimeout);
  ASSERT_TRUE(a->wait());
  ASSERT_TRUE(a->failure);
  EXPECT_EQ(a->failure->kind, Failure::Kind::kTimeout);
  EXPECT_FALSE(a->failure->partial.token_ids.empty());
}

TEST_F(SchedulerTest, ClientsTakeTurns) {
  start({.slots = 1});
  Scheduler::Ticket ticket;
  auto busy = submit(request("busy", 1 << 30), &ticket);
  ASSERT_TRUE(busy->wait_for_tokens(1));
  Order requests(*this);
  for (int i = 0; i < 4; ++i) requests.add("greedy", cat("g", i));
  requests.add("modest", "m0");
  requests.add("modest", "m1");
  ticket.cancel();
  const std::vector<std::string> order = requests.names();
  ASSERT_EQ(order.size(), 6u);
  // The modest client does not stand behind all of the other's.
  const auto place = [&](const std::string& name) { return std::find(order.begin(), order.end(), name) - order.begin(); };
  EXPECT_LT(place("m0"), place("g1")) << "m0 waited";
  EXPECT_LT(place("m1"), place("g2"));
  EXPECT_LT(place("g0"), place("g3"));
}

TEST_F(SchedulerTest, LowerNumbersComeBefore) {
  start({.slots = 1});
  Scheduler::Ticket ticket;
  auto busy = submit(request("busy", 1 << 30), &ticket);
  ASSERT_TRUE(busy->wait_for_tokens(1));
  Order requests(*this);
  requests.add("a", "a2", 2);
  requests.add("a", "a1", 1);
  requests.add("a", "a0", 0);
  requests.add("b", "b1", 1);
  requests.add("b", "b0", 0);
  requests.add("b", "b0 too", 0);
  ticket.cancel();
  const std::vector<std::string> order = requests.names();
  ASSERT_EQ(order.size(), 6u);
  std::vector<std::string> first(order.begin(), order.begin() + 3), then(order.begin() + 3, order.begin() + 5);
  std::sort(first.begin(), first.end());
  std::sort(then.begin(), then.end());
  EXPECT_EQ(first, (std::vector<std::string>{"a0", "b0", "b0 too"}));
  EXPECT_EQ(then, (std::vector<std::string>{"a1", "b1"}));
  EXPECT_EQ(order.back(), "a2");
}

TEST_F(SchedulerTest, AQuestionIsReadBeforeAPromptOfAHigherNumber) {
  start({.slots = 2});
  auto patient = std::make_shared<Listener>();
  std::atomic<bool> began{false};
  patient->on_progress = [&] {
    began = true;
    std::this_thread::sleep_for(1ms);
  };
  Scheduler::Request low = request(std::string(2000, 'y'), 1);
  low.priority = 1;
  low.sink = patient;
  scheduler_->submit(std::move(low));
  while (!began) std::this_thread::yield();
  // Longer and later: without numbers it would be read after the other.
  auto question = submit(request(std::string(3000, 'z') + "?", 1));
  ASSERT_TRUE(question->wait());
  ASSERT_FALSE(question->failure) << question->failure->message;
  EXPECT_FALSE(patient->over());
  ASSERT_TRUE(patient->wait());
  EXPECT_FALSE(patient->failure);
}

TEST_F(SchedulerTest, ThePictureOfTwoRequestsIsEncodedOnce) {
  start({.slots = 4});
  std::vector<std::shared_ptr<Listener>> listeners;
  for (int i = 0; i < 4; ++i) {
    const auto visual = scheduler_->loader().load({.kind = generate::VisualInput::Kind::kImageFile, .path = kExamples / "shapes.png"});
    Scheduler::Request r = request("x", 6);
    set_prompt(r, {generate::user_message({visual}, cat("Question ", i))});
    listeners.push_back(submit(std::move(r)));
  }
  for (auto& l : listeners) {
    ASSERT_TRUE(l->wait());
    ASSERT_FALSE(l->failure) << l->failure->message;
  }
  EXPECT_EQ(engine_->calls_.encodes, 1);
}

TEST_F(SchedulerTest, OtherAnswersOfARequestFindItsPrompt) {
  start({.slots = 3});
  Scheduler::Request r = request("Name a colour. " + std::string(400, 'c'), 8);
  Scheduler::Ticket first;
  auto a = submit(r, &first);
  r.options.seed = *r.options.seed + 1;
  auto b = submit(r, nullptr, first);
  ASSERT_TRUE(a->wait());
  ASSERT_TRUE(b->wait());
  EXPECT_EQ(b->answer.token_ids, alone(r));
  EXPECT_EQ(b->answer.cached_tokens, b->answer.prompt_tokens - 1);
}

TEST_F(SchedulerTest, AStrangerLeavesAConversationAlone) {
  // Every prompt begins with the same words of the template.
  start({.slots = 2});
  Scheduler::Request talk = request("A long question of one client. " + std::string(200, 'q'), 3);
  ASSERT_TRUE(submit(talk)->wait());
  for (int i = 0; i < 3; ++i) {
    Scheduler::Request stranger = request(cat("Stranger ", i, " asks something else. ", std::string(100, 's')), 3);
    stranger.client = "stranger";
    auto other = submit(stranger);
    ASSERT_TRUE(other->wait());
    EXPECT_GT(other->answer.cached_tokens, 0) << "the common beginning was computed again";
    EXPECT_EQ(other->answer.token_ids, alone(stranger));
    talk.options.seed = *talk.options.seed + 1;
    auto again = submit(talk);
    ASSERT_TRUE(again->wait());
    EXPECT_EQ(again->answer.cached_tokens, again->answer.prompt_tokens - 1) << "after stranger " << i;
    EXPECT_EQ(again->answer.token_ids, alone(talk));
  }
}

class ReadAheadTest : public SchedulerTest {
 protected:
  void SetUp() override {
    SchedulerTest::SetUp();
    engine_->script_ = assets_->tokenizer.encode_text(said_);
    engine_->script_.push_back(assets_->tokenizer.require_token("<|im_end|>"));
    ASSERT_GT(engine_->script_.size(), 130u);  // more than two pieces
  }

  std::shared_ptr<Listener> first_turn(bool read_ahead) {
    Scheduler::Request r = request("Say something.", 1000);
    r.options.ignore_eos = false;
    r.read_ahead = read_ahead;
    auto first = submit(r);
    EXPECT_TRUE(first->wait());
    EXPECT_EQ(first->text_, said_);
    return first;
  }

  std::shared_ptr<Listener> second_turn() {
    Scheduler::Request r = request("", 5);
    set_prompt(r, {generate::user_message({}, "Say something."), generate::text_message(text::Role::kAssistant, said_),
                   generate::user_message({}, "And then?")});
    auto second = submit(r);
    EXPECT_TRUE(second->wait());
    EXPECT_EQ(second->answer.token_ids, alone(r));
    return second;
  }

  bool all_read() {
    const auto until = Scheduler::Clock::now() + 20s;
    while (scheduler_->load().unread > 0 && Scheduler::Clock::now() < until) std::this_thread::sleep_for(1ms);
    return scheduler_->load().unread == 0;
  }

  const std::string said_ = std::string(600, 'w');
  // Behind the answer's end token: "\n<|im_start|>user\n".
  const int64_t marks_ = 4;
};

TEST_F(ReadAheadTest, TheNextTurnFindsTheAnswerOfTheLast) {
  start({.slots = 2});
  const auto first = first_turn(true);
  ASSERT_TRUE(all_read());
  EXPECT_EQ(second_turn()->answer.cached_tokens, first->answer.prompt_tokens + static_cast<int64_t>(engine_->script_.size()) + marks_);
}

TEST_F(ReadAheadTest, OnlyWhereItIsAskedFor) {
  start({.slots = 2});
  const auto first = first_turn(false);
  EXPECT_EQ(scheduler_->load().unread, 0);
  EXPECT_EQ(second_turn()->answer.cached_tokens, first->answer.prompt_tokens);
}

TEST_F(ReadAheadTest, WhoeverComesNeedNotWaitForIt) {
  start({.slots = 2});
  std::atomic<bool> reading{false}, submitted{false};
  std::atomic<int> pieces{0};
  std::atomic<bool> answered{false};
  engine_->on_prefill_ = [&] {
    if (!answered) return;
    if (++pieces != 2) return;
    reading = true;
    while (!submitted) std::this_thread::sleep_for(1ms);
  };
  Scheduler::Request r = request("Say something.", 1000);
  r.options.ignore_eos = false;
  r.read_ahead = true;
  auto first = std::make_shared<Listener>();
  first->on_token = [&](size_t n) { answered = n + 1 == engine_->script_.size(); };
  r.sink = first;
  scheduler_->submit(std::move(r));
  ASSERT_TRUE(first->wait());
  const auto until = Scheduler::Clock::now() + 20s;
  while (!reading && Scheduler::Clock::now() < until) std::this_thread::sleep_for(1ms);
  ASSERT_TRUE(reading) << "nothing was read ahead";
  Scheduler::Request other = request("Someone else", 5);
  other.client = "someone else";
  auto listener = std::make_shared<Listener>();
  int pieces_before = 0;
  listener->on_progress = [&] { pieces_before = pieces_before == 0 ? pieces.load() : pieces_before; };
  other.sink = listener;
  scheduler_->submit(std::move(other));
  submitted = true;
  ASSERT_TRUE(listener->wait());
  EXPECT_LE(pieces_before, 3) << "the rest was read first";  // the piece that was broken off, and the prompt
  // What was left is read afterwards.
  ASSERT_TRUE(all_read());
  answered = false;
  EXPECT_EQ(second_turn()->answer.cached_tokens, first->answer.prompt_tokens + static_cast<int64_t>(engine_->script_.size()) + marks_);
}

TEST_F(SchedulerTest, ASinkThatSaysStopEndsTheAnswer) {
  start();
  auto l = std::make_shared<Listener>();
  l->stop_after = 4;
  Scheduler::Request r = request("stop", 100);
  r.sink = l;
  scheduler_->submit(std::move(r));
  ASSERT_TRUE(l->wait());
  EXPECT_EQ(l->answer.token_ids.size(), 4u);
  EXPECT_EQ(l->answer.cause, generate::EndCause::kCallback);
}

TEST_F(SchedulerTest, MemoryForKeysAndValuesIsBounded) {
  start({.slots = 2, .kv_limit_bytes = 1});
  try {
    submit(request("too much"));
    FAIL() << "not refused";
  } catch (const QueueFull&) {
    FAIL() << "waits for what never comes";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kLimit);
  }
}

TEST_F(SchedulerTest, KeysAndValuesStayInTheirLimitWhicheverSlotIsTaken) {
  // Eight bytes a token, as the fake cache has.
  engine_->config_.text.num_layers = engine_->config_.text.num_kv_heads = engine_->config_.text.head_dim = 1;
  const Scheduler::Request large = request(std::string(300, 'l'), 1), small = request("s", 1), middle = request(std::string(75, 'm'), 1);
  const auto bytes = [](const Scheduler::Request& r) { return static_cast<int64_t>(8 * (r.prompt.ids.size() + 1)); };
  ASSERT_GT(bytes(large), bytes(middle));
  ASSERT_GT(bytes(middle), bytes(small) + 64);
  const int64_t limit = bytes(large) + bytes(small) + 16;
  ASSERT_LT(limit, bytes(large) + bytes(middle));
  start({.slots = 2, .kv_limit_bytes = limit});
  // The small one's slot is the one used longest ago, and both begin like the third prompt.
  auto first = std::make_shared<Listener>();
  std::shared_ptr<Listener> second;
  Scheduler::Request both = large;
  both.options.max_tokens = 2;
  first->on_token = [&](size_t n) {
    if (n == 1) second = submit(small);
  };
  both.sink = first;
  scheduler_->submit(std::move(both));
  ASSERT_TRUE(first->wait());
  ASSERT_TRUE(second && second->wait());
  auto touched = submit(large);
  ASSERT_TRUE(touched->wait());
  EXPECT_LE(scheduler_->load().kv_bytes, limit);
  auto third = submit(middle);
  ASSERT_TRUE(third->wait());
  ASSERT_FALSE(third->failure);
  EXPECT_LE(scheduler_->load().kv_bytes, limit);
}

TEST_F(SchedulerTest, StopWaitsForAnswersAndRefusesNewOnes) {
  start({.slots = 1});
  auto a = submit(request("A", 200));
  ASSERT_TRUE(a->wait_for_tokens(1));
  auto waiting = submit(request("B"));
  scheduler_->stop(20s);
  ASSERT_TRUE(a->wait(0ms));
  EXPECT_FALSE(a->failure);
  ASSERT_TRUE(waiting->wait(0ms));
  ASSERT_TRUE(waiting->failure);
  EXPECT_EQ(waiting->failure->kind, Failure::Kind::kShutdown);
  EXPECT_THROW(submit(request("late")), Error);
}

TEST_F(SchedulerTest, AFailureOfTheEngineEndsTheAnswersThatMetItAlone) {
  start({.slots = 2});
  std::atomic<int> steps{0};
  engine_->on_decode_ = [&] {
    if (++steps == 5) fail(ErrorCode::kLimit, "fake", "no memory");
  };
  auto a = submit(request("A", 50));
  ASSERT_TRUE(a->wait());
  ASSERT_TRUE(a->failure);
  EXPECT_EQ(a->failure->kind, Failure::Kind::kError);
  EXPECT_EQ(a->failure->code, ErrorCode::kLimit);
  const Scheduler::Request again = request("B");
  auto b = submit(again);
  ASSERT_TRUE(b->wait());
  EXPECT_FALSE(b->failure);
  engine_->on_decode_ = nullptr;
  EXPECT_EQ(b->answer.token_ids, alone(again));
}

}  // namespace
}  // namespace qvl::serve
