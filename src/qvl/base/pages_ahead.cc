#include "qvl/base/pages_ahead.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

namespace qvl {
namespace {

// As Linux numbers it; older headers do not name it.
constexpr int kPopulateRead = 22;
// The address space is locked meanwhile against whoever maps or unmaps memory, about 0.2 ms for pages of 4 KiB.
constexpr size_t kPieceBytes = size_t{2} << 20;

bool map_pages(uintptr_t begin, uintptr_t end) {
  while (::madvise(reinterpret_cast<void*>(begin), end - begin, kPopulateRead) != 0) {
    if (errno != EINTR && errno != EAGAIN) return false;
  }
  return true;
}

}  // namespace

PagesAhead::PagesAhead(std::vector<std::span<const std::byte>> ranges) : ranges_(std::move(ranges)) {}

PagesAhead::~PagesAhead() {
  stop();
}

void PagesAhead::start() {
  const std::lock_guard lock(mutex_);
  if (started_) return;
  stopping_ = false;
  mapped_bytes_ = 0;
  try {
    thread_ = std::thread([this] { map_all(); });
  } catch (const std::system_error&) {
    return;  // no thread to spare
  }
  started_ = true;
}

void PagesAhead::stop() {
  if (!started_) return;
  stopping_ = true;
  join();
}

size_t PagesAhead::wait() {
  join();
  return mapped_bytes_;
}

void PagesAhead::join() {
  const std::lock_guard lock(mutex_);
  if (thread_.joinable()) thread_.join();
  started_ = false;
}

void PagesAhead::map_all() {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  for (const std::span<const std::byte> range : ranges_) {
    const auto begin = reinterpret_cast<uintptr_t>(range.data()), end = begin + range.size();
    for (uintptr_t at = begin; at < end;) {
      if (stopping_) return;
      // Pieces end at multiples of themselves, so that none parts a huge page.
      const uintptr_t next = std::min<uintptr_t>(end, (at / kPieceBytes + 1) * kPieceBytes);
      if (!map_pages(at / page * page, (next + page - 1) / page * page)) return;
      mapped_bytes_ += next - at;
      at = next;
    }
  }
}

}  // namespace qvl
