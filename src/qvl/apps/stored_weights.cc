#include "qvl/apps/stored_weights.h"

#include "qvl/generate/workload.h"
#include "qvl/package/package.h"
#include "qvl/source/source.h"

namespace qvl::apps {
namespace {

StoredWeights sum(const model::ModelConfig& config, bool tied_head, const generate::StoredBytes& stored) {
  StoredWeights out;
  for (const model::TensorSpec& spec : model::tensor_table(config)) {
    if (model::is_vision_role(spec.role)) out.vision_bytes += stored(spec.role, spec.layer);
  }
  out.decode_bytes = generate::decode_weight_bytes(config, tied_head, stored);
  return out;
}

}  // namespace

StoredWeights stored_weights(const std::filesystem::path& folder) {
  using model::TensorRole;
  if (package::is_package_folder(folder)) {
    const package::Package package = package::Package::open(folder);
    return sum(package.config(), package.tied_head(), [&](TensorRole role, int layer) {
      const package::PackageTensor& t = package.get(model::tensor_name(role, layer));
      return static_cast<int64_t>(t.data.size() + t.scales.size() + t.zero_points.size());
    });
  }
  const source::Source source = source::Source::open(folder);
  return sum(source.config, source.config.tie_word_embeddings, [&](TensorRole role, int layer) {
    return static_cast<int64_t>(source.tensor(role, layer).bytes.size());
  });
}

}  // namespace qvl::apps
