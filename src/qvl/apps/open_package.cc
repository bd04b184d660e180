// Opens a package with any mix of native and ONNX stages, or some stages of any folder.

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/native/open.h"
#include "qvl/engine/ort/open.h"

namespace qvl::apps {
namespace {

std::map<std::string, std::string> key_values(std::string_view option,
                                              const std::vector<std::string>& given) {
  std::map<std::string, std::string> out;
  for (const std::string& text : given) {
    const size_t at = text.find('=');
    if (at == 0 || at == text.npos)
      throw UsageError(fmt::format("{}: expected KEY=VALUE, got '{}'", option, text));
    if (!out.emplace(text.substr(0, at), text.substr(at + 1)).second) {
      throw UsageError(fmt::format("{}: '{}' is given twice", option, text.substr(0, at)));
    }
  }
  return out;
}

engine::ort::OrtOptions ort_options(const EngineChoice& choice, const engine::ProgressFn& progress) {
  engine::ort::OrtOptions options;
  options.library = choice.onnxruntime;
  options.threads = choice.threads;
  options.provider = choice.provider;
  options.provider_options = key_values("--ep-option", choice.provider_options);
  options.session_config = key_values("--ort-config", choice.session_config);
  options.vision_graph = choice.vision_graph == "full"   ? engine::ort::VisionGraph::kFull
                         : choice.vision_graph == "host" ? engine::ort::VisionGraph::kHost
                                                         : engine::ort::VisionGraph::kAuto;
  options.progress = progress;
  return options;
}

void refuse_precision(std::string_view stage, const std::string& engine, const std::string& dtype) {
  if (engine != "onnx" || dtype == "auto") return;
  throw UsageError(fmt::format(
      "--{}-dtype: expected auto with --{} onnx, got {} (qvl export decides an ONNX stage's precision)",
      stage, stage, dtype));
}

void refuse_kv(const EngineChoice& choice) {
  if (choice.text != "onnx" || choice.kv == "auto") return;
  throw UsageError(fmt::format(
      "--kv: expected auto with --text onnx, got {} (the exported decoder's graph keeps float32 keys and values)",
      choice.kv));
}

struct PackageOpener {
  const std::shared_ptr<const package::Package>& package;
  const EngineChoice& choice;
  engine::ProgressFn progress;
  const engine::EngineOptions& native;
  const std::shared_ptr<ThreadPool>& pool;

  engine::OpenedStages open(const std::string& engine, const engine::StageSelection& stages) const {
    if (stages.vision) refuse_precision("vision", choice.vision, choice.vision_dtype);
    if (stages.text) refuse_precision("text", choice.text, choice.text_dtype), refuse_kv(choice);
    return engine == "onnx" ? engine::ort::open_package(package, ort_options(choice, progress), stages)
                            : engine::native::open_package(package, native, stages, pool);
  }
};

}  // namespace

engine::EngineOptions native_options(const EngineChoice& choice, const engine::ProgressFn& progress) {
  engine::EngineOptions native;
  native.threads = choice.threads;
  native.vision_precision = engine::parse_precision(choice.vision_dtype);
  native.text_precision = engine::parse_precision(choice.text_dtype);
  native.kv = engine::parse_kv_type(choice.kv);
  native.progress = progress;
  return native;
}

std::shared_ptr<const engine::Engine> open_package(std::shared_ptr<const package::Package> package,
                                                   const EngineChoice& choice,
                                                   const engine::ProgressFn& progress) {
  const engine::EngineOptions native = native_options(choice, progress);
  auto pool = std::make_shared<ThreadPool>(engine::thread_count(native));
  const PackageOpener opener{package, choice, progress, native, pool};
  const int64_t parameters = package->manifest().source.parameters;
  if (choice.vision == choice.text) {
    const engine::OpenedStages stages = opener.open(choice.vision, {});
    return engine::compose(package->config(), stages, stages, parameters, std::move(pool));
  }
  const engine::OpenedStages vision = opener.open(choice.vision, {.vision = true, .text = false});
  const engine::OpenedStages text = opener.open(choice.text, {.vision = false, .text = true});
  return engine::compose(package->config(), vision, text, parameters, std::move(pool));
}

void refuse_onnx_of_checkpoint(const std::filesystem::path& folder, const EngineChoice& choice) {
  for (const auto& [option, value] :
       {std::pair("--vision", &choice.vision), std::pair("--text", &choice.text)}) {
    if (*value != "onnx") continue;
    fail(ErrorCode::kUnsupported, folder.string(),
         fmt::format("{} onnx needs a package, this is a checkpoint (qvl export {} OUT makes one)", option,
                     folder.string()));
  }
}

OpenStages open_stages(const std::filesystem::path& folder, const EngineChoice& choice,
                       const engine::StageSelection& selection) {
  OpenStages out;
  const engine::EngineOptions native = native_options(choice, {});
  if (!package::is_package_folder(folder)) {
    refuse_onnx_of_checkpoint(folder, choice);
    out.engine = engine::native::open_checkpoint(folder, native);
    out.config = out.engine->config();
    // The engine keeps its stages alive; weights are mapped, so those that are not used cost nothing.
    if (selection.vision) out.vision = {out.engine, &out.engine->vision()};
    if (selection.text) out.embed = {out.engine, &out.engine->embed()}, out.decoder = {out.engine, &out.engine->decoder()};
    out.vision_name = out.engine->info().vision;
    out.text_name = out.engine->info().text;
    out.isa = out.engine->info().isa;
    out.kv_dtype = out.engine->info().kv_dtype;
    out.pool = {out.engine, &out.engine->pool()};
    return out;
  }
  const auto package = std::make_shared<const package::Package>(package::Package::open(folder));
  out.config = package->config();
  out.pool = std::make_shared<ThreadPool>(engine::thread_count(native));
  const PackageOpener opener{package, choice, {}, native, out.pool};
  engine::OpenedStages seeing, saying;
  if (selection.vision) {
    seeing = opener.open(choice.vision, {.vision = true, .text = false});
    out.vision = seeing.vision, out.vision_name = seeing.vision_name, out.isa = seeing.isa;
  }
  if (selection.text) {
    saying = opener.open(choice.text, {.vision = false, .text = true});
    out.embed = saying.embed, out.decoder = saying.decoder, out.text_name = saying.text_name;
    out.kv_dtype = saying.kv_dtype;
    out.isa = out.isa.empty() || out.isa == saying.isa ? saying.isa : out.isa + " + " + saying.isa;
  }
  if (selection.vision && selection.text)
    out.engine = engine::compose(out.config, seeing, saying, package->manifest().source.parameters, out.pool);
  return out;
}

}  // namespace qvl::apps
