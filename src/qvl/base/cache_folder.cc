#include "qvl/base/cache_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <system_error>
#include <utility>
#include <vector>

#include "qvl/base/checksum.h"
#include "qvl/base/error.h"
#include "qvl/base/file_descriptor.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"

namespace qvl {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'Q', 'V', 'L', 'C', 'A', 'C', 'H', 'E'};
constexpr uint32_t kVersion = 2;
constexpr uint32_t kMaxDescriptionBytes = 1 << 20;
constexpr size_t kNameDigits = 64;
constexpr std::string_view kInfix = ".partial-";
constexpr size_t kRandomCharacters = 6;  // of mkostemp
constexpr const char* kLockFile = "lock";

// The start of a file; description and payload follow, and nothing after them. Little-endian. Blanks at the description's end
// make the payload begin at a multiple of kPayloadAlignment.
struct Header {
  char magic[8];
  uint32_t version;
  uint32_t description_bytes;
  uint64_t payload_bytes;
  uint64_t payload_checksum;
  uint64_t header_checksum;  // of what stands before it, and of the description
};
static_assert(sizeof(Header) == 40);

uint64_t header_checksum(const Header& header, std::string_view description) {
  Checksum sum;
  sum.add(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, header_checksum)));
  sum.add(description);
  return sum.value();
}

std::string error_text(int error) {
  return std::error_code(error, std::generic_category()).message();
}

// False at the end of the file and on errors.
bool read_at(int fd, uint64_t offset, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    offset += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return true;
}

bool write_at(int fd, uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    offset += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return true;
}

// The order of use is that of the times of access; the file system's own clock ticks too slowly for it. The time of the last
// change stays as it is: whoever has the file mapped tells by it that nobody wrote there.
void mark_as_used(int fd) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const timespec times[2] = {now, {.tv_sec = 0, .tv_nsec = UTIME_OMIT}};
  ::futimens(fd, times);  // refused by a read-only folder: then there is no order
}

bool is_entry_name(std::string_view name) {
  if (name.size() < kNameDigits + 2 || name[kNameDigits] != '.') return false;
  const auto all = [](std::string_view text, std::string_view allowed) {
    return text.find_first_not_of(allowed) == text.npos;
  };
  return all(name.substr(0, kNameDigits), "0123456789abcdef") &&
         all(name.substr(kNameDigits + 1), "abcdefghijklmnopqrstuvwxyz");
}

bool is_partial_name(std::string_view name) {
  const size_t at = name.rfind(kInfix);
  return at != name.npos && name.size() == at + kInfix.size() + kRandomCharacters && is_entry_name(name.substr(0, at));
}

void require_entry_name(const std::string& name) {
  if (is_entry_name(name)) return;
  fail(ErrorCode::kInvalidArgument, "cache folder", "entry name", "64 hexadecimal digits, a dot and a word", name);
}

