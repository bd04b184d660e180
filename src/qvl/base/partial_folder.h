// A folder that is written under a temporary name beside its target and renamed when it is complete and
// flushed: an interrupted command leaves nothing that looks finished, and what was there before stays as it
// was.
#pragma once

#include <filesystem>

namespace qvl {

enum class ExistingFolder {
  kRefuse,   // a target that exists is an error
  kReplace,  // it is swapped for the new one in one step, then removed
};

class PartialFolder {
 public:
  // A trailing slash of `target` is ignored. Throws kInvalidArgument (no name, or it exists and is not to be
  // replaced, or it is no folder), kNotFound (no parent folder), kIo.
  explicit PartialFolder(const std::filesystem::path& target,
                         ExistingFolder existing = ExistingFolder::kRefuse);
  // Removes the temporary folder unless publish() was called.
  ~PartialFolder();
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  // Where the files go.
  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& target() const { return target_; }

  // Flushes the folder's entries and renames it; never over something that appeared meanwhile. The files in
  // it must have been flushed (AtomicFile does that). Throws kIo and leaves the target as it was.
  void publish();

 private:
  std::filesystem::path target_;
  std::filesystem::path path_;
  ExistingFolder existing_;
  bool there_ = false;
};

}  // namespace qvl
