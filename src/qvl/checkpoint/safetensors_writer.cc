#include "qvl/checkpoint/safetensors_writer.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"

namespace qvl::checkpoint {
namespace {

uint64_t sum_bytes(std::span<const TensorDecl> tensors) {
  uint64_t sum = 0;
  for (const TensorDecl& t : tensors) {
    if (sum > (uint64_t{1} << 62)) fail(ErrorCode::kLimit, "safetensors", "tensors are impossibly large");
    sum += t.size_bytes();
  }
  return sum;
}

void check_names(std::span<const TensorDecl> tensors, const std::string& file) {
  std::unordered_set<std::string_view> seen;
  for (const TensorDecl& t : tensors) {
    if (t.name.empty() || t.name == "__metadata__") {
      fail(ErrorCode::kInvalidArgument, file, "tensor name", "a name of its own", quoted_name(t.name));
    }
    if (!seen.insert(t.name).second) {
      fail(ErrorCode::kInvalidArgument, file + ": tensor " + quoted_name(t.name), "declared twice");
    }
  }
}

std::filesystem::path folder_of(const std::filesystem::path& file) {
  return file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
}

}  // namespace

void check_free_space(const std::filesystem::path& folder, uint64_t needed_bytes) {
  constexpr uint64_t kReserveBytes = uint64_t{64} << 20;
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) fail_errno(folder.string(), "cannot ask for the free space");
  const uint64_t free_bytes = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (free_bytes < needed_bytes || free_bytes - needed_bytes < kReserveBytes) {
    fail(ErrorCode::kLimit, folder.string(), "free disk space",
         std::to_string(needed_bytes) + " bytes and a reserve of " + std::to_string(kReserveBytes),
         std::to_string(free_bytes));
  }
}

std::string safetensors_header(std::span<const TensorDecl> tensors, const Metadata& metadata) {
  // Assembled by hand: the document type looks keys up one by one, which is slow for very many tensors.
  std::string json = "{";
  const auto quote = [](const std::string& s) {
    try {
      return Json(s).dump();
    } catch (const nlohmann::json::type_error&) {
      fail(ErrorCode::kInvalidArgument, "safetensors", "name or metadata", "UTF-8", quoted_name(s));
    }
  };
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    bool first = true;
    for (const auto& [key, value] : metadata) {
      if (!first) json += ',';
      first = false;
      json.append(quote(key)).append(":").append(quote(value));
    }
    json += '}';
  }
  uint64_t offset = 0;
  for (const TensorDecl& t : tensors) {
    if (json.size() > 1) json += ',';
    json.append(quote(t.name)).append(":{\"dtype\":\"").append(dtype_name(t.dtype)).append("\",\"shape\":[");
    for (size_t i = 0; i < t.shape.size(); ++i) {
      if (i) json += ',';
      json += std::to_string(t.shape[i]);
    }
    const uint64_t end = offset + t.size_bytes();
    json.append("],\"data_offsets\":[")
        .append(std::to_string(offset))
        .append(",")
        .append(std::to_string(end))
        .append("]}");
    offset = end;
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const uint64_t length = json.size();
  std::string header(8, '\0');
  std::memcpy(header.data(), &length, 8);
  return header + json;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& target, std::vector<TensorDecl> tensors,
                                     const Metadata& metadata)
    : target_(target), tensors_(std::move(tensors)) {
  check_names(tensors_, target.string());
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const TensorDecl& a, const TensorDecl& b) {
    return dtype_size_bytes(a.dtype) > dtype_size_bytes(b.dtype);
  });
  const std::string header = safetensors_header(tensors_, metadata);
  file_bytes_ = header.size() + sum_bytes(tensors_);
  check_free_space(folder_of(target), file_bytes_);
  file_ = std::make_unique<AtomicFile>(target);
  file_->write(header);
  skip_empty();
}

void SafetensorsWriter::skip_empty() {
  while (current_ < tensors_.size() && written_bytes_ == tensors_[current_].size_bytes()) {
    ++current_;
    written_bytes_ = 0;
  }
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (!file_ || current_ == tensors_.size()) {
    fail(ErrorCode::kInvalidArgument, target_.string(), "data after the last tensor");
  }
  const TensorDecl& tensor = tensors_[current_];
  const size_t left = tensor.size_bytes() - written_bytes_;
  if (bytes.size() > left) {
    fail(ErrorCode::kInvalidArgument, target_.string() + ": tensor " + quoted_name(tensor.name), "data",
         "at most " + std::to_string(left) + " more bytes", std::to_string(bytes.size()));
  }
  file_->write(bytes);
  written_bytes_ += bytes.size();
  skip_empty();
}

