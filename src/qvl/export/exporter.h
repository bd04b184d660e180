// `qvl export`: a checkpoint goes in, a complete package of ONNX graphs, weights, tokenizer and manifest
// comes out, streamed tensor by tensor (design section 4, spec 10). Nothing is traced: graphs follow from the
// configuration alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/export/graphs.h"
#include "qvl/export/input.h"
#include "qvl/export/precision.h"
#include "qvl/package/manifest.h"
#include "qvl/quant/recipe.h"

namespace qvl::exporting {

// Mean square of each input column of a matrix, by canonical tensor name, from running the model on samples.
using Importance = std::map<std::string, std::vector<float>, std::less<>>;

struct StaticImage {
  int64_t width_px = 0, height_px = 0;
};

// Tokens from which on reading the head is what it costs, so that a shortlist of it pays.
inline constexpr int64_t kLargeVocabulary = 16384;

struct ExportOptions {
  std::filesystem::path checkpoint;
  const Input* input = nullptr;  // instead of `checkpoint`; outlives the call
  std::filesystem::path out;
  bool replace = false;  // an existing package at `out` is replaced in one step
  PrecisionOptions precision;
  quant::Recipe recipe = quant::Recipe::kBalanced;  // of integer weights
  Importance importance;                            // empty: all columns alike
  Layout layout = Layout::kQvl;
  bool plain = false;
  int64_t opset = 21;
  int accuracy_level = 4;
  // Whether the package also gets a copy in few bits of a head in 8 bits for the native engine (Manifest::head_shortlist), in layout kQvl.
  // Absent: from kLargeVocabulary on.
  std::optional<bool> head_shortlist;
  std::optional<StaticImage> static_image;
  int64_t static_sequence = 0;  // with static_image: tokens a decoder call takes, and the cache's length
  int64_t static_context = 0;
  std::string version;  // of qvl, for the manifest
  int threads = 0;      // 0: all available; the bytes do not depend on it
  // What is being done ("measuring", "writing"), bytes of the checkpoint done and in all; return false to
  // cancel (kCancelled, nothing is left behind).
  std::function<bool(std::string_view phase, int64_t done, int64_t total)> progress;
  // Called with the folder when everything is in it, before it gets its name. It may leave reports in the manifest
  // (parity, a stage's verdict); what it throws fails the export.
  std::function<void(const std::filesystem::path& folder, package::Manifest& manifest)> verify;
};

struct ExportResult {
  std::filesystem::path folder;
  uint64_t checkpoint_bytes = 0;
  uint64_t package_bytes = 0;
  package::Manifest manifest;
};

// What export_package() says about OUT, before any work: kInvalidArgument, kNotFound.
void check_output(const std::filesystem::path& out, bool replace);

// Throws what opening a checkpoint throws, kInvalidArgument (options that contradict each other, OUT), kLimit
// (disk space), kIo, kUnsupported (a weight that is not finite, a value that the type cannot hold),
// kCancelled.
ExportResult export_package(const ExportOptions& options);

}  // namespace qvl::exporting
