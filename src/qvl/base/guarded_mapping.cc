#include "qvl/base/guarded_mapping.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>

#include "qvl/base/error.h"

namespace qvl {

// What the signal handler may look at: entries of a list that only grows, taken anew by later mappings.
struct GuardedMapping::Guard {
  std::atomic<uintptr_t> begin{0};  // 0: free
  std::atomic<size_t> size_bytes{0};
  std::atomic<bool> lost{false};
  Guard* next = nullptr;

  static std::atomic<Guard*> first;
  static std::mutex mutex;  // of whoever takes and frees
  static struct sigaction before;
  static uintptr_t page_bytes;

  static Guard* take(uintptr_t begin, size_t size_bytes);
  static void install();
  static void on_signal(int signal, siginfo_t* info, void* context);
};

std::atomic<GuardedMapping::Guard*> GuardedMapping::Guard::first{nullptr};
std::mutex GuardedMapping::Guard::mutex;
struct sigaction GuardedMapping::Guard::before {};
uintptr_t GuardedMapping::Guard::page_bytes = 4096;

// The page that was touched and all behind it are replaced by zeros: a file that was cut short has lost those too. Then the
// instruction is tried again.
void GuardedMapping::Guard::on_signal(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Guard* g = info->si_code == BUS_ADRERR ? first.load(std::memory_order_acquire) : nullptr; g; g = g->next) {
    const uintptr_t begin = g->begin.load(std::memory_order_acquire);
    const size_t size = g->size_bytes.load(std::memory_order_acquire);
    if (begin == 0 || at < begin || at - begin >= size) continue;
    const uintptr_t page = at / page_bytes * page_bytes;
    g->lost.store(true, std::memory_order_release);
    // The system call itself: what wraps it, as sanitizers do, is not made for signals.
    if (::syscall(SYS_mmap, page, begin + size - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == -1) break;
    errno = error;
    return;
  }
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    ::sigaction(SIGBUS, &before, nullptr);  // the instruction fails again, and ends the process
  }
  errno = error;
}

void GuardedMapping::Guard::install() {
  page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = &on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &before);
}

GuardedMapping::Guard* GuardedMapping::Guard::take(uintptr_t begin, size_t size_bytes) {
  static std::once_flag installed;
  std::call_once(installed, &Guard::install);
  const std::scoped_lock lock(mutex);
  Guard* guard = first.load();
  while (guard && guard->begin.load() != 0) guard = guard->next;
  const bool fresh = guard == nullptr;
  if (fresh) {
    guard = new Guard;  // for as long as the process lives: a signal may look at it at any time
    guard->next = first.load();
  }
  guard->lost.store(false);
  guard->size_bytes.store(size_bytes);
  guard->begin.store(begin);
  if (fresh) first.store(guard);
  return guard;
}

std::shared_ptr<const GuardedMapping> GuardedMapping::map(FileDescriptor file) {
  std::shared_ptr<GuardedMapping> out(new GuardedMapping(std::move(file)));
  if (::fstat(out->file_.get(), &out->opened_) != 0) fail_errno("mapped file", "cannot stat");
  const auto size = static_cast<size_t>(out->opened_.st_size);
  if (size == 0) return out;
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, out->file_.get(), 0);
  if (p == MAP_FAILED && errno == ENOMEM) fail(ErrorCode::kLimit, "mapped file", "no room in the address space");
  if (p == MAP_FAILED) fail_errno("mapped file", "cannot map");
  out->data_ = static_cast<const std::byte*>(p);
  out->size_bytes_ = size;
  out->guard_ = Guard::take(reinterpret_cast<uintptr_t>(p), size);
  return out;
}

GuardedMapping::~GuardedMapping() {
  if (guard_) {
    const std::scoped_lock lock(Guard::mutex);
    guard_->begin.store(0);
  }
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_bytes_);
}

bool GuardedMapping::intact() const {
  struct stat now {};
  return (!guard_ || !guard_->lost.load(std::memory_order_acquire)) && ::fstat(file_.get(), &now) == 0 &&
         now.st_size == opened_.st_size && now.st_mtim.tv_sec == opened_.st_mtim.tv_sec &&
         now.st_mtim.tv_nsec == opened_.st_mtim.tv_nsec;
}

}  // namespace qvl
