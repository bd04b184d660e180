// `qvl verify`: does a package compute what the checkpoint computes? Hashes, then stored weights, then the
// engines that read the package against the native engine in float32 on the checkpoint. The report goes into
// the package.

#include <algorithm>
#include <sstream>

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/native/open.h"
#include "qvl/engine/ort/open.h"
#include "qvl/export/weight_check.h"
#include "qvl/generate/parity.h"
#include "qvl/generate/parity_cases.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;
using generate::Fidelity;

struct VerifyOptions {
  std::string package;
  std::string checkpoint;
  std::string sizes;
  std::string engines;
  std::string onnxruntime;
  std::string provider = "cpu";
  int64_t max_tokens = 16;
  int threads = 0;
  bool no_store = false;
  bool json = false;
  bool verbose = false;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  std::stringstream in(list);
  for (std::string part; std::getline(in, part, ',');) out.push_back(part);
  return out;
}

generate::ParityCaseOptions case_options(const VerifyOptions& o, const package::Manifest& manifest) {
  generate::ParityCaseOptions out;
  out.greedy_tokens = o.max_tokens;
  if (!o.sizes.empty()) {
    out.sizes.clear();
    for (const std::string& size : split(o.sizes))
      out.sizes.push_back(generate::parse_picture_size(size, "--sizes"));
  }
  if (!manifest.static_sizes) return out;
  // Fixed shapes take pictures of one size, one at a time.
  if (!o.sizes.empty())
    throw UsageError("--sizes: expected none for a package of fixed shapes (--static), got some");
  out.sizes = {{manifest.static_sizes->image_width_px, manifest.static_sizes->image_height_px}};
  out.several = out.video = false;
  return out;
}

Fidelity fidelity_of(const exporting::WeightCheck& check) {
  if (check.exact()) return Fidelity::kExact;
  if (check.format.kind == quant::Kind::kFloat) {
    return check.format.float_type == DType::kBF16 ? Fidelity::kBF16 : Fidelity::kF16;
  }
  return check.format.bits == 4 ? Fidelity::kInt4 : Fidelity::kInt8;
}

// By the coarsest tensor of each stage. A tied head is the embedding.
generate::Fidelities fidelities_of(const exporting::WeightReport& weights, bool tied_head) {
  generate::Fidelities out;
  for (const exporting::WeightCheck& t : weights.tensors) {
    const bool embedding = t.role == model::TensorRole::kTokenEmbedding;
    Fidelity& stage = model::is_vision_role(t.role) ? out.vision : embedding ? out.embedding : out.decoder;
    stage = std::max(stage, fidelity_of(t));
    if (embedding && tied_head) out.decoder = std::max(out.decoder, fidelity_of(t));
  }
  return out;
}

// Float32 where that needs no second copy of the weights; integers are unpacked to the checkpoint's own type.
engine::Precision native_precision(Fidelity fidelity) {
  return fidelity <= Fidelity::kBF16 ? engine::Precision::kF32 : engine::Precision::kAuto;
}

class Verification {
 public:
  Verification(const VerifyOptions& o, ProgressBar& bar)
      : o_(o),
        bar_(bar),
        explicit_engines_(!o.engines.empty()),
        engines_(split(explicit_engines_ ? o.engines : "native,onnx")),
        package_(std::make_shared<const package::Package>(package::Package::open(o.package))),
        case_options_(case_options(o, package_->manifest())) {}

  void run() {
    package_->verify_hashes(progress("checking hashes", ""));
    engine::EngineOptions options = native_options();
    options.vision_precision = options.text_precision = engine::Precision::kF32;
    options.progress = progress("loading", "");
    reference_ = engine::native::open_checkpoint(o_.checkpoint, options);
    weights_ = exporting::check_weights(*package_, o_.checkpoint, reference_->pool(),
                                        progress("checking weights", ""));
    const generate::Fidelities fidelities = fidelities_of(weights_, package_->tied_head());

    std::vector<generate::Candidate> candidates;
    for (const std::string& name : engines_) {
      if (name == "native") open_native(fidelities, candidates);
      if (name == "onnx") open_onnx(fidelities, candidates);
    }
    const std::vector<generate::ParityCase> cases =
        generate::standard_parity_cases(o_.package, package_->config(), case_options_, &reference_->pool());
    parity_ = generate::measure_parity(*reference_, candidates, cases, progress("comparing", "runs"));
    bar_.clear();
  }

