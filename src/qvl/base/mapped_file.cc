#include "qvl/base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/file_stamp.h"

namespace qvl {
namespace {

FileDescriptor open_to_read(const std::filesystem::path& path) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) fail_errno(path.string(), "cannot open");
  return fd;
}

struct stat regular_file(const FileDescriptor& fd, const std::filesystem::path& path) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) fail_errno(path.string(), "cannot stat");
  if (!S_ISREG(st.st_mode)) fail(ErrorCode::kIo, path.string(), "not a regular file");
  return st;
}

// All of `out`, from `offset` on.
void read_range(const FileDescriptor& fd, const std::filesystem::path& path, size_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t n = ::pread(fd.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(path.string(), "cannot read");
    if (n == 0) fail(ErrorCode::kIo, path.string(), "file became shorter while it was read");
    out = out.subspan(static_cast<size_t>(n));
    offset += static_cast<size_t>(n);
  }
}

}  // namespace

MappedFile MappedFile::open(const std::filesystem::path& path) {
  MappedFile file(open_to_read(path));
  const FileDescriptor& fd = file.file_;
  file.path_ = path;
  const struct stat status = regular_file(fd, path);
  file.stamp_ = file_stamp(status);
  file.size_bytes_ = static_cast<size_t>(status.st_size);
  if (file.size_bytes_ == 0) return file;
  void* p = ::mmap(nullptr, file.size_bytes_, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (p == MAP_FAILED) {
    file.size_bytes_ = 0;
    fail_errno(path.string(), "cannot map");
  }
  file.data_ = static_cast<const std::byte*>(p);
  // Large pages: faults then read 2 MiB at a time and a pass over the weights misses the TLB less. Only a
  // hint; file systems without large folios refuse it.
  ::madvise(p, file.size_bytes_, MADV_HUGEPAGE);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : file_(std::move(other.file_)),
      path_(std::move(other.path_)),
      stamp_(std::move(other.stamp_)),
      data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(path_, other.path_);
  std::swap(stamp_, other.stamp_);
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_bytes_);
}

void MappedFile::read(size_t offset, std::span<std::byte> out) const {
  read_range(file_, path_, offset, out);
}

void MappedFile::advise(size_t offset, size_t length_bytes, int advice) const {
  if (!data_ || offset >= size_bytes_) return;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t end = std::min(size_bytes_, offset + std::min(length_bytes, size_bytes_ - offset));
  const size_t begin = offset / page * page;
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, advice);
}

void MappedFile::will_need(size_t offset, size_t length_bytes) const {
  advise(offset, length_bytes, MADV_WILLNEED);
}
void MappedFile::drop(size_t offset, size_t length_bytes) const {
  advise(offset, length_bytes, MADV_DONTNEED);
}

std::string read_file(const std::filesystem::path& path, size_t max_bytes) {
  const FileDescriptor fd = open_to_read(path);
  const auto size = static_cast<size_t>(regular_file(fd, path).st_size);
  if (size > max_bytes) {
    fail(ErrorCode::kLimit, path.string(), "file size in bytes", "at most " + std::to_string(max_bytes),
         std::to_string(size));
  }
  std::string content(size, '\0');
  read_range(fd, path, 0, std::as_writable_bytes(std::span(content)));
  return content;
}

}  // namespace qvl
