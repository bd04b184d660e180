// Does one engine compute what another one does? Both run the same prompts, every intermediate tensor that
// both name is compared, and limits that follow from how coarse the candidate's weights are decide (`qvl
// verify`). Docs: spec 8, 10.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/trace.h"

namespace qvl::generate {

// A prompt that both engines run. standard_parity_cases() (parity_cases.h) makes a set of them.
struct ParityCase {
  std::string name;  // "picture 64x64"
  TraceInput input;
  int64_t greedy_tokens = 16;
};

// What was done to the weights of a stage, from harmless to coarse.
enum class Fidelity : uint8_t {
  kExact,  // the same numbers as the reference, computed in float32
  kF16,
  kBF16,
  kInt8,
  kInt4,
};
std::string_view fidelity_name(Fidelity fidelity);  // "exact", "fp16", "bf16", "int8", "int4"

// Of the three stages. What one stage makes is input of the next: a stage is judged by the coarsest one up to
// it.
struct Fidelities {
  Fidelity vision = Fidelity::kExact;
  Fidelity embedding = Fidelity::kExact;
  Fidelity decoder = Fidelity::kExact;
};

// What a healthy candidate keeps. "error" is the largest absolute difference divided by the largest magnitude
// of the reference's tensor; the cosine is that of the whole tensors.
struct ParityLimits {
  double feature_error = 0;  // every tensor but logits
  double logits_error = 0;
  double feature_cosine = 0;  // at least
  double logits_cosine = 0;
  double mean_kl_nats = 0;  // over positions, reference || candidate
  double max_kl_nats = 0;
  double sure_top1 =
      0;  // share of positions where the reference is sure (kSureProbability) and the first choice agrees
};
ParityLimits parity_limits(Fidelity fidelity);

// A first choice with at least this probability is one that small errors must not change; a coin toss says
// nothing.
inline constexpr double kSureProbability = 0.5;

enum class ParityStage : uint8_t { kVision, kEmbed, kDecoder };
std::string_view parity_stage_name(ParityStage stage);  // "vision", "embed", "decoder"

// Differences of one tensor. Anything that is not finite in the candidate makes the errors infinite and the
// cosine 0.
struct TensorParity {
  std::string name;
  ParityStage stage = ParityStage::kVision;
  int64_t count = 0;
  double max_error = 0;  // largest |candidate - reference|
  double mean_error = 0;
  double reference_max = 0;  // largest |reference|
  double reference_rms = 0;
  double relative_error = 0;  // max_error / reference_max
  double relative_rms = 0;    // rms of the difference / reference_rms
  double cosine = 1;
};

// The logits of all positions of a prompt as distributions.
struct LogitsParity {
  int64_t positions = 0;
  double mean_kl_nats = 0;
  double max_kl_nats = 0;
  int64_t top1_equal = 0;
  int64_t sure = 0;           // positions where the reference is sure
  int64_t sure_equal = 0;     // of these, the first choice agrees
  int64_t greedy_tokens = 0;  // generated after the prompt
  int64_t greedy_equal = 0;   // how many from the start are equal
};

// A limit that was not kept.
struct ParityFailure {
  std::string case_name;
  std::string tensor;   // or "logits"
  std::string measure;  // "relative error", "cosine", "mean KL", ...
  double got = 0;
  double limit = 0;
  double excess = 0;    // how many times too bad: above 1; what worst() compares
  std::string message;  // instead of numbers: the engine refused, a tensor is missing or has another shape
  std::string to_text() const;  // "case 'picture 64x64', layer3: cosine 0.41, expected at least 0.995"
};

// Of two tensors of as many elements.
TensorParity compare_tensors(const std::string& name, std::span<const float> reference,
                             std::span<const float> candidate);

struct CaseParity {
  std::string name;
  int64_t prompt_tokens = 0;
  int64_t patches = 0;
  std::vector<TensorParity> tensors;      // in order of computation; only those that both engines name
  std::vector<std::string> not_compared;  // named by the reference alone
  LogitsParity logits;
  LogitsParity decode;  // of the steps after the prompt, on the reference's tokens
  std::vector<ParityFailure> failures;  // in order of computation
};

// Compares two traces (trace_prefill) of one prompt. Tensors that every engine has to give (vision.merged,
// vision.deepstack{j}, inputs_embeds, logits, decode_logits, greedy_tokens) fail the case when the candidate has none or
// another shape; the inner ones (layers, blocks) may be missing.
CaseParity compare_traces(const std::string& name, const std::vector<TracedTensor>& reference,
                          const std::vector<TracedTensor>& candidate, const Fidelities& fidelities);

struct Candidate {
  std::string name;  // "native", "onnx"
  std::shared_ptr<const engine::Engine> engine;
  Fidelities fidelities;
};

struct EngineParity {
  std::string name;
  std::string vision;  // as EngineInfo says
  std::string text;
  Fidelities fidelities;
  std::vector<CaseParity> cases;

  bool passed() const;
  // The failure furthest beyond its limit (a refusal before all numbers); null when passed.
  const ParityFailure* worst() const;
  // Each tensor name with its worst figures over the cases, in order of computation; means over all elements.
  std::vector<TensorParity> worst_by_tensor() const;

  // {"engine", "vision", "text", "fidelity", "passed", "worst", "limits", "cases": [...], "tensors": [...]};
  // `every_tensor`: each case with its own list of tensors as well. Infinite numbers are null.
  Json to_json(bool every_tensor) const;
  // Tables of the cases and of the tensors, and what failed.
  std::string to_text() const;
};

// Runs each case on the reference once and on every candidate. A candidate that throws fails the case with
// its message; errors of the reference and cancelling go on to the caller. progress: runs done, in all,
// called often; false cancels (kCancelled).
std::vector<EngineParity> measure_parity(const engine::Engine& reference,
                                         std::span<const Candidate> candidates,
                                         std::span<const ParityCase> cases,
                                         const engine::ProgressFn& progress = {});

}  // namespace qvl::generate
