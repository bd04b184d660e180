#include "qvl/base/partial_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>

#include "qvl/base/error.h"

namespace qvl {
namespace {

namespace fs = std::filesystem;

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

void flush(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_errno(folder.string(), "cannot open the folder to flush it");
  const int rc = ::fsync(fd);
  const int saved = errno;
  ::close(fd);
  errno = saved;
  if (rc != 0 && saved != EINVAL) fail_errno(folder.string(), "cannot flush the folder");
}

fs::path parent_of(const fs::path& target) {
  return target.has_parent_path() ? target.parent_path() : fs::path(".");
}

int rename_with(const fs::path& from, const fs::path& to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
}

bool not_supported() {
  return errno == EINVAL || errno == ENOSYS;
}

}  // namespace

PartialFolder::PartialFolder(const fs::path& target, ExistingFolder existing)
    : target_(target), existing_(existing) {
  if (!target_.has_filename()) target_ = target_.parent_path();  // "out/" means "out"
  if (target_.empty()) fail(ErrorCode::kInvalidArgument, "output", "name", "the name of a folder", "nothing");
  std::error_code ignored;
  there_ = is_there(target_);
  if (there_ && existing_ == ExistingFolder::kRefuse) {
    fail(ErrorCode::kInvalidArgument, target_.string(), "output", "a folder that does not exist yet",
         "an existing one",
         "remove it, choose another name, or replace it where the command can (--replace)");
  }
  if (there_ && fs::symlink_status(target_, ignored).type() != fs::file_type::directory) {
    fail(ErrorCode::kInvalidArgument, target_.string(), "output", "a folder", "something else");
  }
  const fs::path parent = parent_of(target_);
  if (!fs::is_directory(parent, ignored))
    fail(ErrorCode::kNotFound, parent.string(), "no such folder for the output");
  std::string pattern = target_.string() + ".partial-XXXXXX";
  if (!::mkdtemp(pattern.data())) fail_errno(target_.string(), "cannot create a folder");
  path_ = pattern;
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::chmod(path_.c_str(), 0777 & ~mask);
}

PartialFolder::~PartialFolder() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

void PartialFolder::publish() {
  flush(path_);
  if (there_) {
    int rc = rename_with(path_, target_, RENAME_EXCHANGE);
    if (rc != 0 && not_supported()) {  // not every file system can: the old one steps aside for a moment
      const fs::path aside = path_.string() + ".old";
      if (::rename(target_.c_str(), aside.c_str()) != 0)
        fail_errno(target_.string(), "cannot move the old folder aside");
      rc = ::rename(path_.c_str(), target_.c_str());
      if (rc != 0) {
        const int saved = errno;
        ::rename(aside.c_str(), target_.c_str());
        errno = saved;
      } else {
        path_ = aside;
      }
    }
    if (rc != 0) fail_errno(target_.string(), "cannot swap the finished folder into place");
    std::error_code error;
    fs::remove_all(path_, error);  // now the old one; a leftover is no reason to call the new one failed
  } else {
    int rc = rename_with(path_, target_, RENAME_NOREPLACE);
    if (rc != 0 && not_supported() && !is_there(target_)) rc = ::rename(path_.c_str(), target_.c_str());
    if (rc != 0) fail_errno(target_.string(), "cannot rename the finished folder into place");
  }
  path_.clear();
  flush(parent_of(target_));
}

}  // namespace qvl
