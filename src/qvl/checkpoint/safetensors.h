// One .safetensors file, mapped and fully validated when it is opened: the bottom of every checkpoint (spec
// 2).
//
// The rules are those of the format's own reader, and a bit stricter: header length within the file and at
// most 100 000 000 bytes; a JSON object whose first byte is '{'; exactly the keys dtype, shape and
// data_offsets per tensor; known element types; size = product of the shape * element size; and the ranges,
// in file order, cover the data part without hole or overlap to its last byte. Names must be unique (JSON
// readers usually hide a repetition).
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "qvl/base/dtype.h"
#include "qvl/base/mapped_file.h"

namespace qvl::checkpoint {

// A tensor inside a mapped file. `bytes` is valid while the SafetensorsFile (or Checkpoint) that gave it
// lives, and need not be aligned to its element size: the format does not promise that. x86 and AArch64 load
// unaligned data at (nearly) full speed; read elements through memcpy or vector loads, never by dereferencing
// a wider pointer.
struct TensorView {
  std::string name;  // as spelled in the file
  DType dtype = DType::kF32;
  Shape shape;  // any rank, [] for a scalar
  std::span<const std::byte> bytes;
  std::string file;  // path of the file, for messages

  int64_t size() const { return element_count(shape); }
  // The elements as float32 (bf16 and f16 converted, any alignment); throws kUnsupported for other types.
  std::vector<float> to_f32() const;
  // The elements of an I64 or I32 tensor; throws kUnsupported for other types.
  std::vector<int64_t> to_i64() const;
  // "FILE: tensor 'NAME'", the [where] of errors about this tensor.
  std::string where() const;
};

// `name` in single quotes, control characters escaped and cut to a length that fits a message.
std::string quoted_name(std::string_view name);

class SafetensorsFile {
 public:
  // Throws kNotFound, kIo, kFormat (naming file and, where one is at fault, tensor), kUnsupported (element
  // type).
  static SafetensorsFile open(const std::filesystem::path& path);

  // In the order of their data.
  std::span<const TensorView> tensors() const { return tensors_; }
  // Null when there is no such tensor.
  const TensorView* find(std::string_view name) const;
  // Throws kNotFound naming file and tensor.
  const TensorView& get(std::string_view name) const;
  // The strings of "__metadata__" (often {"format": "pt"}).
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return file_.path(); }
  const MappedFile& mapping() const { return file_; }
  // Length and JSON at the start of the file.
  std::span<const std::byte> header() const { return file_.bytes().first(file_.bytes().size() - data_bytes_); }
  // Bytes of tensor data, without the header.
  size_t data_bytes() const { return data_bytes_; }

  // Hints to the system about the pages of one tensor of this file.
  void will_need(const TensorView& tensor) const;
  void drop(const TensorView& tensor) const;

 private:
  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) {}

  MappedFile file_;
  std::vector<TensorView> tensors_;
  std::unordered_map<std::string_view, size_t> index_;  // keys point into tensors_
  std::map<std::string, std::string> metadata_;
  size_t data_bytes_ = 0;
};

}  // namespace qvl::checkpoint
