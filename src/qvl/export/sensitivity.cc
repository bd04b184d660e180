#include "qvl/export/sensitivity.h"

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qvl/quant/quantize.h"
#include "qvl/quant/recipe.h"

namespace qvl::exporting {
namespace {

using model::TensorRole;
using quant::Part;

// Enough rows for an error within a few percent, a small part of the reading.
constexpr int64_t kSampleRows = 256;

Part part_of(TensorRole role) {
  switch (role) {
    case TensorRole::kTextQWeight:
      return Part::kQuery;
    case TensorRole::kTextKWeight:
      return Part::kKey;
    case TensorRole::kTextVWeight:
      return Part::kValue;
    case TensorRole::kTextOWeight:
      return Part::kAttentionOut;
    case TensorRole::kTextGateWeight:
      return Part::kGate;
    case TensorRole::kTextUpWeight:
      return Part::kUp;
    case TensorRole::kTextDownWeight:
      return Part::kDown;
    case TensorRole::kLmHead:
      return Part::kHead;
    case TensorRole::kTokenEmbedding:
      return Part::kEmbedding;
    default:
      return Part::kOther;
  }
}

}  // namespace

SensitivityReport measure_sensitivity(const Input& input, const ExportOptions& options, ThreadPool& pool,
                                      const std::function<void(int64_t)>& on_bytes) {
  SensitivityReport result;
  if (options.precision.text != StagePrecision::kInt4) return result;

  std::vector<model::TensorSpec> specs;
  std::vector<quant::TensorInfo> infos;
  for (model::TensorSpec& spec : model::tensor_table(input.config())) {
    // Head and embedding are fixed by what was asked for.
    if (model::is_vision_role(spec.role) || spec.precision != model::PrecisionClass::kMatrix ||
        spec.role == TensorRole::kLmHead) {
      continue;
    }
    infos.push_back({spec.name, part_of(spec.role), spec.layer,
                     static_cast<int>(input.config().text.num_layers), spec.shape[0], spec.shape[1]});
    specs.push_back(std::move(spec));
  }
  if (specs.empty()) return result;
  quant::RecipeOptions recipe;
  recipe.recipe = options.recipe;
  recipe.base = options.precision.format_of(specs.front(), input.dtype());
  quant::RecipePlanner planner(std::move(infos), std::move(recipe));

  size_t last = specs.size();
  const auto done_with = [&](size_t tensor) {
    input.drop(specs[tensor].role, specs[tensor].layer);  // sampled rows lie all over it
    on_bytes(static_cast<int64_t>(input.tensor(specs[tensor].role, specs[tensor].layer).bytes.size()));
  };
  for (size_t i = 0; i < planner.questions().size(); ++i) {
    const quant::RecipePlanner::Question& question = planner.questions()[i];
    if (last != specs.size() && last != question.tensor) done_with(last);
    last = question.tensor;
    const model::TensorSpec& spec = specs[question.tensor];
    const checkpoint::TensorView& view = input.tensor(spec.role, spec.layer);
    const auto found = options.importance.find(spec.name);
    const std::span<const float> importance =
        found == options.importance.end() ? std::span<const float>() : std::span<const float>(found->second);
    const quant::Quantizer quantizer(question.format, spec.shape[1], planner.method(), importance,
                                     view.where());
    planner.answer(i, quantizer.measure(view.bytes.data(), view.dtype, spec.shape[0], kSampleRows, pool));
  }
  if (last != specs.size()) done_with(last);

  const quant::RecipePlan plan = planner.plan();
  for (size_t i = 0; i < specs.size(); ++i) result.formats.emplace(specs[i].name, plan.tensors[i].format);
  result.report = plan.to_json();
  return result;
}

}  // namespace qvl::exporting
