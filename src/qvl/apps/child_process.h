// Runs qvl itself as a child, so that what it needs of memory is its own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace qvl::apps {

struct ChildResult {
  int exit_code = 0;  // 128 + signal when a signal ended it
  std::string out;
  std::string err;
};

// argv[0] is this very program. stdout and stderr go through files in `folder`, which must exist. `waiting` is called
// ten times a second meanwhile. Throws kIo.
ChildResult run_self(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                     const std::function<void()>& waiting = {});

// In a child of run_self(): ends with its parent, however that ends, so that no measurement goes on for nobody.
void end_with_parent();

// Why a child failed: the last line of its stderr without the program's name, or the signal.
std::string child_error(const ChildResult& result);

// Peak resident memory of this process image in bytes. Unlike getrusage, it does not count what the parent
// had before exec.
double peak_memory_bytes();
// What is resident now: pages of mapped files in `folder`, and all others.
struct ResidentMemory {
  int64_t inside_bytes = 0;
  int64_t outside_bytes = 0;
};
// Throws kIo.
ResidentMemory resident_memory(const std::filesystem::path& folder);

}  // namespace qvl::apps
