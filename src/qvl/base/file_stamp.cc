#include "qvl/base/file_stamp.h"

#include <link.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <span>
#include <string_view>
#include <vector>

#include "qvl/base/format.h"
#include "qvl/base/sha256.h"

namespace qvl {
namespace {

// The identifier in a segment of notes, which the loader has mapped; empty when it is not there.
std::string_view build_id(std::string_view notes) {
  const auto align = [](size_t bytes) { return (bytes + 3) & ~size_t{3}; };
  constexpr std::string_view kOwner{"GNU\0", 4};
  while (notes.size() >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes.data(), sizeof note);
    const size_t name = align(note.n_namesz), contents = align(note.n_descsz);
    notes.remove_prefix(sizeof note);
    if (notes.size() < name + note.n_descsz) break;
    if (note.n_type == NT_GNU_BUILD_ID && notes.substr(0, note.n_namesz) == kOwner)
      return notes.substr(name, note.n_descsz);
    notes.remove_prefix(std::min(notes.size(), name + contents));
  }
  return {};
}

int add_object(dl_phdr_info* info, size_t, void* data) {
  auto& objects = *static_cast<std::vector<std::string>*>(data);
  std::string name = info->dlpi_name ? info->dlpi_name : "";
  if (name.empty()) name = "/proc/self/exe";  // the program itself has no name here
  if (!name.starts_with('/')) return 0;       // the kernel's own object
  for (const auto& segment : std::span(info->dlpi_phdr, info->dlpi_phnum)) {
    // Notes of 8 byte alignment are those of properties.
    if (segment.p_type != PT_NOTE || segment.p_align > 4) continue;
    const std::string_view id = build_id({reinterpret_cast<const char*>(info->dlpi_addr + segment.p_vaddr), segment.p_memsz});
    if (id.empty()) continue;
    objects.push_back(cat("build ", id, "\n"));
    return 0;
  }
  struct stat status {};
  if (::stat(name.c_str(), &status) == 0) objects.push_back(cat(name, " ", file_stamp(status), "\n"));
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
