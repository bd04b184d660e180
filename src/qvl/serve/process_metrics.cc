#include <dirent.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

#include "qvl/serve/metrics.h"

namespace qvl::serve {

namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// Field `number` of /proc/self/stat as proc(5) counts them, from 3 on; the name in field 2 may hold blanks
// and brackets.
double stat_field(int number) {
  std::ifstream in("/proc/self/stat");
  std::string line;
  std::getline(in, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return kUnknown;
  std::istringstream fields(line.substr(name_end + 1));
  std::string field;
  for (int n = 3; n <= number; ++n) {
    if (!(fields >> field)) return kUnknown;
  }
  return std::strtod(field.c_str(), nullptr);
}

double boot_seconds() {
  std::ifstream in("/proc/stat");
  std::string key;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("btime ")) return std::strtod(line.c_str() + 6, nullptr);
  }
  return kUnknown;
}

double ticks_per_second() {
  return static_cast<double>(::sysconf(_SC_CLK_TCK));
}

double open_fds() {
  DIR* folder = ::opendir("/proc/self/fd");
  if (!folder) return kUnknown;
  double count = -1;  // the folder's own descriptor
  while (const dirent* entry = ::readdir(folder)) {
    if (entry->d_name[0] != '.') ++count;
  }
  ::closedir(folder);
  return count;
}

double max_fds() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return kUnknown;
  return limit.rlim_cur == RLIM_INFINITY ? std::numeric_limits<double>::infinity()
                                         : static_cast<double>(limit.rlim_cur);
}

double cpu_seconds() {
  timespec time{};
  if (::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) != 0) return kUnknown;
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

void add_process_metrics(Metrics& metrics) {
  using enum MetricType;
  metrics.callback(kGauge, "process_resident_memory_bytes", "Resident memory size in bytes.", {},
                   [] { return stat_field(24) * static_cast<double>(::sysconf(_SC_PAGESIZE)); });
  metrics.callback(kGauge, "process_virtual_memory_bytes", "Virtual memory size in bytes.", {},
                   [] { return stat_field(23); });
  metrics.callback(kGauge, "process_open_fds", "Number of open file descriptors.", {}, open_fds);
  metrics.callback(kGauge, "process_max_fds", "Maximum number of open file descriptors.", {}, max_fds);
  metrics.callback(kGauge, "process_threads", "Number of threads.", {}, [] { return stat_field(20); });
  const double start = boot_seconds() + stat_field(22) / ticks_per_second();
  metrics.callback(kGauge, "process_start_time_seconds",
                   "Start time of the process since unix epoch in seconds.", {}, [start] { return start; });
  metrics.callback(kCounter, "process_cpu_seconds_total", "Total user and system CPU time spent in seconds.",
                   {}, cpu_seconds);
}

}  // namespace qvl::serve
