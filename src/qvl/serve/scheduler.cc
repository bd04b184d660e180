#include "qvl/serve/scheduler.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <semaphore>
#include <thread>
#include <tuple>

#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/stopwatch.h"
#include "qvl/engine/stages.h"
#include "qvl/generate/generation.h"

namespace qvl::serve {
namespace {

using generate::Phase;

// Before anything was measured: the 4B on two cores.
constexpr double kFirstMsPerPatch = 7;
constexpr double kFirstMsPerToken = 30;
// A second of waiting counts like so many seconds of work less, so that nobody starves behind short prompts.
constexpr double kAging = 0.5;

// A running mean that follows a machine whose speed changes.
class Rate {
 public:
  explicit Rate(double first) : ms_per_unit_(first) {}
  void add(double ms, double units) {
    if (units <= 0) return;
    const double weight = known_ ? 0.25 : 1.0;
    ms_per_unit_ += weight * (ms / units - ms_per_unit_);
    known_ = true;
  }
  double ms_per_unit() const { return ms_per_unit_; }

 private:
  double ms_per_unit_;
  bool known_ = false;
};

}  // namespace

struct Scheduler::Job {
  Request request;
  Clock::time_point submitted;
  std::shared_ptr<Job> after;
  std::atomic<bool> cancel{false};
  std::atomic<bool> timed_out{false};
  std::atomic<bool> shut_down{false};
  std::atomic<bool> read{false};  // the prompt is in a timeline, or it is over
  Impl* owner = nullptr;

  bool ended_early() const { return cancel.load(std::memory_order_relaxed); }
};

// A timeline and the thread that reads prompts into it. Only the thread that holds the baton computes: the scheduler's
// hands it over with `go` and waits for `back`.
struct Scheduler::Slot {
  enum class State {
    kIdle,
    kReading,    // begin() runs, or will with the next `go`
    kWriting,    // answering exists; the scheduler's thread steps it
    kFinishing,  // the slot's thread tells the sink and keeps things, without the baton
  };

  std::unique_ptr<generate::Pipeline> pipeline;
  std::atomic<State> state{State::kIdle};
  std::atomic<bool> settled{false};  // kFinishing: the timeline does not change any more
  std::atomic<int64_t> kv_now{0};    // bytes, when it was last looked at
  std::atomic<bool> unread{false};   // kIdle: its last answer is to be read ahead
  std::shared_ptr<Job> job;
  std::unique_ptr<generate::Answering> answering;
  std::exception_ptr error;
  bool begun = false;    // has had the baton for this job
  bool encodes = false;  // pictures are being encoded
  bool quit = false;
  int64_t kv_reserved = 0;
  double left_ms = 0;    // estimated work
  double slice_ms[2] = {0, 0};  // computed for the job, by phase
  int64_t units[2] = {0, 0};
  Phase phase = Phase::kPrefill;
  Clock::time_point last_used;
  std::binary_semaphore go{0};
  std::binary_semaphore back{0};
  std::thread thread;
};

struct Scheduler::Impl {
  std::shared_ptr<const engine::Engine> engine;
  SchedulerOptions options;
  generate::Pipeline loader;
  std::shared_ptr<generate::ImageMemory> memory;
  std::vector<std::unique_ptr<Slot>> slots;
  int64_t kv_bytes_per_token = 0;

  mutable std::mutex mutex;
  std::condition_variable wake;       // of the scheduler's thread
  std::condition_variable all_ended;  // of stop()
  // Guarded by `mutex`.
  std::map<std::string, std::deque<std::shared_ptr<Job>>> waiting;
  std::map<std::string, uint64_t> last_turn;
  uint64_t turns = 0;
  int64_t waiting_count = 0;
  bool stopping = false;
  bool quit = false;
  Load counters;
  double mean_service_ms = 0;

  // The scheduler's thread alone.
  Rate patch_rate{kFirstMsPerPatch};
  Rate token_rate{kFirstMsPerToken};
  double reading_ms = 0;  // since both kinds of work wait
  double writing_ms = 0;
  size_t first_writer = 0;
  std::thread thread;
  // True while there is no other work: a slot that reads need not hand back the baton, reading ahead may go on.
  std::atomic<bool> alone{false};

