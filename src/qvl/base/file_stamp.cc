#include "qvl/base/file_stamp.h"

#include <link.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <string_view>
#include <vector>

#include "qvl/base/format.h"
#include "qvl/base/sha256.h"

namespace qvl {
namespace {

int add_object(dl_phdr_info* info, size_t, void* data) {
  std::string name = info->dlpi_name ? info->dlpi_name : "";
  if (name.empty()) name = "/proc/self/exe";  // the program itself has no name here
  struct stat status {};
  // The kernel's own object is no file.
  if (name.starts_with('/') && ::stat(name.c_str(), &status) == 0)
    static_cast<std::vector<std::string>*>(data)->push_back(cat(name, " ", file_stamp(status), "\n"));
  return 0;
}

// The first processor's description without what changes from one moment to the next.
std::string processor_description() {
  constexpr std::array<std::string_view, 11> kStable = {
      "vendor_id",    "cpu family",       "model",       "stepping",    "flags",       "Features",
      "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"};
  std::ifstream in("/proc/cpuinfo");
  std::string out;
  for (std::string line; std::getline(in, line) && !line.empty();) {
    std::string key = line.substr(0, line.find(':'));
    key.erase(key.find_last_not_of(" \t") + 1);
    if (std::find(kStable.begin(), kStable.end(), key) != kStable.end()) out += line + "\n";
  }
  return out;
}

}  // namespace

std::string file_stamp(const struct stat& status) {
  return cat(status.st_size, " ", status.st_mtim.tv_sec, ".", status.st_mtim.tv_nsec, " ", status.st_ctim.tv_sec, ".",
             status.st_ctim.tv_nsec);
}

std::string program_stamp() {
  std::vector<std::string> objects;
  ::dl_iterate_phdr(add_object, &objects);
  std::sort(objects.begin(), objects.end());
  Sha256 hash;
  for (const std::string& object : objects) hash.add(object);
  hash.add(processor_description());
  return hash.finish();
}

}  // namespace qvl
