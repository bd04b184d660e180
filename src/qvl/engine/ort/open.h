// Opens a package with ONNX Runtime: the three stages of engine/stages.h as graphs (package/graph_io.h names
// what goes in and out). ONNX Runtime is opened at run time; a program without it works natively and says how
// to get it.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "qvl/engine/composed.h"
#include "qvl/engine/engine.h"
#include "qvl/package/package.h"

namespace qvl::engine::ort {

// vision.onnx takes all images of a call at once and computes positions itself; vision_host.onnx takes one
// image or video with positions made here.
enum class VisionGraph {
  kAuto,
  kFull,
  kHost
};  // kAuto: host-made positions where the package has that graph

struct OrtOptions {
  // The shared library, or a folder that holds it; empty: QVL_ONNXRUNTIME_LIB, else the places of
  // library_places().
  std::filesystem::path library;
  int threads = 0;  // of each stage; 0: all processors available to the process
  // Execution provider by ONNX Runtime's short name ("cpu", "XNNPACK", "OpenVINO", "CUDA", ...) and its
  // options.
  std::string provider = "cpu";
  std::map<std::string, std::string> provider_options;
  // Session configuration entries as ONNX Runtime names them ("session.disable_prepacking" -> "1").
  std::map<std::string, std::string> session_config;
  VisionGraph vision_graph = VisionGraph::kAuto;
  // Called before each graph is loaded: data bytes done, data bytes in all.
  ProgressFn progress;
};

struct LibraryInfo {
  std::string version;  // "1.32.0"
  std::filesystem::path path;
  std::vector<std::string> providers;  // "CPUExecutionProvider", ...
  int api_version = 0;                 // of the headers that qvl was built with
};

// Opens the library and tells what it is. Throws kUnsupported, naming the places tried and the command that
// fetches it, when there is none, when it is older than qvl's headers, or when qvl was built without them.
LibraryInfo library_info(const std::filesystem::path& library = {});

// Where the library is looked for when nobody names one, in this order.
std::vector<std::filesystem::path> library_places();

// Throws kUnsupported (no library, unknown provider), kNotFound (the package lacks a graph), kFormat (a graph
// that ONNX Runtime refuses), kMismatch (inputs or outputs that are not those of graph_io.h), kCancelled.
OpenedStages open_package(std::shared_ptr<const package::Package> package, const OrtOptions& options,
                          const StageSelection& selection = {});

}  // namespace qvl::engine::ort
