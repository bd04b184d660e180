#include "qvl/engine/ort/open.h"

#include <sys/stat.h>

#include <utility>

#include "qvl/base/error.h"
#include "qvl/base/file_stamp.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/engine/ort/runtime.h"
#include "qvl/engine/ort/text.h"
#include "qvl/engine/ort/vision.h"
#include "qvl/model/tensor_table.h"

namespace qvl::engine::ort {
namespace {

using package::GraphKind;

// Stored bytes of one stage.
int64_t stage_bytes(const package::Package& p, bool vision) {
  uint64_t total = 0;
  for (const model::TensorSpec& spec : model::tensor_table(p.config())) {
    const package::PackageTensor* t = p.find(spec.name);
    if (t && model::is_vision_role(spec.role) == vision) total += t->entry->stored_bytes();
  }
  return static_cast<int64_t>(total);
}

GraphKind vision_kind(const package::Package& p, VisionGraph choice) {
  switch (choice) {
    case VisionGraph::kFull:
      return GraphKind::kVision;
    case VisionGraph::kHost:
      return GraphKind::kVisionHost;
    case VisionGraph::kAuto:
      break;
  }
  return p.has_graph(GraphKind::kVisionHost) ? GraphKind::kVisionHost : GraphKind::kVision;
}

}  // namespace

OpenedStages open_package(std::shared_ptr<const package::Package> package, const OrtOptions& options,
                          const StageSelection& selection) {
  const std::shared_ptr<const Runtime> runtime = Runtime::load(options.library);
  const package::Manifest& manifest = package->manifest();
  const int64_t vision_bytes = selection.vision ? stage_bytes(*package, true) : 0;
  const int64_t text_bytes = selection.text ? stage_bytes(*package, false) : 0;
  int64_t done = 0;
  const auto load = [&](GraphKind kind, int64_t bytes) {
    if (options.progress && !options.progress(done, vision_bytes + text_bytes))
      fail(ErrorCode::kCancelled, "load", "cancelled");
    auto graph = std::make_shared<const Graph>(runtime, package->graph_path(kind), options);
    done += bytes;
    return graph;
  };

  // Unlike ours, its results may depend on the number of threads.
  const std::string weights = package->identity();
  const auto identity = [&](GraphKind kind) {
    struct stat status {};
    const std::filesystem::path graph = package->graph_path(kind);
    if (::stat(graph.c_str(), &status) != 0) fail_errno(graph.string(), "cannot stat");
    std::string out = cat("onnxruntime ", runtime->info().version, ", ", options.provider, ", ", options.threads,
                          " threads, ", package::graph_name(kind), " ", file_stamp(status), ", ",
                          weights);
    for (const auto& [key, value] : options.provider_options) out += cat(", ", key, "=", value);
    for (const auto& [key, value] : options.session_config) out += cat(", ", key, "=", value);
    return out;
  };

  OpenedStages stages;
  stages.isa = "onnxruntime " + runtime->info().version;
  const std::string provider =
      options.provider.empty() || options.provider == "cpu" ? "" : " " + options.provider;
  if (selection.vision) {
    const GraphKind kind = vision_kind(*package, options.vision_graph);
    stages.vision =
        std::make_shared<OrtVision>(package, load(kind, vision_bytes), kind == GraphKind::kVisionHost);
    stages.vision_identity = identity(kind);
    stages.vision_name = "onnx " + manifest.vision.precision + provider;
  }
  if (selection.text) {
    stages.embed = std::make_shared<OrtEmbed>(package, load(GraphKind::kEmbedding, 0));
    stages.decoder = std::make_shared<OrtDecoder>(package, load(GraphKind::kDecoder, text_bytes));
    stages.text_identity = identity(GraphKind::kDecoder);
    stages.text_name = "onnx " + manifest.text.precision + provider;
  }
  stages.weight_bytes = vision_bytes + text_bytes;
  if (options.progress) options.progress(done, vision_bytes + text_bytes);
  log_message(LogLevel::kInfo, stages.isa + " from " + runtime->info().path.string());
  return stages;
}

}  // namespace qvl::engine::ort
