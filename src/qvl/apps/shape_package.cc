#include "qvl/apps/shape_package.h"

#include "qvl/apps/work_folder.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/export/exporter.h"
#include "qvl/package/package.h"
#include "qvl/synth/synthetic_weights.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kSeed = 0;

class SyntheticInput : public exporting::Input {
 public:
  SyntheticInput(const std::string& shape, fs::path folder, ThreadPool& pool)
      : name_("synthetic " + shape), folder_(std::move(folder)), weights_(shape, kSeed, pool) {}
  const model::ModelConfig& config() const override { return weights_.config(); }
  std::string name() const override { return name_; }
  DType dtype() const override { return DType::kBF16; }
  int64_t parameters() const override { return model::parameter_count(weights_.config()).total; }
  uint64_t weight_bytes() const override { return weights_.total_bytes(); }
  fs::path folder() const override { return folder_; }
  const checkpoint::TensorView& tensor(model::TensorRole role, int layer) const override {
    return weights_.tensor(role, layer);
  }
  void drop(model::TensorRole, int) const override {}

 private:
  std::string name_;
  fs::path folder_;
  mutable synth::SyntheticWeights weights_;
};

// What an export chooses where the features pass its gate; those of random weights say nothing.
constexpr int kVisionActivationBits = 7;

bool usable(const fs::path& folder, bool vision_integers) {
  if (!package::is_package_folder(folder)) return false;
  try {
    const package::Package package = package::Package::open(folder);
    const package::Manifest& manifest = package.manifest();
    const bool shortlist = (manifest.text.precision == "int4" || manifest.text.precision == "int8") &&
                           package.config().text.vocab_size >= exporting::kLargeVocabulary;
    return manifest.qvl_version == QVL_VERSION && manifest.head_shortlist.has_value() == shortlist &&
           (!vision_integers || (manifest.vision.activation_bits == kVisionActivationBits &&
                                 manifest.vision.int8_attention == kVisionActivationBits));
  } catch (const Error&) {
    return false;  // another version's, or damaged: made anew
  }
}

}  // namespace

fs::path shape_package(const ShapeOptions& o, const fs::path& work,
                       const std::function<bool(std::string_view, int64_t, int64_t)>& progress) {
  const fs::path folder = work / fmt::format("{}-text-{}-vision-{}", o.shape, o.text, o.vision);
  const bool vision_integers =
      exporting::parse_stage_precision(o.vision, "--vision") == exporting::StagePrecision::kInt8;
  if (usable(folder, vision_integers)) return folder;
  ThreadPool pool(resolve_threads(o.threads, "bench"));
  const WorkFolder files("", "shape");  // config.json and its companions, for as long as the exporter reads them
  synth::write_config_files(o.shape, files.path());
  const SyntheticInput input(o.shape, files.path(), pool);
  exporting::ExportOptions options;
  options.input = &input;
  options.out = folder;
  options.replace = true;
  options.precision.text = exporting::parse_stage_precision(o.text, "--text");
  options.precision.vision = exporting::parse_stage_precision(o.vision, "--vision");
  options.threads = o.threads;
  options.version = QVL_VERSION;
  options.progress = progress;
  options.verify = [vision_integers](const fs::path&, package::Manifest& manifest) {
    if (vision_integers) manifest.vision.activation_bits = manifest.vision.int8_attention = kVisionActivationBits;
  };
  exporting::export_package(options);
  return folder;
}

}  // namespace qvl::apps
