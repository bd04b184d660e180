#include "process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <utility>

namespace qvl::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct Pipe {
  int read_end = -1;
  int write_end = -1;
  Pipe() {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) abort();
    read_end = fds[0], write_end = fds[1];
  }
};

void close_fd(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

// False at the end of the stream.
bool drain(int fd, std::string& to) {
  std::array<char, 4096> buffer;
  const ssize_t n = read(fd, buffer.data(), buffer.size());
  if (n > 0) to.append(buffer.data(), static_cast<size_t>(n));
  return n > 0 || (n < 0 && errno == EINTR);
}

}  // namespace

Outcome qvl(const std::vector<std::string>& arguments, const RunOptions& options) {
  const std::string binary = QVL_BINARY_DIR "/qvl";
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);

  Pipe in, out, err;
  if (options.terminal_stderr) {
    close_fd(err.read_end);
    close_fd(err.write_end);
    winsize size{.ws_row = 24, .ws_col = 80, .ws_xpixel = 0, .ws_ypixel = 0};
    if (openpty(&err.read_end, &err.write_end, nullptr, nullptr, &size) != 0) {
      std::perror("no pseudo-terminal for the test (is /dev/pts mounted?)");
      abort();
    }
    fcntl(err.read_end, F_SETFD, FD_CLOEXEC);
  }
  const auto start = Clock::now();
  const pid_t child = fork();
  if (child == 0) {
    dup2(in.read_end, STDIN_FILENO);
    dup2(out.write_end, STDOUT_FILENO);
    dup2(err.write_end, STDERR_FILENO);
    setenv("QVL_IMAGE_MEMORY", "off", 1);  // tests neither find nor leave anything in the user's folder
    for (const std::string& e : options.environment) putenv(const_cast<char*>(e.c_str()));
    signal(SIGPIPE, SIG_DFL);
    if (options.in_child) options.in_child();
    execv(binary.c_str(), argv.data());
    _exit(127);
  }
  close_fd(in.read_end);
  close_fd(out.write_end);
  close_fd(err.write_end);

  signal(SIGPIPE, SIG_IGN);  // the child may not want its input
  size_t sent = 0;
  std::string input = options.input, later = options.later_input;
  std::optional<Clock::time_point> first_line;
  Outcome outcome;
  bool interrupted = false;
  for (;;) {
    const double elapsed_s = std::chrono::duration<double>(Clock::now() - start).count();
    if (elapsed_s > options.timeout_s) {
      ADD_FAILURE() << "qvl did not end in " << options.timeout_s << " s; stderr: " << outcome.err;
      kill(child, SIGKILL);
      break;
    }
    std::vector<pollfd> fds;
    if (out.read_end >= 0) fds.push_back({out.read_end, POLLIN, 0});
    if (err.read_end >= 0) fds.push_back({err.read_end, POLLIN, 0});
    if (!later.empty()) {
      if (!first_line && outcome.out.find('\n') != std::string::npos) first_line = Clock::now();
      if (first_line && std::chrono::duration<double>(Clock::now() - *first_line).count() >= options.later_s)
        input += std::exchange(later, {});
    }
    if (in.write_end >= 0 && sent < input.size()) fds.push_back({in.write_end, POLLOUT, 0});
    if (in.write_end >= 0 && sent >= input.size() && later.empty()) close_fd(in.write_end);
    if (out.read_end < 0 && err.read_end < 0) break;
    if (options.signal_when && !outcome.signalled && options.signal_when()) {
      outcome.signalled = kill(child, options.signal) == 0;
    }
    poll(fds.data(), fds.size(), options.signal_when && !outcome.signalled ? 1 : later.empty() ? 200 : 5);
    for (const pollfd& p : fds) {
      if (p.revents == 0) continue;
      if (p.fd == in.write_end) {
        const ssize_t n = write(in.write_end, input.data() + sent, input.size() - sent);
        if (n > 0) sent += static_cast<size_t>(n);
        if (n < 0 && errno != EINTR) close_fd(in.write_end);
      } else if (p.fd == out.read_end) {
        if (!drain(out.read_end, outcome.out)) close_fd(out.read_end);
        if (options.close_stdout_early) close_fd(out.read_end);
      } else if (p.fd == err.read_end) {
        if (!drain(err.read_end, outcome.err)) close_fd(err.read_end);
      }
    }
    if (!interrupted && options.interrupt_after_bytes >= 0 &&
        static_cast<int>(outcome.out.size()) >= options.interrupt_after_bytes) {
      for (int i = 0; i < options.interrupts; ++i) {
        kill(child, SIGINT);
        usleep(20000);
      }
      interrupted = true;
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  close_fd(in.write_end);
  close_fd(out.read_end);
  close_fd(err.read_end);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  outcome.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return outcome;
}

}  // namespace qvl::cli