  Impl(std::shared_ptr<const engine::Engine> the_engine, std::shared_ptr<const generate::Assets> assets,
       std::shared_ptr<generate::ImageMemory> image_memory, std::shared_ptr<generate::DiskMemory> disk,
       const SchedulerOptions& given)
      : engine(the_engine),
        options(given),
        loader(the_engine, assets, image_memory, given.prefill_chunk_tokens, disk),
        memory(image_memory) {
    kv_bytes_per_token = engine->config().kv_bytes_per_token(engine->info().kv_dtype);
    for (int i = 0; i < options.slots; ++i) {
      auto slot = std::make_unique<Slot>();
      slot->pipeline = std::make_unique<generate::Pipeline>(engine, assets, memory, options.prefill_chunk_tokens, disk);
      // Which slot a conversation finds, and whether it still holds the last answer, must not show in what is said.
      slot->pipeline->set_reuse(generate::Session::Reuse::kPromptsOnly);
      slots.push_back(std::move(slot));
    }
    for (auto& slot : slots) slot->thread = std::thread([this, s = slot.get()] { slot_main(*s); });
    thread = std::thread([this] { main(); });
  }

  // Without the lock held.
  void wake_up() {
    alone.store(false, std::memory_order_relaxed);
    // What the scheduler looked at before it went to sleep is older than this.
    { std::lock_guard lock(mutex); }
    wake.notify_one();
  }

  // --- slot threads ---

  // Between two pieces of work of a prompt.
  void yield(Slot& s) {
    if (alone.load(std::memory_order_relaxed)) {
      if (Clock::now() >= s.job->request.deadline) s.job->timed_out = true, s.job->cancel = true;
      return;
    }
    s.back.release();
    s.go.acquire();
  }

  void slot_main(Slot& s) {
    for (;;) {
      s.go.acquire();
      if (s.quit) return;
      if (s.state == Slot::State::kReading) {
        read(s);
        s.back.release();
      } else {
        finish(s);
      }
    }
  }

  void read(Slot& s) {
    Job& job = *s.job;
    generate::AnswerCallbacks callbacks;
    callbacks.cancel = &job.cancel;
    callbacks.on_text = [&job](std::string_view piece) { job.request.sink->text(piece); };
    callbacks.on_token = [&job](const generate::SaidToken& token) { return job.request.sink->token(token); };
    callbacks.progress = [this, &s, &job](Phase phase, int64_t done, int64_t total) {
      s.phase = phase;
      s.encodes = phase == Phase::kVision;
      s.units[static_cast<int>(phase)] = total;
      s.left_ms = phase == Phase::kVision
                      ? patch_rate.ms_per_unit() * static_cast<double>(total - done) +
                            token_rate.ms_per_unit() * static_cast<double>(job.request.prompt.ids.size())
                      : token_rate.ms_per_unit() * static_cast<double>(total - done);
      job.request.sink->progress(phase, done, total);
      yield(s);
    };
    std::vector<const generate::Pipeline*> donors;
    for (const auto& other : slots) {
      const Slot::State state = other->state;
      if (other.get() == &s || state == Slot::State::kReading) continue;
      if (state == Slot::State::kFinishing) other->settled.wait(false);  // a moment: no one is told before
      donors.push_back(other->pipeline.get());
    }
    try {
      s.answering = s.pipeline->begin(job.request.prompt, job.request.visuals, job.request.options, callbacks, donors);
    } catch (...) {
      s.error = std::current_exception();
    }
    s.encodes = false;
  }

  static Failure describe(const std::exception_ptr& error) {
    Failure failure;
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      failure.code = e.code();
      failure.message = e.what();
    } catch (const std::bad_alloc&) {
      failure.code = ErrorCode::kLimit;
      failure.message = "[serve] out of memory";
    } catch (const std::exception& e) {
      failure.code = ErrorCode::kIo;
      failure.message = e.what();
    }
    return failure;
  }

