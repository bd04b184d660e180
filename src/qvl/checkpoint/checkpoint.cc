#include "qvl/checkpoint/checkpoint.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/base/sha256.h"

namespace qvl::checkpoint {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{256} << 20;

bool is_file(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

// A shard must lie in the folder itself: an index from elsewhere must not make us open other files.
void check_shard_name(const std::string& shard, std::string_view tensor, const std::string& index_path) {
  const bool plain = !shard.empty() && shard != "." && shard != ".." &&
                     shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  if (!plain) {
    fail(ErrorCode::kFormat, index_path, "shard of tensor " + quoted_name(tensor),
         "a file name inside the folder", quoted_name(shard));
  }
}

// tensor -> shard, from the index file.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& path) {
  const std::string where = path.string();
  // Not Json: it keeps the order of keys and is slow to fill with very many of them.
  nlohmann::json index;
  try {
    index = nlohmann::json::parse(read_file(path, kMaxIndexBytes));
  } catch (const nlohmann::json::parse_error& e) {
    fail(ErrorCode::kFormat, where, "not valid JSON: byte " + std::to_string(e.byte));
  }
  if (!index.is_object()) fail(ErrorCode::kFormat, where, "index", "a JSON object", index.type_name());
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    fail(ErrorCode::kFormat, where, "key 'weight_map'", "an object from tensor to shard",
         map == index.end() ? "no such key" : map->type_name());
  }
  if (map->empty())
    fail(ErrorCode::kFormat, where, "key 'weight_map'", "at least one tensor", "an empty object");
  std::map<std::string, std::string> result;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      fail(ErrorCode::kFormat, where, "shard of tensor " + quoted_name(tensor), "a string",
           shard.type_name());
    }
    check_shard_name(shard.get_ref<const std::string&>(), tensor, where);
    result.emplace(tensor, shard.get<std::string>());
  }
  return result;
}

// What lies in a folder without weights that we read, to help whoever chose it.
std::string weights_hint(const std::filesystem::path& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string extension = entry.path().extension().string();
    const std::string name = entry.path().filename().string();
    if (extension == ".gguf") return "the folder has " + name + ", a GGUF file";
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
      return "the folder has " + name + ": convert it to safetensors first";
    }
    if (extension == ".safetensors") return "the folder has " + name + " but no index that names it";
  }
  return "is the download complete?";
}

bool starts_with_any(std::string_view s, std::initializer_list<std::string_view> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](std::string_view p) { return s.starts_with(p); });
}

}  // namespace

std::string canonical_tensor_name(std::string_view name) {
  constexpr std::string_view kModel = "model.";
  constexpr std::string_view kText = "language_model.";
  std::string_view rest = name;
  if (rest.starts_with(kModel)) rest.remove_prefix(kModel.size());
  if (rest == "lm_head.weight" || rest == "language_model.lm_head.weight") return "lm_head.weight";
  if (rest.starts_with("visual.")) return std::string(kModel).append(rest);
  if (rest.starts_with(kText)) {
    rest.remove_prefix(kText.size());
    if (rest.starts_with(kModel)) rest.remove_prefix(kModel.size());
    return std::string(kModel).append(kText).append(rest);
  }
  if (starts_with_any(rest, {"layers.", "embed_tokens.", "norm."})) {
    return std::string(kModel).append(kText).append(rest);
  }
  return std::string(name);
}

