#include "qvl/apps/stored_weights.h"

#include "qvl/generate/workload.h"
#include "qvl/package/package.h"
#include "qvl/source/source.h"

namespace qvl::apps {
namespace {

StoredWeights sum(const model::ModelConfig& config, bool tied_head, const generate::StoredBytes& stored, int64_t shortlist_bytes) {
  StoredWeights out;
  for (const model::TensorSpec& spec : model::tensor_table(config)) {
    if (model::is_vision_role(spec.role)) out.vision_bytes += stored(spec.role, spec.layer);
  }
  out.decode_bytes = generate::decode_weight_bytes(config, tied_head, stored, shortlist_bytes);
  return out;
}

}  // namespace

StoredWeights stored_weights(const std::filesystem::path& folder, bool shortlist) {
  using model::TensorRole;
  if (package::is_package_folder(folder)) {
    const package::Package package = package::Package::open(folder);
    const auto bytes = [](const package::PackageTensor& t) { return static_cast<int64_t>(t.entry->stored_bytes()); };
    // Of its fine codes little is read.
    int64_t shortlist_bytes = 0;
    if (const auto list = package.head_shortlist(); shortlist && list)
      shortlist_bytes = static_cast<int64_t>(list->parts.coarse.size() + list->parts.scales.size());
    return sum(
        package.config(), package.tied_head(),
        [&](TensorRole role, int layer) { return bytes(package.get(model::tensor_name(role, layer))); }, shortlist_bytes);
  }
  const source::Source source = source::Source::open(folder);
  return sum(
      source.config, source.config.tie_word_embeddings,
      [&](TensorRole role, int layer) { return static_cast<int64_t>(source.tensor(role, layer).bytes.size()); }, 0);
}

}  // namespace qvl::apps