  static void explain_early_end(const Job& job, Failure& failure) {
    failure.code = ErrorCode::kCancelled;
    if (job.timed_out) {
      failure.kind = Failure::Kind::kTimeout;
      failure.message = "[serve] the request's time is up";
    } else if (job.shut_down) {
      failure.kind = Failure::Kind::kShutdown;
      failure.message = "[serve] the server stops";
    } else {
      failure.kind = Failure::Kind::kCancelled;
      failure.message = "[serve] cancelled";
    }
  }

  // Tells the sink, then keeps on disk what is worth it while others compute.
  void finish(Slot& s) {
    Job& job = *s.job;
    std::optional<generate::Answer> answer;
    if (!s.error) {
      try {
        answer = s.answering->finish();
      } catch (...) {
        s.error = std::current_exception();
      }
    }
    s.kv_now = kv_bytes(s);
    s.unread = job.request.read_ahead && s.pipeline->has_unread();
    s.settled = true;
    s.settled.notify_all();
    if (answer && answer->reason != generate::FinishReason::kCancelled) {
      job.request.sink->done(*std::move(answer));
    } else {
      Failure failure;
      if (s.error && !job.ended_early()) {
        failure = describe(s.error);
      } else {
        explain_early_end(job, failure);
      }
      if (answer) failure.partial = *std::move(answer);
      job.request.sink->failed(std::move(failure));
    }
    if (s.answering && !s.error) s.answering->keep();
    s.answering.reset();
    s.error = nullptr;
    const double service_ms = ms_since(job.submitted);
    {
      std::lock_guard lock(mutex);
      mean_service_ms += (mean_service_ms == 0 ? 1.0 : 0.2) * (service_ms - mean_service_ms);
      job.read = true;
      s.job.reset();
      s.kv_reserved = 0;
      s.last_used = Clock::now();
      s.state = Slot::State::kIdle;
    }
    all_ended.notify_all();
    wake_up();
  }

  // --- the scheduler's thread ---

  std::vector<Slot*> in_state(Slot::State state) const {
    std::vector<Slot*> out;
    for (const auto& s : slots) {
      if (s->state == state) out.push_back(s.get());
    }
    return out;
  }

  auto count(Slot::State state) const {
    return std::count_if(slots.begin(), slots.end(), [state](const auto& s) { return s->state == state; });
  }

  // Takes the dead out of the queue. Called with the lock held; returns them, for their sinks to be told without it.
  std::vector<std::shared_ptr<Job>> take_ended() {
    std::vector<std::shared_ptr<Job>> ended;
    const auto now = Clock::now();
    for (auto at = waiting.begin(); at != waiting.end();) {
      std::deque<std::shared_ptr<Job>>& line = at->second;
      for (auto j = line.begin(); j != line.end();) {
        if (now >= (*j)->request.deadline) (*j)->timed_out = true, (*j)->cancel = true;
        if ((*j)->ended_early()) {
          ended.push_back(std::move(*j));
          j = line.erase(j);
          --waiting_count;
        } else {
          ++j;
        }
      }
      at = line.empty() ? waiting.erase(at) : std::next(at);
    }
    for (auto at = last_turn.begin(); at != last_turn.end();) {
      at = waiting.contains(at->first) || now_served(at->first) ? std::next(at) : last_turn.erase(at);
    }
    return ended;
  }

  bool now_served(const std::string& client) const {
    return std::any_of(slots.begin(), slots.end(), [&](const auto& s) { return s->job && s->job->request.client == client; });
  }

  // Begins the next job, if one may: of the lowest priority number, then of the client with the fewest answers in the making,
  // among equals the one whose last turn is longest ago. With the lock held.
  bool admit_next() {
    if (count(Slot::State::kIdle) == 0) return false;
    std::deque<std::shared_ptr<Job>>* best = nullptr;
    std::tuple<int64_t, int64_t, uint64_t> best_rank;
    const std::string* client = nullptr;
    for (auto& [name, line] : waiting) {
      const auto& head = line.front();
      if (head->after && !head->after->read) continue;
      const auto active = std::count_if(slots.begin(), slots.end(),
                                        [&](const auto& s) { return s->job && s->job->request.client == name; });
      const auto turn = last_turn.find(name);
      const std::tuple<int64_t, int64_t, uint64_t> rank{head->request.priority, active, turn == last_turn.end() ? 0 : turn->second};
      if (best && !(rank < best_rank)) continue;
      best = &line, best_rank = rank, client = &name;
    }
    if (!best) return false;
    Slot& slot = slot_for(*best->front());
    if (!make_room(*best->front(), slot)) return false;
    std::shared_ptr<Job> job = std::move(best->front());
    last_turn[*client] = ++turns;
    best->pop_front();
    --waiting_count;
    if (best->empty()) waiting.erase(waiting.find(*client));
    admit(slot, std::move(job));
    return true;
  }

