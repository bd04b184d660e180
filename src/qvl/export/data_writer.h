// Writes one external-data file of a package front to back: pieces come in the order of their places, gaps
// are filled with zeros, the hash is computed on the way. Hashing and writing run on a thread of their own,
// so that the next piece is quantised meanwhile; memory is bounded by two pieces and a block.
//
// The file is written in blocks of a huge page at their multiples. File systems with large folios (ext4, XFS) then keep it so in
// memory, and whoever maps it next is given 2 MiB at a time: mapping 2.6 GB of weights takes 3 ms instead of 230.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>
#include <span>
#include <string>

#include "qvl/base/atomic_file.h"
#include "qvl/base/sha256.h"
#include "qvl/base/tensor.h"
#include "qvl/package/manifest.h"

namespace qvl::exporting {

class DataWriter {
 public:
  // The file appears in `folder` when finish() has returned. Throws kIo.
  DataWriter(const std::filesystem::path& folder, std::string file);
  ~DataWriter();
  DataWriter(const DataWriter&) = delete;
  DataWriter& operator=(const DataWriter&) = delete;

  // A buffer of at least `size_bytes` to fill and hand to write(); valid until then.
  std::byte* buffer(size_t size_bytes);
  // Queues the first `size_bytes` of the buffer for `offset`, which must not lie before the end of what was
  // written (kInvalidArgument). Errors of the disk surface here or in finish().
  void write(uint64_t offset, size_t size_bytes);
  // Waits, flushes, renames; returns name, size and hash.
  package::FileEntry finish();

 private:
  void wait();
  // Hashes `bytes` and puts them behind what is there; whole blocks go to the file.
  void append(std::span<const std::byte> bytes);

  std::string name_;
  std::string where_;
  std::unique_ptr<AtomicFile> file_;
  Sha256 hash_;
  AlignedBuffer buffers_[2];
  AlignedBuffer block_;
  size_t block_filled_bytes_ = 0;
  int turn_ = 0;
  uint64_t end_ = 0;  // of everything queued
  std::future<void> pending_;
};

}  // namespace qvl::exporting
