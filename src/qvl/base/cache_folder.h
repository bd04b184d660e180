// A folder of results that can be computed again: bounded, the least recently used go first, shared by any number of
// processes, and never trusted. An entry is one file with a description and a checksum; it is written under a
// temporary name and renamed, so that readers see whole entries or none. What is damaged, cut short or not ours is
// removed and counts as absent. Nothing here fails a caller: a folder that cannot be written to is warned about once
// and not written to again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "qvl/base/guarded_mapping.h"
#include "qvl/base/json.h"

namespace qvl {

// Thread-safe.
class CacheFolder {
 public:
  // Take and fill the payload piece by piece.
  using Sink = std::function<void(std::span<const std::byte> bytes)>;
  using Source = std::function<void(std::span<std::byte> bytes)>;

  // Files of all entries together, those being written included, stay within `max_bytes`. The folder is created (0700)
  // by the first put().
  CacheFolder(std::filesystem::path folder, uint64_t max_bytes);

  // `name` is 64 lower-case hexadecimal digits, a dot and a word of lower-case letters everywhere.

  // The description of an entry; nothing when it is absent. Reads no payload. Counts as a use.
  std::optional<Json> describe(const std::string& name);

  // Hands description, payload size and payload to `take`, which reads all of it or returns false where the entry is
  // not what its name promises. True when the entry was there, was taken and its checksum agreed; otherwise
  // whatever `take` has made of it must be thrown away. A qvl::Error out of `take` counts as false (kLimit, memory that
  // is not there, leaves the entry where it is). Counts as a use.
  bool get(const std::string& name,
           const std::function<bool(const Json& description, uint64_t payload_bytes, const Source& read)>& take);

  // The payload of an entry where it lies, checked whole and aligned to kPayloadAlignment.
  struct Mapped {
    std::shared_ptr<const GuardedMapping> file;  // whoever uses the payload asks afterwards whether it is still intact
    std::span<const std::byte> payload;          // valid while `file` lives
  };
  static constexpr size_t kPayloadAlignment = 64;

  // As get(), without reading: nothing where the entry is absent, `wanted` returns false, or the checksum does not agree.
  // What is mapped stays on the disk, beyond the bound, when it is removed meanwhile.
  std::optional<Mapped> map(const std::string& name,
                            const std::function<bool(const Json& description, uint64_t payload_bytes)>& wanted);

  // Stores an entry, in the place of one of this name; `write` gives exactly `payload_bytes` to the sink. Room is made
  // first. False when it was not stored: larger than the bound, or the folder cannot be written to. Throws what
  // `write` throws, and kInvalidArgument when it gives another number of bytes; nothing is then stored.
  bool put(const std::string& name, const Json& description, uint64_t payload_bytes,
           const std::function<void(const Sink& sink)>& write);

  const std::filesystem::path& folder() const { return folder_; }
  uint64_t max_bytes() const { return max_bytes_; }

 private:
  class Entry;    // an opened file whose header is right
  class Partial;  // a file being written

  std::optional<Entry> open(const std::string& name);
  // True: `take` returned true. False: the entry is not used, nor is what `take` made of it.
  bool use(const std::string& name, const std::function<bool(Entry& entry)>& take);
  void discard(const std::string& name, std::string_view why) const;
  // Makes room and creates the file at its full size, under the folder's lock.
  std::optional<Partial> create(const std::string& name, uint64_t file_bytes);
  // Removes the oldest entries until `bytes` more fit; false when they cannot.
  bool make_room(uint64_t bytes) const;
  void stop_writing(const std::string& why);

  std::filesystem::path folder_;
  uint64_t max_bytes_;
  std::mutex mutex_;
  bool writable_ = true;
};

}  // namespace qvl