bool is_checkpoint_folder(const std::filesystem::path& folder) {
  return is_file(folder / "config.json") && (is_file(folder / kSingleFile) || is_file(folder / kIndexFile));
}

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  const std::string where = folder.string();
  std::error_code error;
  if (!std::filesystem::exists(folder, error)) fail(ErrorCode::kNotFound, where, "no such folder");
  if (!std::filesystem::is_directory(folder, error)) {
    fail(ErrorCode::kInvalidArgument, where, "checkpoint", "a folder with config.json and weights", "a file");
  }
  Checkpoint result;
  result.folder_ = folder;
  if (!is_file(folder / "config.json")) {
    fail(ErrorCode::kNotFound, (folder / "config.json").string(), "no such file in the checkpoint folder");
  }
  result.config_ = parse_json_file(folder / "config.json");

  const std::filesystem::path index_path = folder / kIndexFile;
  if (is_file(folder / kSingleFile)) {
    if (is_file(index_path)) {
      log_message(LogLevel::kInfo, where + ": has both " + std::string(kSingleFile) +
                                       " and an index of shards; " + "the single file is used");
    }
    result.add_file(SafetensorsFile::open(folder / kSingleFile));
  } else if (is_file(index_path)) {
    const std::map<std::string, std::string> weight_map = read_weight_map(index_path);
    std::map<std::string, std::string> shards;  // shard -> a tensor of it
    for (const auto& [tensor, shard] : weight_map) shards.emplace(shard, tensor);
    for (const auto& [shard, tensor] : shards) {
      if (!is_file(folder / shard)) {
        fail(ErrorCode::kNotFound, index_path.string(),
             "shard " + quoted_name(shard) + " does not exist, but tensor " + quoted_name(tensor) +
                 " should be in it (is the download complete?)");
      }
      SafetensorsFile file = SafetensorsFile::open(folder / shard);
      for (const TensorView& view : file.tensors()) {
        const auto listed = weight_map.find(view.name);
        if (listed == weight_map.end() || listed->second != shard) {
          fail(ErrorCode::kMismatch, view.where(), "place in " + std::string(kIndexFile), "this file",
               listed == weight_map.end() ? "not listed" : quoted_name(listed->second));
        }
      }
      result.add_file(std::move(file));
    }
    std::map<std::string, const SafetensorsFile*> by_name;
    for (const SafetensorsFile& file : result.files_) by_name.emplace(file.path().filename().string(), &file);
    for (const auto& [tensor, shard] : weight_map) {
      const SafetensorsFile& file = *by_name.at(shard);
      if (!file.find(tensor)) {
        fail(ErrorCode::kMismatch, file.path().string() + ": tensor " + quoted_name(tensor),
             "listed in " + std::string(kIndexFile) + " but not in the file");
      }
    }
  } else {
    fail(ErrorCode::kNotFound, where, "weights", std::string(kSingleFile) + " or " + std::string(kIndexFile),
         "neither", weights_hint(folder));
  }
  result.build_index();
  return result;
}

void Checkpoint::add_file(SafetensorsFile file) {
  total_bytes_ += file.data_bytes();
  files_.push_back(std::move(file));
}

void Checkpoint::build_index() {
  for (size_t f = 0; f < files_.size(); ++f) {
    for (const TensorView& view : files_[f].tensors()) {
      std::string name = canonical_tensor_name(view.name);
      if (name != view.name) ++renamed_count_;
      tensors_.push_back({std::move(name), &view, f});
    }
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const CheckpointTensor& a, const CheckpointTensor& b) { return a.name < b.name; });
  index_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const auto [it, inserted] = index_.emplace(tensors_[i].name, i);
    if (!inserted) {
      const TensorView& first = *tensors_[it->second].view;
      const TensorView& second = *tensors_[i].view;
      fail(ErrorCode::kMismatch, folder_.string() + ": tensor " + quoted_name(tensors_[i].name),
           "there twice: as " + quoted_name(first.name) + " in " + first.file + " and as " +
               quoted_name(second.name) + " in " + second.file);
    }
  }
  if (renamed_count_) {
    log_message(LogLevel::kInfo, folder_.string() + ": " + std::to_string(renamed_count_) +
                                     " tensor names are spelled in another style and were mapped");
  }
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> result;
  result.reserve(tensors_.size());
  for (const CheckpointTensor& t : tensors_) result.push_back(t.name);
  return result;
}

const TensorView* Checkpoint::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : tensors_[it->second].view;
}

const TensorView& Checkpoint::get(std::string_view name, const Shape& shape) const {
  const TensorView* view = find(name);
  if (!view) {
    fail(ErrorCode::kNotFound, folder_.string() + ": tensor " + quoted_name(name), "not in the checkpoint");
  }
  if (view->shape != shape) {
    fail(ErrorCode::kMismatch, view->where(), "shape", shape_string(shape), shape_string(view->shape));
  }
  if (view->dtype != DType::kF32 && view->dtype != DType::kBF16 && view->dtype != DType::kF16) {
    fail(ErrorCode::kUnsupported, view->where(), "element type", "F32, BF16 or F16", dtype_name(view->dtype));
  }
  return *view;
}

bool Checkpoint::has_file(std::string_view name) const {
  return is_file(folder_ / name);
}

std::string Checkpoint::identity() const {
  Sha256 hash;
  hash.add(config_.dump());
  for (const SafetensorsFile& file : files_) {
    hash.add("\n" + file.path().filename().string() + " " + file.mapping().stamp() + "\n");
    hash.add(file.header());
  }
  return "checkpoint " + hash.finish();
}

void Checkpoint::prefetch() const {
  for (const SafetensorsFile& file : files_) file.mapping().will_need(0, file.mapping().bytes().size());
}

void Checkpoint::prefetch(const CheckpointTensor& tensor) const {
  files_[tensor.file_index].will_need(*tensor.view);
}

void Checkpoint::drop(const CheckpointTensor& tensor) const {
  files_[tensor.file_index].drop(*tensor.view);
}

void Checkpoint::drop_all() const {
  for (const SafetensorsFile& file : files_) file.mapping().drop(0, file.mapping().bytes().size());
}

}  // namespace qvl::checkpoint
