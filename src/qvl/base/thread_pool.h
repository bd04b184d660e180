// A fixed group of threads that run one parallel loop at a time. The caller is thread 0, so a pool of one
// runs everything inline. Waking costs a few microseconds: workers spin shortly before they sleep, because a
// decode step issues hundreds of loops in a row.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

namespace qvl {

// The number of processors this process may run on (affinity mask and cgroup CPU quota respected), at
// least 1.
int available_processors();

// `requested` threads, or for 0 all available_processors(). Throws kInvalidArgument for less than 0, naming `where`.
int resolve_threads(int requested, std::string_view where);

class ThreadPool {
 public:
  static constexpr int kMaxThreads = 4096;

  // 1 <= threads <= kMaxThreads, kInvalidArgument otherwise; throws kLimit when the system refuses to start
  // them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Runs fn(thread) once on each thread, 0 <= thread < threads(), and returns when all have. The first
  // exception thrown by any of them is rethrown here. Not reentrant: fn must not call into the same pool.
  // Concurrent callers are serialised.
  void run(const std::function<void(int thread)>& fn);

  // Runs fn(task, thread) for 0 <= task < tasks; tasks are handed out one by one in ascending order, so
  // uneven tasks balance. Which thread gets which task is not fixed: results must not depend on it.
  void parallel_for(int64_t tasks, const std::function<void(int64_t task, int thread)>& fn);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  int threads_;
};

}  // namespace qvl
