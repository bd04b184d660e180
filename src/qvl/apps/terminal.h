// What a command needs of the terminal and the process: writing the answer, a progress bar, Ctrl-C, peak
// memory.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace qvl::apps {

// Writes to stdout and flushes. A reader that went away ends the process quietly; any other failure throws
// kIo.
void write_stdout(std::string_view text);

bool stderr_is_terminal();
bool stdin_is_terminal();

// Peak resident memory of this process in MiB.
double peak_rss_mb();

// The folder that holds this executable.
std::string executable_folder();

// From here on the first Ctrl-C sets interrupt_flag() and the second one ends the process.
void catch_interrupts();
std::atomic<bool>& interrupt_flag();

// One line on a terminal's stderr, shown once a phase has lasted half a second and wiped when it ends. Silent
// when stderr is no terminal.
class ProgressBar {
 public:
  ProgressBar() = default;
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // A change of `label` starts a new phase. `unit` is appended to the numbers ("patches", "tokens"; empty:
  // bytes).
  void update(std::string_view label, int64_t done, int64_t total, std::string_view unit);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  Clock::time_point start_{};
  Clock::time_point drawn_{};
  bool visible_ = false;
};

}  // namespace qvl::apps