  int64_t kv_need(const Job& job) const {
    return (static_cast<int64_t>(job.request.prompt.ids.size()) + job.request.options.max_tokens) * kv_bytes_per_token;
  }

  // Forgets idle timelines, but not the job's `own`, until the job fits; false when answers in the making hold too much.
  bool make_room(const Job& job, const Slot& own) {
    if (options.kv_limit_bytes <= 0) return true;
    const int64_t room = options.kv_limit_bytes - kv_need(job);
    const auto held = [&] {
      int64_t bytes = 0;
      for (const auto& s : slots) bytes += s->state == Slot::State::kIdle ? kv_bytes(*s) : s->kv_reserved;
      return bytes;
    };
    while (held() - kv_bytes(own) > room) {
      Slot* oldest = nullptr;
      for (const auto& s : slots) {
        if (s.get() == &own || s->state != Slot::State::kIdle || kv_bytes(*s) == 0) continue;
        if (!oldest || s->last_used < oldest->last_used) oldest = s.get();
      }
      if (!oldest) return false;
      oldest->pipeline->reset();
      oldest->unread = false;
      oldest->kv_now = 0;
    }
    return true;
  }

  static int64_t kv_bytes(const Slot& s) { return static_cast<int64_t>(s.pipeline->session().cache_bytes()); }

  // The idle slot, of which there must be one, whose timeline the prompt goes on with: the one that holds most of it, if
  // that keeps at least half of what is there. Else the one used longest ago: the common beginnings of strangers, such as
  // a system prompt, it takes from the others (Session::share), whose conversations stay.
  Slot& slot_for(const Job& job) {
    Slot* own = nullptr;
    int64_t own_kept = 0;
    Slot* oldest = nullptr;
    for (const auto& s : slots) {
      if (s->state != Slot::State::kIdle) continue;
      const generate::Session& session = s->pipeline->session();
      const int64_t kept = session.cached_prefix(job.request.prompt);
      if (kept > own_kept && 2 * kept >= session.reusable_tokens()) own = s.get(), own_kept = kept;
      if (!oldest || s->last_used < oldest->last_used) oldest = s.get();
    }
    return own ? *own : *oldest;
  }

  void admit(Slot& s, std::shared_ptr<Job> job) {
    s.begun = false;
    s.unread = false;
    s.encodes = false;
    s.slice_ms[0] = s.slice_ms[1] = 0;
    s.units[0] = s.units[1] = 0;
    s.phase = Phase::kPrefill;
    const generate::Prompt& prompt = job->request.prompt;
    const int64_t cached = s.pipeline->session().cached_prefix(prompt);
    double patches = 0;
    const std::vector<bool> needed = s.pipeline->session().visuals_needed(prompt, cached);
    for (size_t i = 0; i < needed.size(); ++i) {
      if (needed[i] && !memory->find(prompt.visuals[i].key)) patches += static_cast<double>(prompt.visuals[i].grid.patches());
    }
    s.encodes = patches > 0;
    s.left_ms = patches * patch_rate.ms_per_unit() +
                static_cast<double>(static_cast<int64_t>(prompt.ids.size()) - cached) * token_rate.ms_per_unit();
    s.kv_reserved = kv_need(*job);
    s.job = std::move(job);
    s.state = Slot::State::kReading;
  }

