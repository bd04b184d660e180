// Runs qvl itself as a child, so that what it needs of memory is its own.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qvl::apps {

struct ChildResult {
  int exit_code = 0;  // 128 + signal when a signal ended it
  std::string out;
  std::string err;
};

// argv[0] is this very program. stdout and stderr go through files in `folder`, which must exist. Throws kIo.
ChildResult run_self(const std::vector<std::string>& arguments, const std::filesystem::path& folder);

// Peak resident memory of this process image in bytes. Unlike getrusage, it does not count what the parent
// had before exec.
double peak_memory_bytes();

}  // namespace qvl::apps
