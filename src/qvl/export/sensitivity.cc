#include "qvl/export/sensitivity.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qvl/quant/quantize.h"

namespace qvl::exporting {
namespace {

using model::TensorRole;

// Enough rows for an error within a few percent, a small part of the reading.
constexpr int64_t kSampleRows = 256;

// Bits a weight, scales included, that the decoder's matrices may take on average.
double budget_bits(Recipe recipe) { return recipe == Recipe::kBest ? 5.8 : 4.9; }

// How much worse noise in this matrix is than the same relative noise in an average one. What writes into the residual
// stream (o, down) and the values that attention mixes reach the answer unfiltered; queries and keys pass a norm and a softmax.
double prior(TensorRole role, int layer, int64_t layers) {
  double p = 1.0;
  if (role == TensorRole::kTextDownWeight) p = 1.6;
  if (role == TensorRole::kTextVWeight || role == TensorRole::kTextOWeight) p = 1.3;
  if (role == TensorRole::kTextQWeight || role == TensorRole::kTextKWeight) p = 0.8;
  // Errors of the first layers pass through all others, those of the last ones meet the logits.
  if (layer <= 1 || layer == layers - 1) p *= 1.5;
  return p;
}

struct Candidate {
  std::string name;
  quant::Format from, to;
  double weights = 0;
  double gain = 0;         // squared relative error that eight bits take away, weighted
  double extra_bits = 0;   // of the whole matrix
  double error_before = 0, error_after = 0;
};

}  // namespace

SensitivityReport measure_sensitivity(const Source& source, const ExportOptions& options, ThreadPool& pool,
                                      const std::function<void(int64_t)>& on_bytes) {
  SensitivityReport result;
  if (options.precision.text != StagePrecision::kInt4) return result;
  std::vector<Candidate> candidates;
  double bits = 0, weights = 0;
  for (const model::TensorSpec& spec : model::tensor_table(source.config)) {
    const bool decoder_matrix = !model::is_vision_role(spec.role) && spec.precision == model::PrecisionClass::kMatrix &&
                                spec.role != TensorRole::kLmHead;
    if (!decoder_matrix) continue;
    const quant::Format from = options.precision.format_of(spec, source.dtype);
    quant::Format to = from;
    to.bits = 8;
    const checkpoint::TensorView& view = source.tensor(spec.role, spec.layer);
    const int64_t rows = spec.shape[0], columns = spec.shape[1];
    const auto found = options.importance.find(spec.name);
    const std::span<const float> importance =
        found == options.importance.end() ? std::span<const float>() : std::span<const float>(found->second);
    const auto error = [&](const quant::Format& format) {
      const quant::Quantizer quantizer(format, columns, quant::Method::kSearch, importance, view.where());
      return quantizer.measure(view.bytes.data(), view.dtype, rows, kSampleRows, pool).weighted_relative_rms();
    };
    Candidate c;
    c.name = spec.name;
    c.from = from;
    c.to = to;
    c.weights = static_cast<double>(rows * columns);
    c.error_before = error(from);
    c.error_after = error(to);
    c.gain = (c.error_before * c.error_before - c.error_after * c.error_after) *
             prior(spec.role, spec.layer, source.config.text.num_layers);
    c.extra_bits = (to.bits_per_weight(rows, columns) - from.bits_per_weight(rows, columns)) * c.weights;
    bits += from.bits_per_weight(rows, columns) * c.weights;
    weights += c.weights;
    candidates.push_back(std::move(c));
    on_bytes(static_cast<int64_t>(view.bytes.size()));
  }
  if (candidates.empty()) return result;

  // The most error for the fewest bits first. Equal ones in the order of the table, so that the choice is the same everywhere.
  std::ranges::stable_sort(candidates,
                           [](const Candidate& a, const Candidate& b) { return a.gain / a.extra_bits > b.gain / b.extra_bits; });
  const double budget = budget_bits(options.recipe) * weights;
  const double before = bits / weights;
  Json chosen = Json::array();
  for (const Candidate& c : candidates) {
    if (c.gain <= 0 || bits + c.extra_bits > budget) continue;
    bits += c.extra_bits;
    result.upgraded.emplace(c.name, c.to);
    chosen.push_back({{"tensor", c.name}, {"error_int4", c.error_before}, {"error_int8", c.error_after}});
  }
  result.report = {{"budget_bits_per_weight", budget_bits(options.recipe)},
                   {"bits_per_weight_before", before},
                   {"bits_per_weight", bits / weights},
                   {"sampled_rows", kSampleRows},
                   {"kept_at_8_bits", std::move(chosen)}};
  return result;
}

}  // namespace qvl::exporting
