// Maps the pages of mapped files ahead of their first use, on a thread of its own. The first touch of a page costs a fault, which
// brings 64 KiB where the page cache does not hold the file in huge pages: 230 ms of processor time for 2.6 GB, spent by
// whoever computes. A process that still has other things to do while a processor idles has them done meanwhile.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace qvl {

// Thread-safe. All of it is a hint: where the system cannot (before Linux 5.14), has no thread to spare or a page cannot be read,
// it ends early, and whoever reads there waits or fails as ever.
class PagesAhead {
 public:
  // In the order in which they will be used; they stay mapped while this object lives.
  explicit PagesAhead(std::vector<std::span<const std::byte>> ranges);
  // As stop().
  ~PagesAhead();
  PagesAhead(const PagesAhead&) = delete;
  PagesAhead& operator=(const PagesAhead&) = delete;

  // Begins with the first range unless it is under way; returns at once.
  void start();
  // Ends it, if it is under way, after the piece of at most 2 MiB that is being mapped.
  void stop();
  // Waits until it has ended; the bytes that were mapped since it began.
  size_t wait();

 private:
  void map_all();
  void join();

  std::vector<std::span<const std::byte>> ranges_;
  std::mutex mutex_;  // of thread_
  std::thread thread_;
  std::atomic<bool> started_ = false;  // there is a thread to join
  std::atomic<bool> stopping_ = false;
  std::atomic<size_t> mapped_bytes_ = 0;
};

}  // namespace qvl
