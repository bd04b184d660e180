// A read-only file mapped into memory. Weights are used in place from here, never copied.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "qvl/base/file_descriptor.h"

namespace qvl {

class MappedFile {
 public:
  // Throws kNotFound or kIo; an empty file maps to an empty span. Directories and devices are kIo.
  static MappedFile open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // Valid while this object lives.
  std::span<const std::byte> bytes() const { return {data_, size_bytes_}; }
  const std::filesystem::path& path() const { return path_; }
  // file_stamp() of the file as it was opened.
  const std::string& stamp() const { return stamp_; }

  // Copies a range of the file, past the mapping: touched pages of a mapping count as this process's memory, up to 2 MiB for a
  // few bytes. Throws kIo where the file cannot be read there (any more). Thread-safe.
  void read(size_t offset, std::span<std::byte> out) const;

  // Asks the system to read ahead / to drop the pages of a range (clipped to the file). Only hints.
  void will_need(size_t offset, size_t length_bytes) const;
  void drop(size_t offset, size_t length_bytes) const;

 private:
  explicit MappedFile(FileDescriptor file) : file_(std::move(file)) {}
  void advise(size_t offset, size_t length_bytes, int advice) const;

  FileDescriptor file_;
  std::filesystem::path path_;
  std::string stamp_;
  const std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
};

// The whole file as bytes; throws kLimit above `max_bytes`.
std::string read_file(const std::filesystem::path& path, size_t max_bytes);

}  // namespace qvl
