// Decides, before a byte is written, how every tensor of the model is stored and where: graphs refer to the
// places, the exporter then streams the checkpoint through them once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qvl/model/config.h"
#include "qvl/model/tensor_table.h"
#include "qvl/onnx/graph_builder.h"
#include "qvl/package/manifest.h"
#include "qvl/quant/format.h"

namespace qvl::exporting {

// A tensor of the checkpoint as the manifest will list it, and its part in the model.
struct StoredTensor : package::TensorEntry {
  model::TensorRole role = model::TensorRole::kPatchEmbedWeight;
  int layer = -1;
};

// What reports call the head's shortlist, and its format.
inline constexpr const char* kShortlistName = "head_shortlist";
inline constexpr const char* kShortlistFormat = "2 + 2 bits";

// The format of a tensor; chosen by recipe, precision options and sensitivity.
using FormatChooser = std::function<quant::Format(const model::TensorSpec&)>;

class WeightPlan {
 public:
  WeightPlan(const model::ModelConfig& config, FormatChooser chooser);

  const model::ModelConfig& config() const { return config_; }
  // Declares the tensor on first use (64-byte aligned place at the end of its stage's file) and returns it.
  // The reference stays valid. A tied head is the token embedding: use head().
  const StoredTensor& store(model::TensorRole role, int layer = -1);
  // lm_head.weight or, when tied, the token embedding.
  const StoredTensor& head();
  // The head once more in few bits, for the native engine (Manifest::head_shortlist): behind everything declared so far,
  // and not one of tensors(). At most once.
  const package::ShortlistEntry& store_head_shortlist();

  // In the order of their declaration.
  std::span<const StoredTensor* const> tensors() const { return order_; }
  // Bytes that a data file will have.
  const std::map<std::string, uint64_t>& file_bytes() const { return file_bytes_; }

 private:
  // The next place in a file.
  package::TensorPart place_part(const char* file, std::string initializer, DType type, Shape shape, uint64_t length);
  // Gives the parts of a tensor whose format, rows and columns are known their places; `vector`: of one dimension.
  void place(StoredTensor& tensor, bool vector);

  const model::ModelConfig& config_;
  FormatChooser chooser_;
  std::map<std::pair<model::TensorRole, int>, StoredTensor> stored_;
  std::vector<const StoredTensor*> order_;
  std::optional<package::ShortlistEntry> head_shortlist_;
  std::map<std::string, uint64_t> file_bytes_;
};

onnx::ExternalData external(const package::TensorPart& part);

// Declares the part in the graph.
onnx::Value declare(onnx::GraphBuilder& graph, const package::TensorPart& part);

// Scales of blocks in float32: `stored` has those of rows, [.., Format::scale_count] of scale_type; the result is [.., blocks].
onnx::Value scales_f32(onnx::GraphBuilder& graph, onnx::Value stored, const StoredTensor& weight);

struct LinearOptions {
  // accuracy_level of MatMulNBits: 0 exact float32, 4 activations in int8 per block.
  int accuracy_level = 4;
  // Standard operators only: DequantizeLinear in front of Gemm instead of contrib operators.
  bool plain = false;
};

// y [rows of x, N] = x [.., K] * W^T + bias, by the operator that fits the format: Gemm (transB) on 2-D x for
// floats (a Cast in front for bf16 and f16), MatMulNBits for blocks, DynamicQuantizeLinear + MatMulInteger
// for int8 rows. x must be 2-D [n, K]; the result is 2-D [n, N]. `bias` may be empty.
onnx::Value linear(onnx::GraphBuilder& graph, onnx::Value x, const StoredTensor& weight,
                   const StoredTensor* bias, const LinearOptions& options);

// A vector or small table in float32 (Cast where it is stored narrower).
onnx::Value dense(onnx::GraphBuilder& graph, const StoredTensor& tensor);

}  // namespace qvl::exporting
