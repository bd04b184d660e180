// Opens a package with any mix of native and ONNX stages.

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

}  // namespace

std::shared_ptr<const engine::Engine> open_package(std::shared_ptr<const package::Package> package,
                                                   const EngineChoice& choice,
                                                   const engine::ProgressFn& progress) {
  refuse_precision("vision", choice.vision, choice.vision_dtype);
  refuse_precision("text", choice.text, choice.text_dtype);
  engine::EngineOptions native;
  native.threads = choice.threads;
  native.vision_precision = engine::parse_precision(choice.vision_dtype);
  native.text_precision = engine::parse_precision(choice.text_dtype);
  native.progress = progress;
  auto pool = std::make_shared<ThreadPool>(engine::thread_count(native));
  const auto open = [&](const std::string& engine, const engine::StageSelection& stages) {
    return engine == "onnx" ? engine::ort::open_package(package, ort_options(choice, progress), stages)
                            : engine::native::open_package(package, native, stages, pool);
  };
  const int64_t parameters = package->manifest().source.parameters;
  if (choice.vision == choice.text) {
    const engine::OpenedStages stages = open(choice.vision, {});
    return engine::compose(package->config(), stages, stages, parameters, std::move(pool));
  }
  const engine::OpenedStages vision = open(choice.vision, {.vision = true, .text = false});
  const engine::OpenedStages text = open(choice.text, {.vision = false, .text = true});
  return engine::compose(package->config(), vision, text, parameters, std::move(pool));
}

}  // namespace qvl::apps
