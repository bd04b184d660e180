// Writes safetensors files of any size with little memory: all tensors are declared first (the format puts
// its header in front), then their bytes are streamed. Nothing that looks finished exists before finish().
// Used by `qvl trace`, `qvl synth` and tests.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "qvl/base/atomic_file.h"
#include "qvl/base/dtype.h"
#include "qvl/base/tensor.h"

namespace qvl::checkpoint {

struct TensorDecl {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;

  size_t size_bytes() const { return static_cast<size_t>(element_count(shape)) * dtype_size_bytes(dtype); }
};

using Metadata = std::map<std::string, std::string>;

// Throws kLimit unless the file system of `folder` has `needed_bytes` (and a reserve of 64 MiB) free.
void check_free_space(const std::filesystem::path& folder, uint64_t needed_bytes);

// The header a file of these tensors gets: 8 length bytes, JSON, spaces to a multiple of 8 bytes. The data
// follow in the order of `tensors`.
std::string safetensors_header(std::span<const TensorDecl> tensors, const Metadata& metadata);

class SafetensorsWriter {
 public:
  // Checks the free space, creates a temporary file beside `target` and writes the header. Tensors are laid
  // out by element size, widest first and otherwise in the given order, so that all data are aligned. Throws
  // kInvalidArgument (empty, repeated or reserved name), kLimit, kIo.
  SafetensorsWriter(const std::filesystem::path& target, std::vector<TensorDecl> tensors,
                    const Metadata& metadata = {{"format", "pt"}});

  // All tensors in the order in which their bytes are expected.
  std::span<const TensorDecl> order() const { return tensors_; }
  // The tensor whose bytes come next (or are being appended); null when all are complete.
  const TensorDecl* next() const { return current_ < tensors_.size() ? &tensors_[current_] : nullptr; }
  // Appends a piece of the data of next(); throws kInvalidArgument when it is more than the tensor has left.
  void append(std::span<const std::byte> bytes);
  // Flushes and renames into place; throws kInvalidArgument when data are missing.
  void finish();
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  void skip_empty();

  std::filesystem::path target_;
  std::vector<TensorDecl> tensors_;
  std::unique_ptr<AtomicFile> file_;
  uint64_t file_bytes_ = 0;
  size_t current_ = 0;
  size_t written_bytes_ = 0;  // of the current tensor
};

struct NamedTensor {
  std::string name;
  const Tensor* tensor = nullptr;
};

// Writes finished tensors in one call.
void write_safetensors(const std::filesystem::path& target, std::span<const NamedTensor> tensors,
                       const Metadata& metadata = {});

// Splits tensors over model-00001-of-0000N.safetensors files of at most `max_shard_bytes` of data each (one
// tensor is never split) and writes model.safetensors.index.json at the end; a set that fits one shard
// becomes model.safetensors without index, as the reference library does.
class ShardedWriter {
 public:
  // `folder` must exist. All tensors must have one element size (kInvalidArgument), so that the order is
  // kept.
  ShardedWriter(const std::filesystem::path& folder, std::vector<TensorDecl> tensors,
                uint64_t max_shard_bytes, const Metadata& metadata = {{"format", "pt"}});

  const TensorDecl* next() const;
  void append(std::span<const std::byte> bytes);
  // Throws kInvalidArgument when data are missing.
  void finish();

  size_t shard_count() const { return shards_.size(); }
  uint64_t total_bytes() const { return total_bytes_; }

 private:
  struct Shard {
    std::string file;
    std::vector<TensorDecl> tensors;
  };
  void open_next();

  std::filesystem::path folder_;
  Metadata metadata_;
  std::vector<Shard> shards_;
  std::unique_ptr<SafetensorsWriter> writer_;
  size_t open_shard_ = 0;  // index of the shard after the one being written
  uint64_t total_bytes_ = 0;
};

}  // namespace qvl::checkpoint
