#include "qvl/apps/verification.h"

#include <algorithm>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/native/open.h"
#include "qvl/engine/ort/open.h"

namespace qvl::apps {
namespace {

using generate::Candidate;
using generate::Fidelities;
using generate::Fidelity;

Fidelity fidelity_of(const exporting::WeightCheck& check) {
  if (check.exact()) return Fidelity::kExact;
  if (check.stored_as.kind == quant::Kind::kFloat) {
    return check.stored_as.float_type == DType::kBF16 ? Fidelity::kBF16 : Fidelity::kF16;
  }
  return check.stored_as.bits == 4 ? Fidelity::kInt4 : Fidelity::kInt8;
}

// By the coarsest tensor of each stage. A tied head is the embedding.
Fidelities fidelities_of(const exporting::WeightReport& weights, bool tied_head) {
  Fidelities out;
  for (const exporting::WeightCheck& t : weights.tensors) {
    const bool embedding = t.role == model::TensorRole::kTokenEmbedding;
    Fidelity& stage = model::is_vision_role(t.role) ? out.vision : embedding ? out.embedding : out.decoder;
    stage = std::max(stage, fidelity_of(t));
    if (embedding && tied_head) out.decoder = std::max(out.decoder, fidelity_of(t));
  }
  return out;
}

// Float32 where the stored numbers are floats; integers as the engine multiplies them unless told otherwise.
engine::Precision native_precision(Fidelity fidelity) {
  return fidelity <= Fidelity::kBF16 ? engine::Precision::kF32 : engine::Precision::kAuto;
}

// Graphs of fixed shapes take pictures of one size, one at a time.
void restrict_to_static(const package::StaticSizes& sizes, generate::ParityCaseOptions& cases) {
  cases.sizes = {{sizes.image_width_px, sizes.image_height_px}};
  cases.several.clear();
  cases.video = false;
}

}  // namespace

generate::ParityCaseOptions quick_cases() {
  generate::ParityCaseOptions cases;
  cases.sizes = {{64, 64}};
  cases.greedy_tokens = 4;
  cases.texts = 1;
  cases.several = {{96, 64}, {64, 160}};
  cases.video = false;
  return cases;
}

Verification::Verification(VerificationOptions options)
    : options_(std::move(options)),
      package_(std::make_shared<const package::Package>(package::Package::open(options_.package))),
      source_(std::make_shared<const source::Source>(source::Source::open(options_.checkpoint))),
      pool_(std::make_shared<ThreadPool>(resolve_threads(options_.threads, "verify"))) {
  if (options_.onnx && package_->manifest().static_sizes)
    restrict_to_static(*package_->manifest().static_sizes, options_.cases);
}

engine::ProgressFn Verification::progress(std::string label, std::string unit) const {
  return [this, label = std::move(label), unit = std::move(unit)](int64_t done, int64_t total) {
    return !options_.progress || options_.progress(label, done, total, unit);
  };
}

engine::EngineOptions Verification::native_options(std::string label) const {
  engine::EngineOptions options;
  options.threads = options_.threads;
  options.progress = progress(std::move(label), "");
  return options;
}

void Verification::give_back() const {
  package_->drop_all();
  source_->checkpoint.drop_all();
}

void Verification::run() {
  if (options_.hashes) package_->verify_hashes(progress("checking hashes", ""));
  weights_ = exporting::check_weights(*package_, *source_, *pool_, progress("checking weights", ""));
  if (options_.native || options_.onnx) run_engines();
}

void Verification::run_engines() {
  engine::EngineOptions options = native_options("loading");
  options.vision_precision = options.text_precision = engine::Precision::kF32;
  const std::shared_ptr<const engine::Engine> reference = engine::native::open_checkpoint(source_, options);
  reference_ =
      fmt::format("{} / {}, {}", reference->info().vision, reference->info().text, reference->info().isa);
  const std::vector<Candidate> candidates = open_candidates();
  const std::vector<generate::ParityCase> cases = generate::standard_parity_cases(
      options_.package, package_->config(), options_.cases, &reference->pool());
  // The engines report between layers, when nobody reads a weight.
  const engine::ProgressFn report = progress("comparing", "runs");
  parity_ = generate::measure_parity(*reference, candidates, cases, [&](int64_t done, int64_t total) {
    if (options_.give_back_pages) give_back();
    return report(done, total);
  });
}

std::vector<Candidate> Verification::open_candidates() {
  const Fidelities fidelities = fidelities_of(weights_, package_->tied_head());
  std::vector<Candidate> candidates;
  if (options_.native) open_native(fidelities, candidates);
  if (options_.onnx) open_onnx(fidelities, candidates);
  return candidates;
}

void Verification::open_native(const Fidelities& fidelities, std::vector<Candidate>& candidates) {
  engine::EngineOptions options = native_options("loading the package (native)");
  options.vision_precision = native_precision(fidelities.vision);
  options.text_precision = native_precision(std::max(fidelities.embedding, fidelities.decoder));
  const engine::OpenedStages stages = engine::native::open_package(package_, options, {}, pool_);
  candidates.push_back(
      {"native",
       engine::compose(package_->config(), stages, stages, package_->manifest().source.parameters, pool_),
       fidelities});
}

// Once with each vision graph: whoever has only the .onnx files takes vision.onnx, qvl takes
// vision_host.onnx.
void Verification::open_onnx(const Fidelities& fidelities, std::vector<Candidate>& candidates) {
  try {
    engine::ort::library_info(options_.onnxruntime);
  } catch (const Error& e) {
    if (!options_.onnx_may_be_absent || e.code() != ErrorCode::kUnsupported) throw;
    skipped_.emplace_back("onnx", e.what());
    return;
  }
  engine::ort::OrtOptions options;
  options.library = options_.onnxruntime;
  options.threads = options_.threads;
  options.provider = options_.provider;
  options.progress = progress("loading the package (onnx)", "");
  const engine::OpenedStages text =
      engine::ort::open_package(package_, options, {.vision = false, .text = true});
  using engine::ort::VisionGraph;
  using package::GraphKind;
  for (const auto& [kind, graph] : {std::pair(GraphKind::kVisionHost, VisionGraph::kHost),
                                    std::pair(GraphKind::kVision, VisionGraph::kFull)}) {
    if (!package_->has_graph(kind)) continue;
    options.vision_graph = graph;
    const engine::OpenedStages vision =
        engine::ort::open_package(package_, options, {.vision = true, .text = false});
    candidates.push_back(
        {fmt::format("onnx ({}.onnx)", package::graph_name(kind)),
         engine::compose(package_->config(), vision, text, package_->manifest().source.parameters, pool_),
         fidelities});
  }
}

bool Verification::passed() const {
  return weights_.passed() &&
         std::all_of(parity_.begin(), parity_.end(), [](const auto& e) { return e.passed(); });
}

Json Verification::to_json(bool every_tensor) const {
  Json out;
  out["passed"] = passed();
  out["qvl_version"] = QVL_VERSION;
  out["checkpoint"] = package_->manifest().source.name;
  out["reference"] = reference_;
  out["weights"] = weights_.to_json();
  out["engines"] = Json::array();
  for (const generate::EngineParity& e : parity_) out["engines"].push_back(e.to_json(every_tensor));
  out["skipped"] = Json::array();
  for (const auto& [engine, reason] : skipped_)
    out["skipped"].push_back({{"engine", engine}, {"reason", reason}});
  return out;
}

std::string Verification::to_text() const {
  std::string out = fmt::format("package    {}\nreference  {}: {}\n\n", options_.package.string(),
                                options_.checkpoint.string(), reference_);
  out += weights_.to_text();
  for (const generate::EngineParity& e : parity_) out += "\n" + e.to_text();
  for (const auto& [engine, reason] : skipped_) out += fmt::format("\n{}: skipped: {}\n", engine, reason);
  return out + fmt::format("\n{}\n", passed() ? "PASSED" : "FAILED");
}

std::string Verification::fault() const {
  if (const exporting::StoredCheck* w = weights_.worst()) return w->fault();
  for (const generate::EngineParity& e : parity_) {
    if (const generate::ParityFailure* f = e.worst())
      return fmt::format("{} engine, {}", e.name, f->to_text());
  }
  return {};
}

void Verification::store() const {
  package::Manifest manifest = package_->manifest();
  manifest.parity = to_json(false);
  manifest.save(package_->folder());
}

}  // namespace qvl::apps
