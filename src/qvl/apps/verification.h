// Does a package compute what its checkpoint computes? Hashes, then stored weights, then the engines that
// read the package against the native engine in float32 on the checkpoint. `qvl verify` asks with everything,
// `qvl export` with a few small prompts before the package gets its name (spec 8, 10).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/engine/engine.h"
#include "qvl/export/weight_check.h"
#include "qvl/generate/parity.h"
#include "qvl/generate/parity_cases.h"
#include "qvl/package/package.h"
#include "qvl/source/source.h"

namespace qvl::apps {

struct VerificationOptions {
  std::filesystem::path package;
  std::filesystem::path checkpoint;
  bool hashes = true;
  bool native = true;  // the native engine on the package
  bool onnx = true;    // ONNX Runtime on the package
  // Without ONNX Runtime its engine is skipped, and the report says so; else that is an error.
  bool onnx_may_be_absent = true;
  std::string onnxruntime;  // library or its folder; empty: looked for
  std::string provider = "cpu";
  int threads = 0;
  // With ONNX and a package of fixed shapes only its own picture size is taken.
  generate::ParityCaseOptions cases;
  // Pages of the weights leave this process's memory after every layer: its peak is that of one layer, or of
  // the head, whatever the model's size.
  bool give_back_pages = false;
  // What is being done, how far, in which unit (ProgressBar::update); false cancels (kCancelled).
  std::function<bool(std::string_view label, int64_t done, int64_t total, std::string_view unit)> progress;
};

// The cases of an export: a text, a small picture, two pictures, few tokens after each.
generate::ParityCaseOptions quick_cases();

class Verification {
 public:
  // Opens both. Throws what opening a package and a checkpoint throws.
  explicit Verification(VerificationOptions options);

  // Throws kFormat (a file is not the one that was written), kMismatch (another checkpoint), kCancelled, and
  // what engines throw when they open.
  void run();

  bool passed() const;
  // Each case with its own list of tensors when `every_tensor` is set.
  Json to_json(bool every_tensor) const;
  std::string to_text() const;
  // What is furthest off, for one line on stderr; empty when passed.
  std::string fault() const;
  // Writes the report into the package's manifest.
  void store() const;

 private:
  engine::EngineOptions native_options(std::string label) const;
  engine::ProgressFn progress(std::string label, std::string unit) const;
  void give_back() const;
  std::vector<generate::Candidate> open_candidates();
  void open_native(const generate::Fidelities& fidelities, std::vector<generate::Candidate>& candidates);
  void open_onnx(const generate::Fidelities& fidelities, std::vector<generate::Candidate>& candidates);
  void run_engines();

  VerificationOptions options_;
  std::shared_ptr<const package::Package> package_;
  std::shared_ptr<const source::Source> source_;
  std::shared_ptr<ThreadPool> pool_;
  exporting::WeightReport weights_;
  std::string reference_;
  std::vector<generate::EngineParity> parity_;
  std::vector<std::pair<std::string, std::string>> skipped_;  // engine, reason
};

}  // namespace qvl::apps
