// A checkpoint opened, checked against the tensor table (spec 2), its head resolved: what the exporter and
// the native engine both start from.
#pragma once

#include <filesystem>
#include <string>

#include "qvl/checkpoint/checkpoint.h"
#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"

namespace qvl::source {

struct Source {
  checkpoint::Checkpoint checkpoint;
  model::ModelConfig config;   // tie_word_embeddings says what holds for these weights
  std::string name;            // of the folder
  DType dtype = DType::kBF16;  // that most bytes have
  int64_t parameters = 0;

  // Throws kNotFound, kFormat, kMismatch, kUnsupported.
  static Source open(const std::filesystem::path& folder);

  const checkpoint::TensorView& tensor(model::TensorRole role, int layer) const;
  // Gives the pages of a tensor back.
  void drop(model::TensorRole role, int layer) const;
};

}  // namespace qvl::source