// Waits for the other processes; their holds are short. Invalid with errno set where it cannot be had.
FileDescriptor lock(const fs::path& folder) {
  FileDescriptor fd(::open((folder / kLockFile).c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return fd;
  while (::flock(fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return FileDescriptor();
  }
  return fd;
}

// A partial file that nobody holds locked was left by a killed process.
bool remove_if_abandoned(const fs::path& path) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  return fd.valid() && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0 && ::unlink(path.c_str()) == 0;
}

bool create_private_folders(const fs::path& folder) {
  if (folder.has_parent_path() && folder.parent_path() != folder) {
    std::error_code ignored;
    if (!fs::exists(folder.parent_path(), ignored) && !create_private_folders(folder.parent_path())) return false;
  }
  return folder.filename().empty() || ::mkdir(folder.c_str(), 0700) == 0 || errno == EEXIST;
}

}  // namespace

class CacheFolder::Entry {
 public:
  Entry(FileDescriptor fd, const Header& header, Json description)
      : fd_(std::move(fd)),
        header_(header),
        description_(std::move(description)),
        next_(sizeof(Header) + header.description_bytes) {}

  const Json& description() const { return description_; }
  uint64_t payload_bytes() const { return header_.payload_bytes; }

  // Throws kFormat beyond the payload.
  void read(std::span<std::byte> bytes) {
    if (bytes.size() > left() || !read_at(fd_.get(), next_, bytes))
      fail(ErrorCode::kFormat, "cache folder", "the entry is shorter than its contents");
    sum_.add(bytes);
    next_ += bytes.size();
  }
  bool complete() const { return left() == 0 && sum_.value() == header_.payload_checksum; }

  // The entry gives up its file; afterwards complete() tells of the mapped payload. Throws kIo.
  Mapped map() {
    std::shared_ptr<const GuardedMapping> file = GuardedMapping::map(std::move(fd_));
    const uint64_t first = sizeof(Header) + header_.description_bytes;
    if (file->bytes().size() < first || file->bytes().size() - first != header_.payload_bytes)
      fail(ErrorCode::kFormat, "cache folder", "the entry is shorter than its contents");
    const std::span<const std::byte> payload = file->bytes().subspan(first);
    const Mapped out{std::move(file), payload};
    sum_.add(out.payload);
    next_ += out.payload.size();
    if (!out.file->intact()) fail(ErrorCode::kFormat, "cache folder", "the entry was changed while it was read");
    return out;
  }

 private:
  uint64_t left() const { return sizeof(Header) + header_.description_bytes + header_.payload_bytes - next_; }

  FileDescriptor fd_;
  Header header_;
  Json description_;
  uint64_t next_;
  Checksum sum_;
};

class CacheFolder::Partial {
 public:
  Partial(FileDescriptor fd, fs::path path) : fd_(std::move(fd)), path_(std::move(path)) {}
  Partial(Partial&& other) noexcept : fd_(std::move(other.fd_)), path_(std::exchange(other.path_, {})) {}
  Partial& operator=(Partial&&) = delete;
  ~Partial() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  int fd() const { return fd_.get(); }
  // False with errno set.
  bool publish(const fs::path& folder, const std::string& name) {
    mark_as_used(fd());
    // Whoever counts the files at this moment must see one name of it.
    const FileDescriptor held = lock(folder);
    if (!held.valid() || ::rename(path_.c_str(), (folder / name).c_str()) != 0) return false;
    path_.clear();
    return true;
  }

 private:
  FileDescriptor fd_;  // locked: its writer lives
  fs::path path_;
};

CacheFolder::CacheFolder(fs::path folder, uint64_t max_bytes) : folder_(std::move(folder)), max_bytes_(max_bytes) {}

void CacheFolder::discard(const std::string& name, std::string_view why) const {
  const fs::path path = folder_ / name;
  log_message(LogLevel::kWarning, cat("[", path.string(), "] ", why, ": the entry is removed and computed again"));
  ::unlink(path.c_str());  // in a read-only folder it stays, and is refused again
}

std::optional<CacheFolder::Entry> CacheFolder::open(const std::string& name) {
  require_entry_name(name);
  // Not through links, and only what this user wrote: others could have prepared an answer.
  FileDescriptor fd(::open((folder_ / name).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd.valid()) return std::nullopt;
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != ::geteuid()) {
    log_message(LogLevel::kWarning, cat("[", (folder_ / name).string(), "] not a file of this user: not used"));
    return std::nullopt;
  }
  Header header{};
  const auto bytes = std::as_writable_bytes(std::span(&header, 1));
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  if (!read_at(fd.get(), 0, bytes) || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 ||
      header.version != kVersion || header.description_bytes > kMaxDescriptionBytes ||
      file_bytes < sizeof(Header) + header.description_bytes ||
      file_bytes - sizeof(Header) - header.description_bytes != header.payload_bytes) {
    discard(name, "not a whole entry");
    return std::nullopt;
  }
  std::string text(header.description_bytes, '\0');
  if (!read_at(fd.get(), sizeof(Header), std::as_writable_bytes(std::span(text))) ||
      header_checksum(header, text) != header.header_checksum) {
    discard(name, "damaged");
    return std::nullopt;
  }
  Json description = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!description.is_object() || !description.contains("name") || description["name"] != name) {
    discard(name, "another entry's contents");
    return std::nullopt;
  }
  mark_as_used(fd.get());
  return Entry(std::move(fd), header, std::move(description));
}

