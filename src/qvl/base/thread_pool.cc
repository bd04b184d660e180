#include "qvl/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "qvl/base/error.h"

namespace qvl {
namespace {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The cgroup v2 quota "MAX PERIOD" as whole processors, or a large number without one.
int cgroup_quota_processors() {
  std::ifstream in("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(in >> quota >> period) || quota == "max" || period <= 0) return 1 << 20;
  return std::max(1, static_cast<int>(std::stod(quota) / period + 0.5));
}

}  // namespace

int available_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int n = static_cast<int>(std::thread::hardware_concurrency());
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) n = CPU_COUNT(&set);
  return std::max(1, std::min(n, cgroup_quota_processors()));
}

int resolve_threads(int requested, std::string_view where) {
  if (requested < 0) {
    fail(ErrorCode::kInvalidArgument, where, "threads", "0 (all processors) or more", std::to_string(requested));
  }
  return requested > 0 ? requested : available_processors();
}

struct ThreadPool::Impl {
  // How long a worker looks for the next loop before it sleeps. Long enough to span the gap between two
  // operators of one step, short enough not to burn a core while the user types.
  static constexpr std::chrono::microseconds kSpin{200};

  std::mutex run_mutex;  // one loop at a time
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable finished;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> pending{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  bool caller_waits = false;
  const std::function<void(int)>* fn = nullptr;
  std::exception_ptr error;
  std::vector<std::thread> workers;

  void call(int thread) {
    try {
      (*fn)(thread);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  void worker(int thread) {
    uint64_t seen = 0;
    for (;;) {
      const auto give_up = std::chrono::steady_clock::now() + kSpin;
      while (generation.load(std::memory_order_acquire) == seen) {
        for (int i = 0; i < 64 && generation.load(std::memory_order_acquire) == seen; ++i) cpu_relax();
        if (generation.load(std::memory_order_acquire) != seen) break;
        if (std::chrono::steady_clock::now() > give_up) {
          std::unique_lock lock(mutex);
          sleepers.fetch_add(1);
          wake.wait(lock, [&] { return stop || generation.load() != seen; });
          sleepers.fetch_sub(1);
          if (stop) return;
        }
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;  // the destructor raises the generation too
      call(thread);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard lock(mutex);
        if (caller_waits) finished.notify_one();
      }
    }
  }

  void stop_and_join() {
    {
      std::lock_guard lock(mutex);
      stop.store(true, std::memory_order_release);
      generation.fetch_add(1);
    }
    wake.notify_all();
    for (std::thread& w : workers) w.join();
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()), threads_(threads) {
  if (threads < 1 || threads > kMaxThreads) {
    fail(ErrorCode::kInvalidArgument, "threads", "number of threads", "1 to " + std::to_string(kMaxThreads),
         std::to_string(threads));
  }
  for (int t = 1; t < threads; ++t) {
    try {
      impl_->workers.emplace_back([impl = impl_.get(), t] { impl->worker(t); });
    } catch (const std::system_error& e) {
      impl_->stop_and_join();
      fail(ErrorCode::kLimit, "threads", std::string("the system starts no more threads: ") + e.what(),
           std::to_string(threads), std::to_string(t), "a lower --threads");
    }
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop_and_join();
}

void ThreadPool::run(const std::function<void(int)>& fn) {
  if (threads_ == 1) {
    fn(0);
    return;
  }
  Impl& impl = *impl_;
  std::lock_guard run_lock(impl.run_mutex);
  {
    std::lock_guard lock(impl.mutex);
    impl.fn = &fn;
    impl.error = nullptr;
    impl.caller_waits = false;
    impl.pending.store(threads_ - 1, std::memory_order_relaxed);
    impl.generation.fetch_add(1, std::memory_order_release);
  }
  if (impl.sleepers.load() > 0) impl.wake.notify_all();
  impl.call(0);
  const auto give_up = std::chrono::steady_clock::now() + Impl::kSpin;
  while (impl.pending.load(std::memory_order_acquire) != 0) {
    for (int i = 0; i < 64 && impl.pending.load(std::memory_order_acquire) != 0; ++i) cpu_relax();
    if (std::chrono::steady_clock::now() > give_up) {
      std::unique_lock lock(impl.mutex);
      impl.caller_waits = true;
      impl.finished.wait(lock, [&] { return impl.pending.load() == 0; });
      break;
    }
  }
  std::exception_ptr error;
  {
    std::lock_guard lock(impl.mutex);
    error = impl.error;
    impl.error = nullptr;
    impl.fn = nullptr;
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::parallel_for(int64_t tasks, const std::function<void(int64_t, int)>& fn) {
  if (tasks <= 0) return;
  if (threads_ == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) fn(i, 0);
    return;
  }
  // Each thread walks through a range of its own, so that it reads neighbouring memory in address order, then helps
  // the others with what is left of theirs.
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Range> ranges(static_cast<size_t>(threads_));
  for (int64_t t = 0; t < threads_; ++t) {
    const auto start = [&](int64_t thread) {
      return tasks / threads_ * thread + std::min<int64_t>(thread, tasks % threads_);
    };
    ranges[static_cast<size_t>(t)].next.store(start(t), std::memory_order_relaxed);
    ranges[static_cast<size_t>(t)].end = start(t + 1);
  }
  run([&](int thread) {
    for (int i = 0; i < threads_; ++i) {
      Range& range = ranges[static_cast<size_t>((thread + i) % threads_)];
      for (;;) {
        const int64_t task = range.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= range.end) break;
        fn(task, thread);
      }
    }
  });
}

}  // namespace qvl
