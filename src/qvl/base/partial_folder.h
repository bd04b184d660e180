// A folder that is written under a temporary name beside its target and renamed when it is complete and
// flushed: an interrupted command leaves nothing that looks finished, and what was there before stays as it
// was. A command that was killed cannot clean up behind itself, so the next one for the same target does.
#pragma once

#include <filesystem>

namespace qvl {

enum class ExistingFolder {
  kRefuse,   // a target that exists is an error
  kReplace,  // it is swapped for the new one in one step, then removed
};

class PartialFolder {
 public:
  // What the constructor refuses, before any work is done for the folder: kInvalidArgument (no name, or it
  // exists and is not to be replaced, or it is no folder), kNotFound (no parent folder).
  static void check_target(const std::filesystem::path& target, ExistingFolder existing);

  // A trailing slash of `target` is ignored. Removes what killed processes left behind for the same target;
  // those that still run are left alone. Throws what check_target() throws, and kIo.
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
  void create();
  void rename_into_place();
  void unlock();

  std::filesystem::path target_;
  std::filesystem::path path_;
  ExistingFolder existing_;
  bool there_ = false;
  int lock_ = -1;  // the open folder, locked: its owner lives
};

}  // namespace qvl
