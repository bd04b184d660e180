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

// Thread-safe. A hint: where the system has no thread to spare nothing happens.
class PagesAhead {
 public:
  // In the order in which they will be used. They can be read as long as this object lives: it does read a byte here and there.
  explicit PagesAhead(std::vector<std::span<const std::byte>> ranges);
  // As stop().
  ~PagesAhead();
  PagesAhead(const PagesAhead&) = delete;
  PagesAhead& operator=(const PagesAhead&) = delete;

  // Begins with the first range unless it is under way; returns at once.
  void start();
  // Ends it, if it is under way, once the page that it waits for is there.
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
