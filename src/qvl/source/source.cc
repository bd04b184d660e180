#include "qvl/source/source.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "qvl/base/error.h"

namespace qvl::source {
namespace {

DType dominant_dtype(const checkpoint::Checkpoint& checkpoint) {
  size_t bf16 = 0, f16 = 0, f32 = 0;
  for (const checkpoint::CheckpointTensor& t : checkpoint.tensors()) {
    if (t.view->dtype == DType::kBF16) bf16 += t.view->bytes.size();
    if (t.view->dtype == DType::kF16) f16 += t.view->bytes.size();
    if (t.view->dtype == DType::kF32) f32 += t.view->bytes.size();
  }
  if (bf16 >= f16 && bf16 >= f32) return DType::kBF16;
  return f16 >= f32 ? DType::kF16 : DType::kF32;
}

}  // namespace

Source Source::open(const std::filesystem::path& folder) {
  checkpoint::Checkpoint checkpoint = checkpoint::Checkpoint::open(folder);
  model::ModelConfig config =
      model::ModelConfig::from_json(checkpoint.config_json(), (folder / "config.json").string());
  std::vector<model::FoundTensor> found;
  for (const checkpoint::CheckpointTensor& t : checkpoint.tensors()) {
    found.push_back({t.name, t.view->dtype, t.view->shape, t.view->file, t.view->name});
  }
  const model::CheckpointMatch match = model::check_checkpoint(config, found, folder.string());
  if (match.redundant_head) {
    const auto* head = checkpoint.find(model::tensor_name(model::TensorRole::kLmHead));
    const auto* embedding = checkpoint.find(model::tensor_name(model::TensorRole::kTokenEmbedding));
    if (head->dtype != embedding->dtype || !std::ranges::equal(head->bytes, embedding->bytes)) {
      model::fail_different_head(folder.string(), head->file);
    }
    checkpoint.drop_all();
  }
  config.tie_word_embeddings = match.tied_head;
  const DType dtype = dominant_dtype(checkpoint);
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::weakly_canonical(folder, error);
  return {std::move(checkpoint), std::move(config), absolute.filename().string(), dtype, match.parameters};
}

const checkpoint::TensorView& Source::tensor(model::TensorRole role, int layer) const {
  return checkpoint.get(model::tensor_name(role, layer), model::tensor_shape(config, role));
}

void Source::drop(model::TensorRole role, int layer) const {
  const std::string tensor_name = model::tensor_name(role, layer);
  for (const checkpoint::CheckpointTensor& t : checkpoint.tensors()) {
    if (t.name == tensor_name) checkpoint.drop(t);
  }
}

}  // namespace qvl::source
