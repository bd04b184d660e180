#include "qvl/synth/synth.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <future>
#include <string_view>
#include <vector>

#include "qvl/base/atomic_file.h"
#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/checkpoint/safetensors_writer.h"
#include "qvl/model/public_shapes.h"
#include "qvl/model/tensor_table.h"
#include "qvl/synth/random_weights.h"

namespace qvl::synth {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = size_t{32} << 20;
constexpr size_t kTaskBytes = size_t{1} << 20;
constexpr std::array<std::string_view, 8> kTokenizerFiles = {
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",    "chat_template.json", "vocab.json",
    "merges.txt",     "added_tokens.json",     "special_tokens_map.json"};

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

// A folder under a temporary name beside its target; gone unless published.
class PartialFolder {
 public:
  explicit PartialFolder(const fs::path& target) : target_(target) {
    std::string pattern = target.string() + ".partial-XXXXXX";
    if (!::mkdtemp(pattern.data())) fail_errno(target.string(), "cannot create a folder");
    path_ = pattern;
    const mode_t mask = ::umask(0);
    ::umask(mask);
    ::chmod(path_.c_str(), 0777 & ~mask);
  }
  ~PartialFolder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  const fs::path& path() const { return path_; }

  // Flushes the folder's entries and renames it; never over something that appeared meanwhile.
  void publish() {
    flush(path_);
    int rc = ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_NOREPLACE);
    if (rc != 0 && (errno == EINVAL || errno == ENOSYS) && !is_there(target_)) {  // not every file system can
      rc = ::rename(path_.c_str(), target_.c_str());
    }
    if (rc != 0) fail_errno(target_.string(), "cannot rename the finished folder into place");
    path_.clear();
    flush(target_.has_parent_path() ? target_.parent_path() : fs::path("."));
  }

 private:
  static void flush(const fs::path& folder) {
    const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) fail_errno(folder.string(), "cannot open the folder to flush it");
    const int rc = ::fsync(fd);
    const int saved = errno;
    ::close(fd);
    errno = saved;
    if (rc != 0 && saved != EINVAL) fail_errno(folder.string(), "cannot flush the folder");
  }

  fs::path target_;
  fs::path path_;
};

void write_file(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

WeightSource source_of(const model::TensorSpec& spec, uint64_t seed) {
  switch (spec.precision) {
    case model::PrecisionClass::kNorm: {
      const bool bias = spec.name.ends_with(".bias");
      return {seed, spec.name, bias ? 0.0 : 1.0, bias ? 0.02 : 0.1};
    }
    case model::PrecisionClass::kBias:
    case model::PrecisionClass::kEmbedding:
    case model::PrecisionClass::kPositionTable:
      return {seed, spec.name, 0.0, 0.02};
    case model::PrecisionClass::kMatrix:
      break;
  }
  const int64_t fan_in = element_count(spec.shape) / spec.shape.front();
  return {seed, spec.name, 0.0, 1.0 / std::sqrt(static_cast<double>(fan_in))};
}

// A tokenizer whose pads have other ids than the configuration would build prompts without pictures.
void check_tokenizer(const fs::path& folder, const model::ModelConfig& config, const std::string& shape) {
  const fs::path path = folder / "tokenizer.json";
  const Json json = parse_json_file(path);
  const std::string where = path.string();
  if (!json.is_object() || !json.contains("added_tokens") || !json["added_tokens"].is_array()) {
    fail(ErrorCode::kFormat, where, "key 'added_tokens'", "a list", "none", "not a tokenizer.json");
  }
  for (const auto& [text, id] : {std::pair<std::string_view, int32_t>{"<|image_pad|>", config.image_token_id},
                                 {"<|video_pad|>", config.video_token_id}}) {
    const Json* found = nullptr;
    for (const Json& token : json["added_tokens"]) {
      if (token.is_object() && token.contains("content") && token["content"] == std::string(text))
        found = &token;
    }
    if (!found || !found->contains("id") || (*found)["id"] != id) {
      fail(ErrorCode::kMismatch, where, "id of " + std::string(text),
           std::to_string(id) + ", as in shape " + shape,
           found && found->contains("id") ? (*found)["id"].dump() : "none", "a tokenizer of another model");
    }
  }
}

void copy_tokenizer(const fs::path& from, const fs::path& to) {
  for (const std::string_view name : kTokenizerFiles) {
    std::error_code error;
    if (!fs::is_regular_file(from / name, error)) continue;
    fs::copy_file(from / name, to / name, error);
    if (error) fail(ErrorCode::kIo, (from / name).string(), "cannot copy: " + error.message());
  }
}

// Makes the next chunk while the last one is being written.
class ChunkPipe {
 public:
  ChunkPipe(checkpoint::ShardedWriter& writer, ThreadPool& pool) : writer_(writer), pool_(pool) {
    for (AlignedBuffer& buffer : buffers_) buffer = AlignedBuffer(kChunkBytes);
  }
  ~ChunkPipe() {
    if (pending_.valid()) pending_.wait();  // it uses our buffer
  }
  ChunkPipe(const ChunkPipe&) = delete;
  ChunkPipe& operator=(const ChunkPipe&) = delete;

  void put(const WeightSource& source, uint64_t first_element, size_t bytes) {
    AlignedBuffer& buffer = buffers_[turn_];
    turn_ ^= 1;
    const auto tasks = static_cast<int64_t>((bytes + kTaskBytes - 1) / kTaskBytes);
    pool_.parallel_for(tasks, [&](int64_t task, int) {
      const size_t begin = static_cast<size_t>(task) * kTaskBytes;
      const size_t length = std::min(kTaskBytes, bytes - begin);
      source.fill(first_element + begin / sizeof(BFloat16),
                  {reinterpret_cast<BFloat16*>(buffer.data() + begin), length / sizeof(BFloat16)});
    });
    finish();
    pending_ = std::async(std::launch::async, [this, &buffer, bytes] {
      writer_.append({buffer.data(), bytes});
    });
  }

  void finish() {
    if (pending_.valid()) pending_.get();
  }

 private:
  checkpoint::ShardedWriter& writer_;
  ThreadPool& pool_;
  AlignedBuffer buffers_[2];
  int turn_ = 0;
  std::future<void> pending_;
};

}  // namespace

