// What the exporter reads: a checkpoint, or weights that are made as they are asked for, so that a package for
// work on speed needs no checkpoint on the disk first (`qvl bench --shape`).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "qvl/checkpoint/safetensors.h"
#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"
#include "qvl/source/source.h"

namespace qvl::exporting {

class Input {
 public:
  virtual ~Input() = default;
  virtual const model::ModelConfig& config() const = 0;
  virtual std::string name() const = 0;
  virtual DType dtype() const = 0;  // that most bytes have
  virtual int64_t parameters() const = 0;
  virtual uint64_t weight_bytes() const = 0;
  // Holds config.json and, as far as there are any, the other configuration and tokenizer files.
  virtual std::filesystem::path folder() const = 0;
  // The tensor with its model's shape; valid until another one is asked for. Throws what reading it throws.
  virtual const checkpoint::TensorView& tensor(model::TensorRole role, int layer) const = 0;
  // Done with, for now: pages of it may be given back. The view stays valid.
  virtual void drop(model::TensorRole role, int layer) const = 0;
};

std::unique_ptr<const Input> checkpoint_input(source::Source source);

}  // namespace qvl::exporting
