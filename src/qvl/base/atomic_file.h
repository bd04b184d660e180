// Writes a file under a temporary name in the target's folder and renames it when it is complete and flushed:
// an interrupted write leaves the old file as it was and nothing that looks finished.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace qvl {

class AtomicFile {
 public:
  // Creates the temporary file; throws kIo. The target's folder must exist.
  explicit AtomicFile(const std::filesystem::path& target);
  // Removes the temporary file unless commit() was called.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  size_t written_bytes() const { return written_bytes_; }

  // Flushes to the disk and renames over the target; throws kIo and leaves the old target on failure.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  size_t written_bytes_ = 0;
};

}  // namespace qvl