SynthResult write_synthetic_checkpoint(const SynthOptions& options) {
  const std::string shape_config = model::public_config_json(options.shape);
  const model::ModelConfig config = model::public_config(options.shape);
  fs::path target = options.out_folder;
  if (!target.has_filename()) target = target.parent_path();  // "out/" means "out"
  if (target.empty())
    fail(ErrorCode::kInvalidArgument, "synth", "output", "the name of a new folder", "nothing");
  if (is_there(target)) {
    fail(ErrorCode::kInvalidArgument, target.string(), "output", "a folder that does not exist yet",
         "an existing one", "remove it or choose another name");
  }
  const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
  std::error_code ignored;
  if (!fs::is_directory(parent, ignored))
    fail(ErrorCode::kNotFound, parent.string(), "no such folder for the output");
  if (options.tokenizer_folder) {
    if (!fs::is_regular_file(*options.tokenizer_folder / "tokenizer.json", ignored)) {
      fail(ErrorCode::kNotFound, (*options.tokenizer_folder / "tokenizer.json").string(),
           "no such tokenizer file");
    }
    check_tokenizer(*options.tokenizer_folder, config, options.shape);
  }

  const std::vector<model::TensorSpec> table = model::tensor_table(config);
  std::vector<checkpoint::TensorDecl> decls;
  decls.reserve(table.size());
  for (const model::TensorSpec& spec : table) decls.push_back({spec.name, DType::kBF16, spec.shape});

  PartialFolder folder(target);
  checkpoint::ShardedWriter writer(
      folder.path(), decls, options.max_shard_bytes,
      {{"format", "pt"}, {"qvl.synth", "shape " + options.shape + ", seed " + std::to_string(options.seed)}});
  SynthResult result;
  result.tensors = table.size();
  result.shards = writer.shard_count();
  result.weight_bytes = writer.total_bytes();
  result.has_tokenizer = options.tokenizer_folder.has_value();
  {
    ThreadPool pool(options.threads > 0 ? options.threads : available_processors());
    ChunkPipe pipe(writer, pool);
    uint64_t done = 0;
    for (size_t i = 0; i < table.size(); ++i) {
      const WeightSource source = source_of(table[i], options.seed);
      const size_t tensor_bytes = decls[i].size_bytes();
      for (size_t begin = 0; begin < tensor_bytes; begin += kChunkBytes) {
        const size_t bytes = std::min(kChunkBytes, tensor_bytes - begin);
        pipe.put(source, begin / sizeof(BFloat16), bytes);
        done += bytes;
        if (options.progress && !options.progress(done, result.weight_bytes)) {
          fail(ErrorCode::kCancelled, target.string(), "stopped; nothing was written");
        }
      }
    }
    pipe.finish();
  }
  writer.finish();
  write_file(folder.path() / "config.json", shape_config);
  write_file(folder.path() / "generation_config.json", model::public_generation_config_json(options.shape));
  write_file(folder.path() / "preprocessor_config.json", model::public_preprocessor_config_json());
  write_file(folder.path() / "video_preprocessor_config.json",
             model::public_video_preprocessor_config_json());
  if (options.tokenizer_folder) copy_tokenizer(*options.tokenizer_folder, folder.path());
  folder.publish();
  return result;
}

}  // namespace qvl::synth
