#include "qvl/base/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "qvl/base/error.h"

namespace qvl {

AtomicFile::AtomicFile(const std::filesystem::path& target) : target_(target) {
  std::string pattern = target.string() + ".partial-XXXXXX";
  fd_ = ::mkostemp(pattern.data(), O_CLOEXEC);
  if (fd_ < 0) fail_errno(target.string(), "cannot create");
  temporary_ = pattern;
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::fchmod(fd_, 0666 & ~mask);  // mkstemp gives 0600; a finished file gets the ordinary permissions
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) {
    ::close(fd_);
    ::unlink(temporary_.c_str());
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(target_.string(), "cannot write");
    done += static_cast<size_t>(n);
  }
  written_bytes_ += bytes.size();
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void AtomicFile::commit() {
  if (::fsync(fd_) != 0) fail_errno(target_.string(), "cannot flush");
  if (::rename(temporary_.c_str(), target_.c_str()) != 0)
    fail_errno(target_.string(), "cannot rename into place");
  ::close(fd_);
  fd_ = -1;
}

}  // namespace qvl
