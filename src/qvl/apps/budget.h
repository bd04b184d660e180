// Predictions and budgets for `qvl plan` and `qvl run`: this machine's profile, measured once and kept, and the pictures
// that fit.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "qvl/apps/child_process.h"
#include "qvl/apps/cli.h"
#include "qvl/generate/forecast.h"
#include "qvl/generate/pipeline.h"

namespace qvl::apps {

struct BudgetChoice {
  std::optional<double> seconds;
  std::optional<uint64_t> bytes;
  std::string calibration;   // FILE: instead of measuring
  bool calibrate = false;    // measure anew
  bool decoding_now = false;  // decoding is measured again beside a kept profile: memory changes its speed by the minute
  bool asked() const { return seconds || bytes; }
};
// --budget-seconds, --budget-memory, --calibration.
void add_budget_options(CLI::App& app, BudgetChoice& choice);

struct Planned {
  generate::Plan plan;
  generate::SpeedProfile profile;
  std::string profile_source;  // "measured now in 3.2 s", "of 2026-11-29 (FILE)"
  bool memory_known = true;    // of ONNX stages it is not predicted
};

// Predicts `question` (its chunk and counts filled in) for the model in `folder` and, with a budget, chooses the
// pictures. `before`: what is
// resident once the model is open and before pictures are loaded. Measures where nothing is kept for this model, processor, number of
// threads, kernels and version. Throws UsageError for a memory budget with ONNX stages, kLimit when nothing fits,
// kCancelled.
Planned plan_question(const std::filesystem::path& folder, const OpenModel& model, const generate::Question& question,
                      const ResidentMemory& before, const image::PixelOverrides& pixels, const BudgetChoice& choice, ProgressBar& bar);

// Of loaded pictures and the prompt that they are part of.
generate::Question question_of(const generate::Pipeline& pipeline,
                               const std::vector<std::shared_ptr<generate::Visual>>& visuals,
                               const std::vector<generate::ChatMessage>& conversation,
                               const generate::AnswerOptions& options, double preprocess_seconds);

// One line for each picture that became smaller: sizes and tokens, before and after; a token has `token_side_px` pixels
// on each side.
std::vector<std::string> given_up(const generate::Question& question, const generate::Plan& plan,
                                  int64_t token_side_px);

}  // namespace qvl::apps
