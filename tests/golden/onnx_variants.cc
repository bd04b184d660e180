// The stages from exported packages of several kinds: on ONNX Runtime, native, and mixed.
#include "onnx_variants.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>

#include "golden.h"
#include "qvl/base/error.h"
#include "qvl/engine/native/open.h"
#include "qvl/engine/ort/open.h"
#include "qvl/model/tensor_table.h"

namespace qvl::golden {
namespace {

namespace fs = std::filesystem;
using engine::ort::VisionGraph;
using exporting::ExportOptions;
using exporting::StagePrecision;

struct Kind {
  const char* package;  // of kPackages
  bool onnx_vision;
  bool onnx_text;
  VisionGraph graph = VisionGraph::kAuto;
};

const std::map<std::string, Kind, std::less<>>& kinds() {
  static const std::map<std::string, Kind, std::less<>> all = {
      {"onnx_full", {"fp32", true, true, VisionGraph::kFull}},
      {"onnx_host", {"fp32", true, true, VisionGraph::kHost}},
      {"onnx_plain", {"plain", true, true, VisionGraph::kFull}},
      {"onnx_genai", {"genai", true, true, VisionGraph::kFull}},
      {"onnx_bf16", {"bf16", true, true, VisionGraph::kAuto}},
      {"mix_native_vision", {"fp32", false, true}},
      {"mix_native_text", {"fp32", true, false}},
      {"package_native", {"fp32", false, false}},
      {"package_native_bf16", {"bf16", false, false}},
  };
  return all;
}

// The packages of this process; gone with it.
class Packages {
 public:
  Packages() : folder_(fs::path(QVL_BINARY_DIR) / "tests" / ("packages." + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Packages() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  fs::path make(const std::string& name, ExportOptions options) {
    const fs::path out = folder_ / name;
    if (fs::exists(out)) return out;
    if (options.checkpoint.empty()) options.checkpoint = fixture_path("model");
    options.out = out;
    options.version = "test";
    options.threads = 1;
    exporting::export_package(options);
    return out;
  }

 private:
  fs::path folder_;
};

// Without ONNX Runtime nothing here can run: that is said aloud, and an error where it was asked for.
class NeedsOnnxRuntime : public testing::Environment {
 public:
  void SetUp() override {
    try {
      const auto info = engine::ort::library_info();
      std::cout << "ONNX Runtime " << info.version << " from " << info.path.string() << "\n";
    } catch (const Error& e) {
      if (std::getenv("QVL_REQUIRE_ONNX")) {
        std::cout << "ONNX Runtime is required (QVL_REQUIRE_ONNX): " << e.what() << std::endl;
        std::_Exit(1);
      }
      std::cout << "SKIPPED WITHOUT ONNX RUNTIME: " << e.what() << std::endl;
      std::_Exit(0);
    }
  }
};
const auto* const kEnvironment = testing::AddGlobalTestEnvironment(new NeedsOnnxRuntime);

}  // namespace

ExportOptions float_options(StagePrecision precision) {
  ExportOptions options;
  options.precision.vision = options.precision.text = precision;
  options.recipe = quant::Recipe::kPlain;
  options.opset = 21;
  return options;
}

fs::path tiny_package(const std::string& name) {
  ExportOptions options = float_options(name == "bf16" ? StagePrecision::kBf16 : StagePrecision::kFp32);
  options.plain = name == "plain";
  if (name == "genai") options.layout = exporting::Layout::kGenai;
  if (name == "int") {
    options.precision.vision = StagePrecision::kInt8;
    options.precision.text = StagePrecision::kInt4;
    options.accuracy_level = 0;
  }
  if (name == "static") {
    options.static_image = exporting::StaticImage{256, 256};
    options.static_sequence = 16;
    options.static_context = 128;
  }
  return tiny_package(name, options);
}

fs::path tiny_package(const std::string& name, const ExportOptions& options) {
  static Packages packages;
  return packages.make(name, options);
}

std::shared_ptr<const package::Package> open_tiny(const std::string& name) {
  return std::make_shared<const package::Package>(package::Package::open(tiny_package(name)));
}

std::shared_ptr<const engine::Engine> open_mix(const std::string& name, bool onnx_vision, bool onnx_text,
                                               const engine::ort::OrtOptions& ort,
                                               engine::Precision native_precision) {
  return open_mix(open_tiny(name), onnx_vision, onnx_text, ort, native_precision);
}

std::shared_ptr<const engine::Engine> open_mix(const std::shared_ptr<const package::Package>& package,
                                               bool onnx_vision, bool onnx_text,
                                               const engine::ort::OrtOptions& ort,
                                               engine::Precision native_precision) {
  engine::EngineOptions native;
  native.threads = ort.threads;
  native.vision_precision = native.text_precision = native_precision;
  auto pool = std::make_shared<ThreadPool>(ort.threads > 0 ? ort.threads : 1);
  const auto open = [&](bool onnx, const engine::StageSelection& selection) {
    return onnx ? engine::ort::open_package(package, ort, selection)
                : engine::native::open_package(package, native, selection, pool);
  };
  const auto vision = open(onnx_vision, {.vision = true, .text = false});
  const auto text = open(onnx_text, {.vision = false, .text = true});
  return engine::compose(package->config(), vision, text, package->manifest().source.parameters, pool);
}

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const auto& [name, kind] : kinds()) {
    const bool bf16 = std::string_view(kind.package) == "bf16";
    all.push_back({bf16 ? engine::Precision::kBF16 : engine::Precision::kF32, name});
  }
  return all;
}

std::shared_ptr<const engine::Engine> open_variant(const Variant& variant, int threads) {
  const Kind& kind = kinds().at(variant.kernels);
  engine::ort::OrtOptions options;
  options.threads = threads;
  options.vision_graph = kind.graph;
  const auto engine =
      open_mix(kind.package, kind.onnx_vision, kind.onnx_text, options, engine::Precision::kAuto);
  EXPECT_EQ(engine->info().vision.starts_with("onnx"), kind.onnx_vision);
  EXPECT_EQ(engine->info().text.starts_with("onnx"), kind.onnx_text);
  return engine;
}

std::vector<Variant> small_variants() {
  // The weights are bf16 as in the checkpoint; all of these compute in float32.
  std::vector<Variant> all;
  for (const char* kind : {"onnx_full", "onnx_host", "mix_native_vision", "mix_native_text"})
    all.push_back({engine::Precision::kF32, kind});
  return all;
}

std::shared_ptr<const engine::Engine> open_small(const Variant& variant) {
  const Kind& kind = kinds().at(variant.kernels);
  ExportOptions options = float_options(StagePrecision::kBf16);
  options.checkpoint = small_model_path();
  const auto package =
      std::make_shared<const package::Package>(package::Package::open(tiny_package("small_bf16", options)));
  engine::ort::OrtOptions ort;
  ort.threads = 1;
  ort.vision_graph = kind.graph;
  return open_mix(package, kind.onnx_vision, kind.onnx_text, ort, engine::Precision::kF32);
}

bool traces(const Variant& variant, std::string_view tensor) {
  const Kind& kind = kinds().at(variant.kernels);
  if (tensor.starts_with("layer")) return true;
  if (tensor == "vision.merged" || tensor.starts_with("vision.deepstack")) return true;
  if (!kind.onnx_vision) return true;
  // Blocks stand in a loop body of the full graph.
  return kind.graph != VisionGraph::kFull &&
         (tensor == "vision.pos_embed" || tensor.starts_with("vision.block"));
}

}  // namespace qvl::golden