  bool passed() const {
    return weights_.passed() &&
           std::all_of(parity_.begin(), parity_.end(), [](const auto& e) { return e.passed(); });
  }

  Json to_json(bool every_tensor) const {
    Json out;
    out["passed"] = passed();
    out["qvl_version"] = QVL_VERSION;
    out["checkpoint"] = package_->manifest().source.name;
    out["reference"] = fmt::format("{} / {}, {}", reference_->info().vision, reference_->info().text,
                                   reference_->info().isa);
    out["weights"] = weights_.to_json();
    out["engines"] = Json::array();
    for (const generate::EngineParity& e : parity_) out["engines"].push_back(e.to_json(every_tensor));
    out["skipped"] = Json::array();
    for (const auto& [engine, reason] : skipped_)
      out["skipped"].push_back({{"engine", engine}, {"reason", reason}});
    return out;
  }

  std::string to_text() const {
    std::string out =
        fmt::format("package    {}\nreference  {}: vision {}, text {} ({})\n\n", o_.package, o_.checkpoint,
                    reference_->info().vision, reference_->info().text, reference_->info().isa);
    out += weights_.to_text();
    for (const generate::EngineParity& e : parity_) out += "\n" + e.to_text();
    for (const auto& [engine, reason] : skipped_) out += fmt::format("\n{}: skipped: {}\n", engine, reason);
    return out + fmt::format("\n{}\n", passed() ? "PASSED" : "FAILED");
  }

  // One line for stderr.
  std::string fault() const {
    if (const exporting::WeightCheck* w = weights_.worst()) return w->fault();
    for (const generate::EngineParity& e : parity_) {
      if (const generate::ParityFailure* f = e.worst())
        return fmt::format("{} engine, {}", e.name, f->to_text());
    }
    return {};
  }

  void store() const {
    package::Manifest manifest = package_->manifest();
    manifest.parity = to_json(false);
    manifest.save(package_->folder());
  }

 private:
  engine::EngineOptions native_options() const {
    engine::EngineOptions options;
    options.threads = o_.threads;
    return options;
  }

  engine::ProgressFn progress(std::string label, std::string unit) {
    return [this, label = std::move(label), unit = std::move(unit)](int64_t done, int64_t total) {
      bar_.update(label, done, total, unit);
      return !interrupt_flag();
    };
  }

  void open_native(const generate::Fidelities& fidelities, std::vector<generate::Candidate>& candidates) {
    engine::EngineOptions options = native_options();
    options.vision_precision = native_precision(fidelities.vision);
    options.text_precision = native_precision(std::max(fidelities.embedding, fidelities.decoder));
    options.progress = progress("loading the package (native)", "");
    auto pool = std::make_shared<ThreadPool>(engine::thread_count(options));
    const engine::OpenedStages stages = engine::native::open_package(package_, options, {}, pool);
    add("native", stages, stages, pool, fidelities, candidates);
  }

  // Once with each vision graph: whoever has only the .onnx files takes vision.onnx, qvl takes
  // vision_host.onnx.
  void open_onnx(const generate::Fidelities& fidelities, std::vector<generate::Candidate>& candidates) {
    try {
      engine::ort::library_info(o_.onnxruntime);
    } catch (const Error& e) {
      if (explicit_engines_ || !o_.onnxruntime.empty() || e.code() != ErrorCode::kUnsupported) throw;
      skipped_.emplace_back("onnx", e.what());
      return;
    }
    engine::ort::OrtOptions options;
    options.library = o_.onnxruntime;
    options.threads = o_.threads;
    options.provider = o_.provider;
    options.progress = progress("loading the package (onnx)", "");
    const auto pool = std::make_shared<ThreadPool>(engine::thread_count(native_options()));
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
      add(fmt::format("onnx ({}.onnx)", package::graph_name(kind)), vision, text, pool, fidelities,
          candidates);
    }
  }

  void add(std::string name, const engine::OpenedStages& vision, const engine::OpenedStages& text,
           std::shared_ptr<ThreadPool> pool, const generate::Fidelities& fidelities,
           std::vector<generate::Candidate>& candidates) {
    candidates.push_back({std::move(name),
                          engine::compose(package_->config(), vision, text,
                                          package_->manifest().source.parameters, std::move(pool)),
                          fidelities});
  }

  const VerifyOptions& o_;
  ProgressBar& bar_;
  bool explicit_engines_;
  std::vector<std::string> engines_;
  std::shared_ptr<const package::Package> package_;
  generate::ParityCaseOptions case_options_;
  std::shared_ptr<const engine::Engine> reference_;
  exporting::WeightReport weights_;
  std::vector<generate::EngineParity> parity_;
  std::vector<std::pair<std::string, std::string>> skipped_;
};