void SafetensorsWriter::finish() {
  if (!file_) fail(ErrorCode::kInvalidArgument, target_.string(), "finished already");
  if (const TensorDecl* tensor = next()) {
    fail(ErrorCode::kInvalidArgument, target_.string() + ": tensor " + quoted_name(tensor->name), "data",
         std::to_string(tensor->size_bytes()) + " bytes", std::to_string(written_bytes_),
         "finished too early");
  }
  file_->commit();
  file_.reset();
}

void write_safetensors(const std::filesystem::path& target, std::span<const NamedTensor> tensors,
                       const Metadata& metadata) {
  std::vector<TensorDecl> decls;
  std::map<std::string_view, const Tensor*> by_name;
  for (const NamedTensor& t : tensors) {
    if (!t.tensor)
      fail(ErrorCode::kInvalidArgument, target.string() + ": tensor " + quoted_name(t.name), "no data");
    decls.push_back({t.name, t.tensor->dtype(), t.tensor->shape()});
    by_name.emplace(t.name, t.tensor);
  }
  SafetensorsWriter writer(target, std::move(decls), metadata);
  while (const TensorDecl* decl = writer.next()) {
    const Tensor& tensor = *by_name.at(decl->name);
    writer.append({static_cast<const std::byte*>(tensor.data()), tensor.size_bytes()});
  }
  writer.finish();
}

ShardedWriter::ShardedWriter(const std::filesystem::path& folder, std::vector<TensorDecl> tensors,
                             uint64_t max_shard_bytes, const Metadata& metadata)
    : folder_(folder), metadata_(metadata) {
  check_names(tensors, folder.string());
  total_bytes_ = sum_bytes(tensors);
  check_free_space(folder, total_bytes_);
  uint64_t shard_bytes = 0;
  for (TensorDecl& t : tensors) {
    if (dtype_size_bytes(t.dtype) != dtype_size_bytes(tensors.front().dtype)) {
      fail(ErrorCode::kInvalidArgument, folder.string() + ": tensor " + quoted_name(t.name), "element size",
           "the same for all tensors of a sharded checkpoint", std::string(dtype_name(t.dtype)));
    }
    const uint64_t size = t.size_bytes();
    if (shards_.empty() || (!shards_.back().tensors.empty() && shard_bytes + size > max_shard_bytes)) {
      shards_.emplace_back();
      shard_bytes = 0;
    }
    shard_bytes += size;
    shards_.back().tensors.push_back(t);
  }
  if (shards_.empty()) shards_.emplace_back();
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (shards_.size() == 1) {
      shards_[i].file = "model.safetensors";
    } else {
      char name[64];
      std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards_.size());
      shards_[i].file = name;
    }
  }
  open_next();
}

void ShardedWriter::open_next() {
  // A shard of empty tensors only is complete as soon as it is open.
  while (open_shard_ < shards_.size() && (!writer_ || !writer_->next())) {
    if (writer_) writer_->finish();
    const Shard& shard = shards_[open_shard_++];
    writer_ = std::make_unique<SafetensorsWriter>(folder_ / shard.file, shard.tensors, metadata_);
  }
}

const TensorDecl* ShardedWriter::next() const {
  return writer_ ? writer_->next() : nullptr;
}

void ShardedWriter::append(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (!writer_) fail(ErrorCode::kInvalidArgument, folder_.string(), "data after the last tensor");
  writer_->append(bytes);
  open_next();
}

void ShardedWriter::finish() {
  if (!writer_) fail(ErrorCode::kInvalidArgument, folder_.string(), "finished already");
  writer_->finish();
  writer_.reset();
  if (shards_.size() == 1) return;
  std::map<std::string, std::string> weight_map;
  for (const Shard& shard : shards_) {
    for (const TensorDecl& t : shard.tensors) weight_map.emplace(t.name, shard.file);
  }
  Json index;
  index["metadata"]["total_size"] = total_bytes_;
  index["weight_map"] = weight_map;
  AtomicFile file(folder_ / "model.safetensors.index.json");
  file.write(index.dump(2) + "\n");
  file.commit();
}

}  // namespace qvl::checkpoint
