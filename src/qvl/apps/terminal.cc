#include "qvl/apps/terminal.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::apps {
namespace {

std::atomic<bool> g_interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_interrupt(int) {
  if (g_interrupted.exchange(true)) {
    signal(SIGINT, SIG_DFL);
    raise(SIGINT);
  }
}

int terminal_columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string amount(int64_t done, int64_t total, std::string_view unit) {
  if (!unit.empty()) return fmt::format("{}/{} {}", done, total, unit);
  return fmt::format("{:.1f}/{:.1f} GB", static_cast<double>(done) * 1e-9, static_cast<double>(total) * 1e-9);
}

}  // namespace

void write_stdout(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(STDOUT_FILENO, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EPIPE) {
      _exit(128 + SIGPIPE);  // what the shell reports when the signal is not ignored
    } else if (errno != EINTR) {
      fail_errno("stdout", "cannot write");
    }
  }
}

bool stderr_is_terminal() {
  return isatty(STDERR_FILENO) == 1;
}
bool stdin_is_terminal() {
  return isatty(STDIN_FILENO) == 1;
}

double peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

std::string executable_folder() {
  std::error_code ec;
  return std::filesystem::read_symlink("/proc/self/exe", ec).parent_path().string();
}

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // no SA_RESTART: a read that waits for the user must return
  sigaction(SIGINT, &action, nullptr);
}

std::atomic<bool>& interrupt_flag() {
  return g_interrupted;
}

void ProgressBar::update(std::string_view label, int64_t done, int64_t total, std::string_view unit) {
  if (!stderr_is_terminal()) return;
  const auto now = Clock::now();
  if (label != label_) {
    clear();
    label_ = label;
    start_ = now;
  }
  using std::chrono::milliseconds;
  if (now - start_ < milliseconds(500) || (visible_ && now - drawn_ < milliseconds(80))) return;
  drawn_ = now;
  const double part =
      total > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0) : 0.0;
  const double elapsed_s = std::chrono::duration<double>(now - start_).count();
  std::string tail = fmt::format(" {:3.0f} %  {}", 100 * part, amount(done, total, unit));
  if (part > 0.02) tail += fmt::format("  {:.0f} s left", elapsed_s / part - elapsed_s);
  const int room =
      terminal_columns() - 1 - static_cast<int>(label.size()) - 3 - static_cast<int>(tail.size());
  std::string line(label);
  if (const int cells = std::min(room, 40); cells >= 8) {
    const int full = static_cast<int>(part * cells);
    line += " [" + std::string(static_cast<size_t>(full), '#') +
            std::string(static_cast<size_t>(cells - full), '.') + "]";
  }
  line += tail;
  line.resize(std::min<size_t>(line.size(), static_cast<size_t>(std::max(terminal_columns() - 1, 1))));
  fmt::print(stderr, "\r{}\x1b[K", line);
  std::fflush(stderr);
  visible_ = true;
}

void ProgressBar::clear() {
  label_.clear();
  if (!visible_) return;
  visible_ = false;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
}

}  // namespace qvl::apps