std::optional<Json> CacheFolder::describe(const std::string& name) {
  const std::optional<Entry> entry = open(name);
  return entry ? std::optional<Json>(entry->description()) : std::nullopt;
}

bool CacheFolder::use(const std::string& name, const std::function<bool(Entry&)>& take) {
  std::optional<Entry> entry = open(name);
  if (!entry) return false;
  try {
    const bool taken = take(*entry);
    if (taken && entry->complete()) return true;
    discard(name, taken ? "damaged" : "not what its name says");
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kLimit) {
      log_message(LogLevel::kInfo, cat("[", (folder_ / name).string(), "] not used: ", e.what()));
    } else {
      discard(name, e.what());
    }
  } catch (const Json::exception& e) {
    discard(name, e.what());
  }
  return false;
}

bool CacheFolder::get(const std::string& name,
                      const std::function<bool(const Json&, uint64_t, const Source&)>& take) {
  return use(name, [&take](Entry& entry) {
    return take(entry.description(), entry.payload_bytes(), [&entry](std::span<std::byte> bytes) { entry.read(bytes); });
  });
}

std::optional<CacheFolder::Mapped> CacheFolder::map(const std::string& name,
                                                    const std::function<bool(const Json&, uint64_t)>& wanted) {
  Mapped out;
  const bool used = use(name, [&](Entry& entry) {
    if (!wanted(entry.description(), entry.payload_bytes())) return false;
    out = entry.map();
    return true;
  });
  return used ? std::optional(std::move(out)) : std::nullopt;
}

void CacheFolder::stop_writing(const std::string& why) {
  const std::scoped_lock guard(mutex_);
  if (!std::exchange(writable_, false)) return;
  log_message(LogLevel::kWarning, cat("[", folder_.string(), "] ", why, ": nothing more is kept there"));
}

bool CacheFolder::make_room(uint64_t bytes) const {
  struct File {
    std::string name;
    uint64_t bytes;
    timespec used;
  };
  std::vector<File> entries;
  uint64_t total = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool partial = is_partial_name(name);
    struct stat status {};
    if ((!partial && !is_entry_name(name)) || ::lstat(it->path().c_str(), &status) != 0) continue;
    if (partial && remove_if_abandoned(it->path())) continue;
    total += static_cast<uint64_t>(status.st_size);
    if (!partial) entries.push_back({name, static_cast<uint64_t>(status.st_size), status.st_atim});
  }
  std::sort(entries.begin(), entries.end(), [](const File& a, const File& b) {
    return std::pair(a.used.tv_sec, a.used.tv_nsec) < std::pair(b.used.tv_sec, b.used.tv_nsec);
  });
  for (const File& oldest : entries) {
    if (total + bytes <= max_bytes_) break;
    if (::unlink((folder_ / oldest.name).c_str()) == 0 || errno == ENOENT) total -= oldest.bytes;
  }
  return total + bytes <= max_bytes_;
}

