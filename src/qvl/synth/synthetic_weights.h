// The tensors of a released size as seeded random numbers, one at a time and without a file: what `qvl synth` writes,
// for whoever wants the weights elsewhere.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"
#include "qvl/synth/random_weights.h"

namespace qvl::synth {

// How a tensor is distributed (synth.h says how, and why).
WeightSource synthetic_tensor(const model::TensorSpec& spec, uint64_t seed);

// WeightSource::fill on all threads.
void fill(const WeightSource& source, uint64_t first, std::span<BFloat16> out, ThreadPool& pool);

// config.json and the generation, preprocessor and video-preprocessor files of a shape. Throws kInvalidArgument (shape),
// kIo.
void write_config_files(const std::string& shape, const std::filesystem::path& folder);

class SyntheticWeights {
 public:
  // The values are those of write_synthetic_checkpoint() with the same shape and seed. `pool` outlives this. Throws
  // kInvalidArgument (shape).
  SyntheticWeights(const std::string& shape, uint64_t seed, ThreadPool& pool);

  const model::ModelConfig& config() const { return config_; }
  uint64_t total_bytes() const { return total_bytes_; }
  // bf16 with the model's shape; valid until another one is asked for, for which the memory is used again: that of the
  // largest tensor (1.2 GB for 8B) at most. Throws kInvalidArgument (no such tensor), kLimit (memory).
  const checkpoint::TensorView& tensor(model::TensorRole role, int layer);

 private:
  model::ModelConfig config_;
  uint64_t seed_;
  ThreadPool& pool_;
  uint64_t total_bytes_ = 0;
  AlignedBuffer buffer_;
  checkpoint::TensorView view_;
};

}  // namespace qvl::synth
