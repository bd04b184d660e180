// Runs the real qvl binary as a user does, with pipes or with a pseudo-terminal on stderr.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace qvl::cli {

struct Outcome {
  int exit_code = -1;  // 128 + signal when a signal ended it
  std::string out;
  std::string err;
  double seconds = 0;
  bool signalled = false;  // signal_when came true while it ran
};

struct RunOptions {
  std::string input;                // to stdin, then closed
  std::string later_input;          // likewise, `later_s` seconds after stdout got its first end of line
  double later_s = 0;
  bool terminal_stderr = false;     // stderr is an 80-column terminal
  bool close_stdout_early = false;  // the reader goes away after the first byte
  int interrupt_after_bytes = -1;   // SIGINT once stdout has this many bytes
  int interrupts = 1;
  std::function<bool()> signal_when;  // asked every millisecond; true: `signal` is sent, once
  int signal = 0;
  std::function<void()> in_child;        // runs in the child before the program starts
  std::vector<std::string> environment;  // "NAME=value", added to ours
  double timeout_s = 240;                // then SIGKILL and a failed expectation
};

// argv[0] is the qvl of this build.
Outcome qvl(const std::vector<std::string>& arguments, const RunOptions& options = {});

}  // namespace qvl::cli