std::optional<CacheFolder::Partial> CacheFolder::create(const std::string& name, uint64_t file_bytes) {
  if (!create_private_folders(folder_)) {
    stop_writing(cat("cannot create the folder: ", error_text(errno)));
    return std::nullopt;
  }
  const FileDescriptor held = lock(folder_);
  if (!held.valid()) {
    stop_writing(cat("cannot lock the folder: ", error_text(errno)));
    return std::nullopt;
  }
  if (!make_room(file_bytes)) return std::nullopt;  // others are writing that much at this moment
  std::string pattern = (folder_ / name).string() + std::string(kInfix) + std::string(kRandomCharacters, 'X');
  FileDescriptor fd(::mkostemp(pattern.data(), O_CLOEXEC));  // 0600
  if (!fd.valid()) {
    stop_writing(cat("cannot write into the folder: ", error_text(errno)));
    return std::nullopt;
  }
  const int raw = fd.get();
  Partial partial(std::move(fd), pattern);
  if (::flock(raw, LOCK_EX | LOCK_NB) != 0) {
    stop_writing(cat("cannot lock files: ", error_text(errno)));
    return std::nullopt;
  }
  // A full disk shows here, and other processes see the size when they make room.
  if (::fallocate(raw, 0, 0, static_cast<off_t>(file_bytes)) != 0 &&
      (errno != EOPNOTSUPP || ::ftruncate(raw, static_cast<off_t>(file_bytes)) != 0)) {
    stop_writing(cat("no room for ", file_bytes, " bytes: ", error_text(errno)));
    return std::nullopt;
  }
  return partial;
}

bool CacheFolder::put(const std::string& name, const Json& description, uint64_t payload_bytes,
                      const std::function<void(const Sink&)>& write) {
  require_entry_name(name);
  Json described = description;
  described["name"] = name;
  std::string text = described.dump();
  text.append((kPayloadAlignment - (sizeof(Header) + text.size()) % kPayloadAlignment) % kPayloadAlignment, ' ');
  const uint64_t first = sizeof(Header) + text.size();
  if (text.size() > kMaxDescriptionBytes || payload_bytes > max_bytes_ || first + payload_bytes > max_bytes_)
    return false;
  {
    const std::scoped_lock guard(mutex_);
    if (!writable_) return false;
  }
  std::optional<Partial> partial = create(name, first + payload_bytes);
  if (!partial) return false;

  // Pieces are gathered: those of a cache are as short as a few rows of one head.
  constexpr size_t kBufferBytes = size_t{1} << 20;
  std::vector<std::byte> buffer;
  buffer.reserve(kBufferBytes);
  uint64_t written = 0;
  int error = 0;
  Checksum sum;
  const auto flush = [&](std::span<const std::byte> bytes) {
    if (error == 0 && !write_at(partial->fd(), first + written, bytes)) error = errno;
    written += bytes.size();
  };
  write([&](std::span<const std::byte> bytes) {
    if (written + buffer.size() + bytes.size() > payload_bytes) {
      fail(ErrorCode::kInvalidArgument, "cache folder", "payload", cat(payload_bytes, " bytes"), "more");
    }
    sum.add(bytes);
    if (buffer.size() + bytes.size() > kBufferBytes) {
      flush(buffer);
      buffer.clear();
    }
    if (bytes.size() > kBufferBytes) {
      flush(bytes);
    } else {
      buffer.insert(buffer.end(), bytes.begin(), bytes.end());
    }
  });
  flush(buffer);
  if (written != payload_bytes) {
    fail(ErrorCode::kInvalidArgument, "cache folder", "payload", cat(payload_bytes, " bytes"), cat(written));
  }
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.description_bytes = static_cast<uint32_t>(text.size());
  header.payload_bytes = payload_bytes;
  header.payload_checksum = sum.value();
  header.header_checksum = header_checksum(header, text);
  // No flush to the disk: after a power cut the checksum tells.
  if (error == 0 && !(write_at(partial->fd(), 0, std::as_bytes(std::span(&header, 1))) &&
                      write_at(partial->fd(), sizeof(Header), std::as_bytes(std::span(text))) &&
                      partial->publish(folder_, name)))
    error = errno;
  if (error != 0) stop_writing(cat("cannot write ", name, ": ", error_text(error)));
  return error == 0;
}

}  // namespace qvl