  // True: its pictures are being encoded for another already.
  bool waits_for_picture(const Slot& s, const std::vector<Slot*>& readers) const {
    if (s.begun || !s.encodes) return false;
    for (const Slot* other : readers) {
      if (other == &s || !other->begun || !other->encodes) continue;
      for (const generate::PromptVisual& theirs : other->job->request.prompt.visuals) {
        for (const generate::PromptVisual& mine : s.job->request.prompt.visuals) {
          if (mine.key == theirs.key) return true;
        }
      }
    }
    return false;
  }

  Slot* next_reader(const std::vector<Slot*>& readers) const {
    Slot* best = nullptr;
    std::pair<int64_t, double> best_rank;
    for (Slot* s : readers) {
      if (s->job->ended_early()) return s;  // ends at once
      if (waits_for_picture(*s, readers)) continue;
      const std::pair<int64_t, double> rank{s->job->request.priority, s->left_ms - kAging * ms_since(s->job->submitted)};
      if (!best || rank < best_rank) best = s, best_rank = rank;
    }
    return best;
  }

  void read_slice(Slot& s) {
    const auto start = Clock::now();
    s.begun = true;
    s.go.release();
    s.back.acquire();
    const double ms = ms_since(start);
    s.kv_now = kv_bytes(s);
    s.slice_ms[static_cast<int>(s.phase)] += ms;
    reading_ms += ms;
    if (s.answering || s.error) end_reading(s);
  }

  void end_reading(Slot& s) {
    if (s.answering) {
      patch_rate.add(s.slice_ms[0], static_cast<double>(s.units[0]));
      token_rate.add(s.slice_ms[1], static_cast<double>(s.units[1]));
    }
    {
      std::lock_guard lock(mutex);
      s.job->read = true;
    }
    if (s.error || s.answering->done()) {
      begin_finish(s);
    } else {
      s.state = Slot::State::kWriting;
    }
  }

  void begin_finish(Slot& s) {
    s.settled = false;
    s.state = Slot::State::kFinishing;
    s.go.release();
  }

  // One token, or several that were guessed, for every answer being written.
  void write_step(std::vector<Slot*> writers) {
    const auto start = Clock::now();
    std::vector<Slot*> live;
    for (Slot* s : writers) {
      if (s->job->ended_early()) {
        s->answering->generation()->cancel();
        begin_finish(*s);
      } else {
        live.push_back(s);
      }
    }
    const size_t most = static_cast<size_t>(engine::kMaxDecodeRows);
    if (live.size() > most) {
      std::rotate(live.begin(), live.begin() + static_cast<ptrdiff_t>(first_writer % live.size()), live.end());
      first_writer += most;
      live.resize(most);
    }
    if (live.empty()) return;
    const int64_t rows = step(live);
    for (Slot* s : live) {
      if (s->state != Slot::State::kWriting) continue;
      s->kv_now = kv_bytes(*s);
      if (s->answering->done()) begin_finish(*s);
    }
    writing_ms += ms_since(start);
    std::lock_guard lock(mutex);
    ++counters.decode_steps;
    counters.decode_rows += rows;
  }

  // The rows that were computed. What fails for several is tried for each alone, so that one broken answer does not take
  // the others with it.
  int64_t step(const std::vector<Slot*>& live) {
    std::vector<generate::Generation*> generations;
    for (Slot* s : live) generations.push_back(s->answering->generation());
    std::exception_ptr error;
    try {
      return generate::decode_step(*engine, generations).rows;
    } catch (...) {
      error = std::current_exception();
    }
    // Behind the catch block: the slot's thread, which describes the error, then holds the last reference to it.
    if (live.size() == 1) {
      live[0]->error = std::move(error);
      begin_finish(*live[0]);
      return 0;
    }
    int64_t rows = 0;
    for (Slot* s : live) {
      if (!s->answering->done()) rows += step({s});
    }
    return rows;
  }

