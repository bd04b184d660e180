// Where the native stages find their weights: a Hugging Face checkpoint or an exported package, both mapped.
// Tensors are asked for by role and come as they are stored (spec 2, 10).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "qvl/base/dtype.h"
#include "qvl/kernels/shortlist.h"
#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"
#include "qvl/package/package.h"
#include "qvl/quant/format.h"
#include "qvl/source/source.h"

namespace qvl::engine::native {

// A stored tensor: matrices of any rank as [rows, columns] = [shape[0], rest], vectors as one row. The bytes
// live as long as the source and need not be aligned to their elements.
struct SourceTensor {
  quant::Format format;
  int64_t rows = 0;
  int64_t columns = 0;
  std::span<const std::byte> data;
  std::span<const std::byte> scales;       // as the format says
  std::span<const std::byte> zero_points;  // as the format says

  size_t bytes() const { return data.size() + scales.size() + zero_points.size(); }
};

// Copies row `row` of an integer matrix as it is stored: its data, scales and zero points, each as much as a row has. Reads the
// file rather than the mapping, whose pages would become memory of the process, 2 MiB for a row. Thread-safe; throws kIo.
using ReadStoredRow = std::function<void(int64_t row, std::byte* data, std::byte* scales, std::byte* zero_points)>;

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const model::ModelConfig& config() const = 0;
  virtual bool tied_head() const = 0;
  // Throws kNotFound, kMismatch, kUnsupported naming file and tensor.
  virtual SourceTensor find(model::TensorRole role, int layer) const = 0;
  // Gives the pages of a tensor back to the system; reading it brings them again.
  virtual void drop(model::TensorRole role, int layer) const = 0;
  // The head in few bits (package::Manifest::head_shortlist), and giving back its pages; none in a checkpoint.
  virtual std::optional<kernels::Shortlist> head_shortlist() const { return std::nullopt; }
  virtual void drop_head_shortlist() const {}
  // Of the token embedding and, where it is another, the head; only with a shortlist. The source outlives what it returns.
  virtual ReadStoredRow row_reader(model::TensorRole) const { return {}; }
  // BF16, F16 or F32: the precision that a stage's publisher chose, for Precision::kAuto.
  virtual DType stage_type(bool vision) const = 0;
  // Of the codes that activations become before integer weights, 8 or 7, as the publisher chose.
  virtual int activation_bits(bool vision) const = 0;
  // As StageEntry::int8_attention of the vision stage: 0, 7 or 8.
  virtual int int8_attention() const = 0;
  // Names configuration and weights: other weights, or the same files touched since, have another one. Made from the
  // headers and stamps of the files, without reading the weights.
  virtual std::string identity() const = 0;

  // Stored bytes of one stage, the head's shortlist not counted; embedding, decoder and head are the other.
  int64_t stage_bytes(bool vision) const;
  // Of both stages; a tied head counts once.
  int64_t parameters() const;
};

// Opening either has compared it with the tensor table.
std::shared_ptr<const TensorSource> checkpoint_source(std::shared_ptr<const source::Source> source);
std::shared_ptr<const TensorSource> package_source(std::shared_ptr<const package::Package> package);

}  // namespace qvl::engine::native
