// A Hugging Face checkpoint folder as published: config files, and one model.safetensors or the shards that
// model.safetensors.index.json lists. Tensors are used in place from the mapped files. Names are normalised
// to the canonical spelling of spec 2 ("model.visual.…", "model.language_model.…", "lm_head.weight").
#pragma once

#include <array>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"

namespace qvl::checkpoint {

// The canonical spelling of a tensor name: a missing leading "model." is added, the Qwen2-VL style
// ("model.layers.…", "model.embed_tokens.…", "model.norm.…") and "language_model.model.…" are mapped to
// "model.language_model.…". A name outside all known families is returned as it is.
std::string canonical_tensor_name(std::string_view name);

struct CheckpointTensor {
  std::string name;                  // canonical
  const TensorView* view = nullptr;  // view->name is the spelling in the file; never null
  size_t file_index = 0;
};

class Checkpoint {
 public:
  // Maps and validates everything but the meaning of the tensors (see model/tensor_table.h for that). If both
  // a single file and an index are there, the single file is taken, as the reference library does, and
  // logged. Throws kNotFound (no folder, no weights, an index or shard that does not exist), kFormat (broken
  // file, index that is not one, shard name that leaves the folder), kMismatch (index and shards disagree, a
  // tensor twice).
  static Checkpoint open(const std::filesystem::path& folder);

  Checkpoint(Checkpoint&&) = default;
  Checkpoint& operator=(Checkpoint&&) = default;

  const std::filesystem::path& folder() const { return folder_; }

  // Every tensor, sorted by canonical name.
  std::span<const CheckpointTensor> tensors() const { return tensors_; }
  std::vector<std::string> names() const;
  // By canonical name; null when absent. The view lives as long as this object (moves keep it).
  const TensorView* find(std::string_view name) const;
  // Throws kNotFound naming folder and tensor; kMismatch naming file and tensor when the shape differs;
  // kUnsupported when the elements are not F32, BF16 or F16.
  const TensorView& get(std::string_view name, const Shape& shape) const;

  // Bytes of tensor data in all files.
  size_t total_bytes() const { return total_bytes_; }
  size_t file_count() const { return files_.size(); }
  // SHA-256 over config.json and, file by file, name, header and stamp (base/file_stamp.h): names the weights without
  // reading them.
  std::string identity() const;
  // How many names had to be rewritten to the canonical spelling.
  size_t renamed_count() const { return renamed_count_; }

  // config.json, parsed once when the folder was opened.
  const Json& config_json() const { return config_; }
  // `name` is a plain file name inside the folder, e.g. "generation_config.json".
  bool has_file(std::string_view name) const;
  std::filesystem::path file_path(std::string_view name) const { return folder_ / name; }

  // Hints for the page cache: read everything ahead / read ahead or give back the pages of one tensor.
  void prefetch() const;
  void prefetch(const CheckpointTensor& tensor) const;
  void drop(const CheckpointTensor& tensor) const;
  // Gives back the pages of all files: they leave this process's memory, not the page cache.
  void drop_all() const;

 private:
  Checkpoint() = default;
  void add_file(SafetensorsFile file);
  void build_index();

  std::filesystem::path folder_;
  Json config_;
  std::vector<SafetensorsFile> files_;
  std::vector<CheckpointTensor> tensors_;
  std::unordered_map<std::string_view, size_t> index_;  // keys point into tensors_
  size_t total_bytes_ = 0;
  size_t renamed_count_ = 0;
};

// Tokenizer and chat template as publishers name them; tokenizer.json is the one that is needed.
inline constexpr std::array<std::string_view, 8> kTokenizerFiles = {
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",    "chat_template.json", "vocab.json",
    "merges.txt",     "added_tokens.json",     "special_tokens_map.json"};

// True when the folder looks like a Hugging Face checkpoint (config.json and safetensors weights or an
// index).
bool is_checkpoint_folder(const std::filesystem::path& folder);

}  // namespace qvl::checkpoint