  void main() {
    for (;;) {
      std::vector<std::shared_ptr<Job>> ended;
      {
        std::unique_lock lock(mutex);
        const auto busy = [&] { return count(Slot::State::kReading) + count(Slot::State::kWriting) > 0; };
        for (;;) {
          ended = take_ended();
          check_deadlines();
          while (admit_next()) {
          }
          if (!ended.empty() || busy() || (quit && waiting_count == 0)) break;
          Slot* const unread = waiting_count == 0 && !stopping ? unread_slot() : nullptr;
          if (unread) {
            read_ahead(*unread, lock);
          } else {
            wait_for_work(lock);
          }
        }
        if (quit && waiting_count == 0 && !busy() && count(Slot::State::kFinishing) == 0 && ended.empty()) return;
        alone = count(Slot::State::kReading) == 1 && count(Slot::State::kWriting) == 0 && waiting_count == 0 && !stopping;
      }
      for (const auto& job : ended) {
        Failure failure;
        explain_early_end(*job, failure);
        job->read = true;
        job->request.sink->failed(std::move(failure));
      }
      if (!ended.empty()) all_ended.notify_all();
      compute();
    }
  }

  void check_deadlines() {
    const auto now = Clock::now();
    for (const auto& s : slots) {
      if (s->job && s->state != Slot::State::kFinishing && now >= s->job->request.deadline) {
        s->job->timed_out = true;
        s->job->cancel = true;
      }
    }
  }

  // Of the timelines at rest that have an answer to read, the one used last: its client is the likeliest to go on.
  Slot* unread_slot() const {
    Slot* best = nullptr;
    for (const auto& s : slots) {
      if (s->state != Slot::State::kIdle || !s->unread) continue;
      if (!best || s->last_used > best->last_used) best = s.get();
    }
    return best;
  }

  // Without the lock, which is held again afterwards. Whoever comes with work ends it (wake_up).
  void read_ahead(Slot& s, std::unique_lock<std::mutex>& lock) {
    const auto start = Clock::now();
    alone = true;
    lock.unlock();
    try {
      s.pipeline->read_ahead(generate::kReadAheadTokens, [this](int64_t, int64_t) { return alone.load(std::memory_order_relaxed); });
    } catch (...) {
      // The turn that needs it will compute it, and say so if it cannot.
      const Failure failure = describe(std::current_exception());
      if (failure.code != ErrorCode::kCancelled) log_message(LogLevel::kWarning, cat("[serve] reading ahead: ", failure.message));
    }
    s.unread = s.pipeline->has_unread();
    s.kv_now = kv_bytes(s);
    lock.lock();
    counters.busy_s += seconds_since(start);
  }

  void wait_for_work(std::unique_lock<std::mutex>& lock) {
    auto until = Clock::time_point::max();
    for (const auto& [client, line] : waiting) {
      for (const auto& job : line) until = std::min(until, job->request.deadline);
    }
    if (until == Clock::time_point::max()) {
      wake.wait(lock);
    } else {
      wake.wait_until(lock, until);
    }
  }

  void compute() {
    const std::vector<Slot*> readers = in_state(Slot::State::kReading);
    const std::vector<Slot*> writers = in_state(Slot::State::kWriting);
    if (readers.empty() && writers.empty()) return;
    const auto start = Clock::now();
    if (readers.empty() || writers.empty()) reading_ms = writing_ms = 0;
    const bool write = !writers.empty() &&
                       (readers.empty() || writing_ms * (1 - options.decode_share) <= reading_ms * options.decode_share);
    if (write) {
      write_step(writers);
    } else if (Slot* s = next_reader(readers)) {
      read_slice(*s);
    }
    std::lock_guard lock(mutex);
    counters.busy_s += seconds_since(start);
  }
};

void Scheduler::Ticket::cancel() const {
  const std::shared_ptr<Job> job = job_.lock();
  if (!job) return;
  job->cancel = true;
  if (job->owner) job->owner->wake_up();
}

Scheduler::Scheduler(std::shared_ptr<const engine::Engine> engine, std::shared_ptr<const generate::Assets> assets,
                     std::shared_ptr<generate::ImageMemory> memory, std::shared_ptr<generate::DiskMemory> disk,
                     const SchedulerOptions& options) {
  if (options.slots < 1 || options.slots > 64) fail(ErrorCode::kInvalidArgument, "serve", "slots", "1 to 64", cat(options.slots));
  if (options.queue_limit < 0) fail(ErrorCode::kInvalidArgument, "serve", "queue limit", "0 or more", cat(options.queue_limit));
  if (!(options.decode_share > 0 && options.decode_share < 1))
    fail(ErrorCode::kInvalidArgument, "serve", "decode share", "above 0 and below 1", cat(options.decode_share));
  impl_ = std::make_unique<Impl>(std::move(engine), std::move(assets), std::move(memory), std::move(disk), options);
}

