#include "qvl/base/pages_ahead.h"

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <utility>

namespace qvl {
namespace {

// What Linux maps around a page that is touched, from a multiple of it on.
constexpr uintptr_t kFaultBytes = 65536;

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

// By touching, not with MADV_POPULATE_READ, which costs as much and locks the address space against whoever allocates meanwhile.
void PagesAhead::map_all() {
  for (const std::span<const std::byte> range : ranges_) {
    const auto begin = reinterpret_cast<uintptr_t>(range.data()), end = begin + range.size();
    for (uintptr_t at = begin; at < end;) {
      if (stopping_) return;
      (void)*reinterpret_cast<const volatile std::byte*>(at);
      const uintptr_t next = std::min(end, (at / kFaultBytes + 1) * kFaultBytes);
      mapped_bytes_ += next - at;
      at = next;
    }
  }
}

}  // namespace qvl
