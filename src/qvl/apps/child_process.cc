#include "qvl/apps/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"

extern char** environ;

namespace qvl::apps {
namespace {

// The last line of stderr without the program's name.
std::string last_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const size_t start = text.rfind('\n');
  if (start != text.npos) text = text.substr(start + 1);
  return text.starts_with("qvl: ") ? text.substr(5) : text;
}

}  // namespace

std::string child_error(const ChildResult& result) {
  const std::string line = last_line(result.err);
  if (result.exit_code > 128)
    return fmt::format("ended by signal {}{}", result.exit_code - 128, line.empty() ? "" : ": " + line);
  return line.empty() ? fmt::format("exit code {} without a message", result.exit_code) : line;
}


ChildResult run_self(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                     const std::function<void()>& waiting) {
  const std::string out = (folder / "child.out").string(), err = (folder / "child.err").string();
  std::vector<std::string> words = {"qvl"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  pid_t child = 0;
  errno = posix_spawn(&child, "/proc/self/exe", &files, nullptr, argv.data(), environ);
  const int spawned = errno;
  posix_spawn_file_actions_destroy(&files);
  if (spawned != 0) {
    errno = spawned;
    fail_errno("qvl", "cannot start itself");
  }
  int status = 0;
  // Ctrl-C reaches the child as well; it is waited for all the same.
  constexpr timespec kTick{.tv_sec = 0, .tv_nsec = 100'000'000};
  for (;;) {
    const pid_t ended = waitpid(child, &status, waiting ? WNOHANG : 0);
    if (ended == child) break;
    if (ended < 0 && errno != EINTR) fail_errno("qvl", "waiting for a child");
    if (ended == 0) {
      waiting();
      nanosleep(&kTick, nullptr);
    }
  }
  constexpr size_t kMostBytes = size_t{64} << 20;
  return {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), read_file(out, kMostBytes),
          read_file(err, kMostBytes)};
}

void end_with_parent() {
  const pid_t parent = getppid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) raise(SIGKILL);  // it went before the line above
}

double peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtod(line.c_str() + 6, nullptr) * 1024;
  }
  fail(ErrorCode::kIo, "/proc/self/status", "peak memory", "a line VmHWM", "none");
}

ResidentMemory resident_memory(const std::filesystem::path& folder) {
  std::error_code ec;
  const std::string inside = (std::filesystem::weakly_canonical(folder, ec) / "").string();
  std::ifstream maps("/proc/self/smaps");
  ResidentMemory out;
  bool any = false, in_folder = false;
  for (std::string line; std::getline(maps, line);) {
    // "7f00-7f01 r--p 00000000 fe:00 12  /path", then lines "Name:  N kB".
    const size_t colon = line.find(':');
    if (line.find('-') < line.find(' ') && (colon == line.npos || colon > line.find(' '))) {
      const size_t path = line.find('/');
      in_folder = path != line.npos && line.compare(path, inside.size(), inside) == 0;
    } else if (line.starts_with("Rss:")) {
      any = true;
      (in_folder ? out.inside_bytes : out.outside_bytes) += std::strtoll(line.c_str() + 4, nullptr, 10) * 1024;
    }
  }
  if (!any) fail(ErrorCode::kIo, "/proc/self/smaps", "memory of this process", "lines Rss", "none");
  return out;
}

}  // namespace qvl::apps