Scheduler::~Scheduler() {
  stop(std::chrono::milliseconds(0));
  {
    std::lock_guard lock(impl_->mutex);
    impl_->quit = true;
  }
  impl_->wake_up();
  impl_->thread.join();
  for (auto& s : impl_->slots) {
    s->quit = true;
    s->go.release();
    s->thread.join();
  }
}

generate::Pipeline& Scheduler::loader() { return impl_->loader; }

Scheduler::Ticket Scheduler::submit(Request request, const Ticket& after) {
  auto job = std::make_shared<Job>();
  impl_->loader.session().check_context(request.prompt);
  if (impl_->options.kv_limit_bytes > 0) {
    const int64_t tokens = static_cast<int64_t>(request.prompt.ids.size()) + request.options.max_tokens;
    if (tokens * impl_->kv_bytes_per_token > impl_->options.kv_limit_bytes) {
      fail(ErrorCode::kLimit, "serve", "prompt and max_tokens",
           cat("at most ", impl_->options.kv_limit_bytes / impl_->kv_bytes_per_token, " tokens (memory for keys and values)"),
           cat(tokens), "fewer max_tokens, or smaller images");
    }
  }
  job->request = std::move(request);
  job->submitted = Clock::now();
  job->owner = impl_.get();
  job->after = after.job_.lock();
  {
    std::lock_guard lock(impl_->mutex);
    if (impl_->stopping) fail(ErrorCode::kCancelled, "serve", "the server stops");
    if (impl_->waiting_count >= impl_->options.queue_limit + impl_->count(Slot::State::kIdle)) {
      const double s = impl_->mean_service_ms / 1e3 * static_cast<double>(impl_->waiting_count + 1) / static_cast<double>(impl_->slots.size());
      throw QueueFull(cat("[serve] queue: expected fewer than ", impl_->options.queue_limit, " waiting requests, got ", impl_->waiting_count), std::max(1.0, s));
    }
    std::deque<std::shared_ptr<Job>>& line = impl_->waiting[job->request.client];
    line.insert(std::upper_bound(line.begin(), line.end(), job->request.priority,
                                 [](int64_t priority, const auto& other) { return priority < other->request.priority; }),
                job);
    ++impl_->waiting_count;
  }
  impl_->wake_up();
  Ticket ticket;
  ticket.job_ = job;
  return ticket;
}

Scheduler::Load Scheduler::load() const {
  std::lock_guard lock(impl_->mutex);
  Load out = impl_->counters;
  out.waiting = impl_->waiting_count;
  out.slots = static_cast<int64_t>(impl_->slots.size());
  for (const auto& s : impl_->slots) {
    out.reading += s->state == Slot::State::kReading;
    out.writing += s->state == Slot::State::kWriting;
    out.kv_bytes += s->kv_now;
    out.unread += s->unread;
  }
  return out;
}

void Scheduler::stop(std::chrono::milliseconds grace) {
  Impl& impl = *impl_;
  std::unique_lock lock(impl.mutex);
  impl.stopping = true;
  for (auto& [client, line] : impl.waiting) {
    for (auto& job : line) job->shut_down = true, job->cancel = true;
  }
  impl.alone = false;
  impl.wake.notify_one();
  const auto idle = [&] {
    return impl.waiting_count == 0 && impl.count(Slot::State::kIdle) == static_cast<ptrdiff_t>(impl.slots.size());
  };
  if (impl.all_ended.wait_for(lock, grace, idle)) return;
  for (auto& s : impl.slots) {
    if (s->job) s->job->shut_down = true, s->job->cancel = true;
  }
  impl.alone = false;
  impl.wake.notify_one();
  impl.all_ended.wait(lock, idle);
}

}  // namespace qvl::serve