int verify(const VerifyOptions& o) {
  for (const std::string& name : split(o.engines)) {
    if (name != "native" && name != "onnx")
      throw UsageError(fmt::format("--engines: expected native, onnx or both, got {}", name));
  }
  for (const std::string& size : split(o.sizes)) {
    try {
      generate::parse_picture_size(size, "--sizes");
    } catch (const Error& e) {
      throw UsageError(e.what());
    }
  }
  log_to_stderr(o.verbose);
  catch_interrupts();
  ProgressBar bar;
  Verification verification(o, bar);
  verification.run();
  write_stdout(o.json ? verification.to_json(true).dump(2) + "\n" : verification.to_text());
  if (!o.no_store) verification.store();
  if (verification.passed()) return kExitOk;
  fmt::print(stderr, "qvl: [{}] parity: {}\n", o.package, verification.fault());
  return kExitFailed;
}

}  // namespace

Registration register_verify(CLI::App& app) {
  auto o = std::make_shared<VerifyOptions>();
  CLI::App* command =
      app.add_subcommand("verify", "Prove that a package computes what its checkpoint computes");
  set_usage(*command, "qvl verify PACKAGE --against CHECKPOINT [OPTIONS]");
  command->footer(
      "Hashes of all files, every stored weight against the checkpoint's, then text, pictures and a video "
      "through the native engine\n"
      "in float32 on the checkpoint (the reference) and through each engine on the package: every tensor "
      "that both name, the\n"
      "distributions of all logits and the greedy tokens. Limits follow from the stored precision: weights "
      "that are stored exactly\n"
      "must agree to 3e-5 (features) and 1e-4 (logits) of the largest value; coarser ones by cosine, KL "
      "divergence and first\n"
      "choices. The report is stored in the package (qvl info shows it). Exit code 1 when anything differs.");
  command->add_option("PACKAGE", o->package, "Folder that qvl export made")->required()->type_name("FOLDER");
  command->add_option("--against", o->checkpoint, "The checkpoint it was made from")
      ->required()
      ->type_name("CHECKPOINT");
  command->add_option("--sizes", o->sizes, "Pictures to compare with (default 64x64,256x192,320x480)")
      ->type_name("WxH,WxH,...");
  command
      ->add_option("--engines", o->engines,
                   "native, onnx or both (default: both, onnx if ONNX Runtime is there)")
      ->type_name("LIST");
  command->add_option("--max-tokens", o->max_tokens, "Greedy tokens after each prompt (default 16)")
      ->check(whole_between(0, 4096));
  command
      ->add_option("--onnxruntime", o->onnxruntime,
                   "The library libonnxruntime.so.1, or its folder (default: looked for)")
      ->type_name("PATH");
  command->add_option("--ep", o->provider, "Execution provider of ONNX Runtime (default cpu)")
      ->type_name("NAME");
  command->add_option("--threads", o->threads, "Threads (default: all processors available)")
      ->check(whole_between(1, 1024));
  command->add_flag("--no-store", o->no_store, "Leave the package as it is");
  command->add_flag("--json", o->json, "The whole report as one JSON object");
  command->add_flag("--verbose", o->verbose, "Decisions on stderr");
  return {command, [o] { return verify(*o); }};
}

}  // namespace qvl::apps
