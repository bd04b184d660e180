#include "qvl/base/partial_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

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

// Tells a folder of ours from one that somebody named alike: only those with it are ever removed.
constexpr const char* kMarker = ".qvl-partial";
constexpr std::string_view kFolderInfix = ".partial-";
constexpr size_t kFolderCharacters = 6;  // of mkdtemp

fs::path without_slash(const fs::path& target) {
  return target.has_filename() ? target : target.parent_path();  // "out/" means "out"
}

bool mark(const fs::path& folder) {
  const int fd = ::open((folder / kMarker).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd >= 0) ::close(fd);
  return fd >= 0;
}

// The marker goes last: whoever is killed here leaves something that is still known as a leftover.
void remove_marked(const fs::path& folder) {
  std::error_code ignored;
  std::vector<fs::path> entries;
  for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end; it.increment(ignored)) {
    if (it->path().filename() != kMarker) entries.push_back(it->path());
  }
  for (const fs::path& entry : entries) fs::remove_all(entry, ignored);
  fs::remove_all(folder, ignored);
}

// The folder, opened and locked; -1 when another process holds it or the file system knows no locks.
int open_locked(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return -1;
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  ::close(fd);
  return -1;
}

// True when `path` still names what `fd` holds open.
bool same_folder(int fd, const fs::path& path) {
  struct stat a {
  }, b{};
  return ::fstat(fd, &a) == 0 && ::lstat(path.c_str(), &b) == 0 && a.st_dev == b.st_dev &&
         a.st_ino == b.st_ino;
}

void remove_leftovers(const fs::path& target) {
  const std::string prefix = target.filename().string() + std::string(kFolderInfix);
  std::error_code ignored;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator it(parent_of(target), ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(prefix) && name.size() == prefix.size() + kFolderCharacters)
      leftovers.push_back(it->path());
  }
  for (const fs::path& leftover : leftovers) {
    const int fd = open_locked(leftover);
    if (fd < 0) continue;
    if (fs::is_regular_file(fs::symlink_status(leftover / kMarker, ignored))) {
      remove_marked(leftover);
    } else {
      ::rmdir(leftover.c_str());  // killed before it was marked: empty
    }
    ::close(fd);
  }
}

}  // namespace

void PartialFolder::check_target(const fs::path& given, ExistingFolder existing) {
  const fs::path target = without_slash(given);
  if (target.empty()) fail(ErrorCode::kInvalidArgument, "output", "name", "the name of a folder", "nothing");
  const bool there = is_there(target);
  if (there && existing == ExistingFolder::kRefuse) {
    fail(ErrorCode::kInvalidArgument, target.string(), "output", "a folder that does not exist yet",
         "an existing one",
         "remove it, choose another name, or replace it where the command can (--replace)");
  }
  std::error_code ignored;
  if (there && fs::symlink_status(target, ignored).type() != fs::file_type::directory) {
    fail(ErrorCode::kInvalidArgument, target.string(), "output", "a folder", "something else");
  }
  const fs::path parent = parent_of(target);
  if (!fs::is_directory(parent, ignored))
    fail(ErrorCode::kNotFound, parent.string(), "no such folder for the output");
}

PartialFolder::PartialFolder(const fs::path& target, ExistingFolder existing)
    : target_(without_slash(target)), existing_(existing) {
  check_target(target, existing);
  there_ = is_there(target_);
  remove_leftovers(target_);
  create();
}

void PartialFolder::create() {
  // Another process may take a folder that is not locked yet for a leftover: then once more.
  constexpr int kAttempts = 16;
  for (int i = 0; i < kAttempts; ++i) {
    std::string pattern = target_.string() + std::string(kFolderInfix) + std::string(kFolderCharacters, 'X');
    if (!::mkdtemp(pattern.data())) fail_errno(target_.string(), "cannot create a folder");
    lock_ = open_locked(pattern);
    if (lock_ < 0 && is_there(pattern)) {
      // No locks here: then nobody takes it for a leftover either.
    } else if (lock_ < 0 || !same_folder(lock_, pattern)) {
      unlock();
      continue;
    }
    path_ = pattern;
    const mode_t mask = ::umask(0);
    ::umask(mask);
    ::chmod(path_.c_str(), 0777 & ~mask);
    if (mark(path_)) return;
    const int saved = errno;
    ::rmdir(std::exchange(path_, {}).c_str());
    unlock();
    errno = saved;
    fail_errno(target_.string(), "cannot write into its folder");
  }
  fail(ErrorCode::kIo, target_.string(), "cannot create a folder that stays");
}

void PartialFolder::unlock() {
  if (lock_ >= 0) ::close(lock_);
  lock_ = -1;
}

PartialFolder::~PartialFolder() {
  if (!path_.empty()) remove_marked(path_);
  unlock();
}

void PartialFolder::publish() {
  const fs::path marker = path_ / kMarker;
  if (::unlink(marker.c_str()) != 0) fail_errno(marker.string(), "cannot remove");
  try {
    flush(path_);
    rename_into_place();
  } catch (...) {
    (void)mark(path_);  // the destructor may be killed as well
    throw;
  }
  path_.clear();
  unlock();
  flush(parent_of(target_));
}

void PartialFolder::rename_into_place() {
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
    // Now the old one; a leftover is no reason to call the new one failed.
    (void)mark(path_);
    remove_marked(path_);
  } else {
    int rc = rename_with(path_, target_, RENAME_NOREPLACE);
    if (rc != 0 && not_supported() && !is_there(target_)) rc = ::rename(path_.c_str(), target_.c_str());
    if (rc != 0) fail_errno(target_.string(), "cannot rename the finished folder into place");
  }
}

}  // namespace qvl
