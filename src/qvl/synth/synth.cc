#include "qvl/synth/synth.h"

#include <algorithm>
#include <future>
#include <string_view>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/json.h"
#include "qvl/base/partial_folder.h"
#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/checkpoint/checkpoint.h"
#include "qvl/checkpoint/safetensors_writer.h"
#include "qvl/model/public_shapes.h"
#include "qvl/model/tensor_table.h"
#include "qvl/synth/synthetic_weights.h"

namespace qvl::synth {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = size_t{32} << 20;

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
  for (const std::string_view name : checkpoint::kTokenizerFiles) {
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
    fill(source, first_element, {reinterpret_cast<BFloat16*>(buffer.data()), bytes / sizeof(BFloat16)}, pool_);
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
  const model::ModelConfig config = model::public_config(options.shape);
  std::error_code ignored;
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

  PartialFolder folder(options.out_folder);
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
      const WeightSource source = synthetic_tensor(table[i], options.seed);
      const size_t tensor_bytes = decls[i].size_bytes();
      for (size_t begin = 0; begin < tensor_bytes; begin += kChunkBytes) {
        const size_t bytes = std::min(kChunkBytes, tensor_bytes - begin);
        pipe.put(source, begin / sizeof(BFloat16), bytes);
        done += bytes;
        if (options.progress && !options.progress(done, result.weight_bytes)) {
          fail(ErrorCode::kCancelled, folder.target().string(), "stopped; nothing was written");
        }
      }
    }
    pipe.finish();
  }
  writer.finish();
  write_config_files(options.shape, folder.path());
  if (options.tokenizer_folder) copy_tokenizer(*options.tokenizer_folder, folder.path());
  folder.publish();
  return result;
}

}  // namespace qvl::synth
