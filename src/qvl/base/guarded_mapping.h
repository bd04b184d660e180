// A file mapped into memory for reading that others may change or cut short meanwhile: what is gone reads as zeros instead of
// ending the process, and intact() tells. For files that are used in place but belong to nobody, such as entries of a cache.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <memory>
#include <span>

#include "qvl/base/file_descriptor.h"

namespace qvl {

// Thread-safe. The first one of a process takes over SIGBUS; signals that concern no mapping of this class go to whoever handled
// them before.
class GuardedMapping {
 public:
  // The whole file, which is kept open for as long as the mapping lives. Throws kIo, and kLimit when there is no room for it.
  static std::shared_ptr<const GuardedMapping> map(FileDescriptor file);

  GuardedMapping(const GuardedMapping&) = delete;
  GuardedMapping& operator=(const GuardedMapping&) = delete;
  ~GuardedMapping();

  // Valid while this object lives; aligned to a page.
  std::span<const std::byte> bytes() const { return {data_, size_bytes_}; }
  // False once the file was written to or cut short, or a page of it could not be read: what bytes() gave since the mapping was
  // made is then worth nothing. Asked after the bytes were used. A file that is removed or replaced stays intact.
  bool intact() const;

 private:
  struct Guard;

  explicit GuardedMapping(FileDescriptor file) : file_(std::move(file)) {}

  FileDescriptor file_;
  struct stat opened_ {};
  const std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
  Guard* guard_ = nullptr;
};

}  // namespace qvl
