// `qvl synth`: a checkpoint folder of a released size with seeded random weights, streamed to disk. It has
// the files, shards, names and shapes of a published one, so that loading, exporting and speed can be worked
// on without it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace qvl::synth {

struct SynthOptions {
  std::string shape;                 // a name of model::public_shape_names()
  std::filesystem::path out_folder;  // must not exist
  uint64_t seed = 0;
  int threads = 0;  // 0: all available; the bytes do not depend on it
  uint64_t max_shard_bytes = 5'000'000'000;
  // Copies tokenizer files and chat template from here. Without it the checkpoint has no tokenizer: token ids
  // (`--ids`, `qvl bench`) work, text prompts do not.
  std::optional<std::filesystem::path> tokenizer_folder;
  // Bytes written, bytes in all; return false to cancel (kCancelled, nothing is left behind).
  std::function<bool(uint64_t done, uint64_t total)> progress;
};

struct SynthResult {
  uint64_t weight_bytes = 0;
  size_t tensors = 0;
  size_t shards = 0;
  bool has_tokenizer = false;
};

// Writes into OUT.partial-XXXXXX and renames it when everything is flushed. Weights are bf16: norm weights 1
// +- 0.1, biases +- 0.02, matrices with variance 1/fan_in, embedding and position table with deviation 0.02:
// activations keep the size they have in trained models. Throws kInvalidArgument (shape, existing OUT),
// kNotFound (no tokenizer there, no parent folder), kLimit (disk space), kIo, kCancelled.
SynthResult write_synthetic_checkpoint(const SynthOptions& options);

}  // namespace qvl::synth
