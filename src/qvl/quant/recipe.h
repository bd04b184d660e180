// Which format each matrix of a model gets: recipes plain, balanced and best. Works on descriptions of the
// tensors, in two passes over a checkpoint: the planner asks for the error of some tensors in some formats
// (pass 1, rows may be sampled: Quantizer::measure), then says what to write (pass 2). Issue: 4-bit exports
// lose answers when everything is rounded alike; a tenth of the weights at 8 bits buys most of it back, if it
// is the right tenth.
//
// Model of the damage: quantising W to noise e = sqrt(sum w d^2 / sum w x^2)
// (ErrorStats::weighted_relative_rms) adds noise of relative size e to W's output, whatever its shape; noises
// of different tensors are independent, so squares add: damage = sum over tensors of sensitivity * e^2. The
// sensitivities are priors by the tensor's place, measured (see recipe.cc). Under a budget of bits, the
// upgrades with the most damage avoided per bit are taken.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "qvl/base/json.h"
#include "qvl/quant/error_stats.h"
#include "qvl/quant/format.h"
#include "qvl/quant/quantize.h"

namespace qvl::quant {

// A matrix's place in the decoder.
enum class Part : uint8_t {
  kQuery,
  kKey,
  kValue,
  kAttentionOut,
  kGate,
  kUp,
  kDown,
  kEmbedding,  // only looked up
  kHead,       // makes the logits; a tied embedding counts as head
  kOther,
};
std::string_view part_name(Part part);  // "query", ...

struct TensorInfo {
  std::string name;
  Part part = Part::kOther;
  int layer = -1;  // -1 outside of the layers
  int layer_count = 0;
  int64_t rows = 0, columns = 0;
};

enum class Recipe : uint8_t { kPlain, kBalanced, kBest };
std::string_view recipe_name(Recipe recipe);  // "plain", "balanced", "best"
Recipe parse_recipe(std::string_view name);   // throws kInvalidArgument
Method recipe_method(Recipe recipe);          // plain rounding for kPlain, else search

struct RecipeOptions {
  Recipe recipe = Recipe::kBalanced;
  // What every matrix gets at least.
  Format base = Format::blocks(4, 32, false, DType::kBF16);
  // What the recipe may use instead, any order; empty: the base with 8 bits if the base has 4, else nothing.
  // Formats that take no more bits than the base are ignored.
  std::vector<Format> upgrades;
  // As asked for by the user: fixed, and outside of the budget.
  std::optional<Format> embedding, head;
  // Bits a weight, scales included, over all matrices that are not fixed; unset: what the base takes, and 0.4
  // (kBalanced) or 1.3 (kBest) more. kPlain has none.
  std::optional<double> budget_bits;
};

struct PlannedTensor {
  TensorInfo info;
  Format format;
  double bits_per_weight = 0;
  // From pass 1; 0 where nothing was measured.
  double base_error = 0;  // weighted relative error in the base format
  double error = 0;       // in the chosen one
  double sensitivity = 0;
};

struct RecipePlan {
  Recipe recipe = Recipe::kPlain;
  Method method = Method::kPlain;
  std::vector<PlannedTensor> tensors;  // in the order given
  double budget_bits = 0;              // 0: none
  double bits_per_weight = 0;          // of the tensors under the budget
  double total_bits_per_weight = 0;    // of all
  double base_damage = 0, damage = 0;  // modelled, before and after the upgrades

  // The summary and one entry a tensor.
  Json to_json() const;
};

class RecipePlanner {
 public:
  // Throws kInvalidArgument: formats, no tensors, a matrix without elements, two of one name, a layer outside
  // of layer_count, a budget that is not finite or less than the base takes.
  RecipePlanner(std::vector<TensorInfo> tensors, RecipeOptions options);

  // What pass 1 has to find out, in the order of the tensors; none for kPlain or where there is nothing to
  // choose.
  struct Question {
    size_t tensor;  // index
    Format format;
  };
  std::span<const Question> questions() const { return questions_; }
  // The method for both passes.
  Method method() const { return recipe_method(options_.recipe); }
  // The error of question number `question`. Throws kInvalidArgument for a number that does not exist.
  void answer(size_t question, const ErrorStats& stats);

  // Depends on tensors, options and answers only. Throws kInvalidArgument while a question is open.
  RecipePlan plan() const;

 private:
  struct Choice {
    Format format;
    double bits = 0;    // of the whole tensor
    double error = -1;  // negative: not measured yet
  };
  bool fixed(const TensorInfo& info) const;

  std::vector<TensorInfo> tensors_;
  RecipeOptions options_;
  std::vector<std::vector<Choice>> choices_;  // per tensor, the first is the base (or the fixed format)
  std::vector<Question> questions_;
  std::vector<size_t> question_choice_;
};

// The prior: how much noise of a relative size in this matrix's output changes the logits; 1 is an average
// matrix of an inner layer. Only ratios matter.
double sensitivity(const TensorInfo& info);

}  // namespace qvl::quant
