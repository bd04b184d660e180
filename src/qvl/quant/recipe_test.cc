// Recipes: what pass 1 asks, what the allocator upgrades under a budget, and what is refused.
#include "qvl/quant/recipe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "qvl/base/error.h"

namespace qvl::quant {
namespace {

const Format kBase = parse_format("int4 b32 bf16-scales");   // 4.5 bits
const Format kEight = parse_format("int8 b32 bf16-scales");  // 8.5 bits

TensorInfo tensor(const std::string& name, int64_t rows, int64_t columns, Part part = Part::kOther) {
  return {.name = name, .part = part, .rows = rows, .columns = columns};
}

// A decoder of the shapes of Qwen3-VL-4B with a tied head.
std::vector<TensorInfo> decoder_4b(int layers = 36) {
  std::vector<TensorInfo> tensors;
  for (int l = 0; l < layers; ++l) {
    const auto add = [&](const char* name, Part part, int64_t rows, int64_t columns) {
      tensors.push_back({"layers." + std::to_string(l) + "." + name, part, l, layers, rows, columns});
    };
    add("q", Part::kQuery, 4096, 2560);
    add("k", Part::kKey, 1024, 2560);
    add("v", Part::kValue, 1024, 2560);
    add("o", Part::kAttentionOut, 2560, 4096);
    add("gate", Part::kGate, 9728, 2560);
    add("up", Part::kUp, 9728, 2560);
    add("down", Part::kDown, 2560, 9728);
  }
  tensors.push_back({"embed_tokens", Part::kHead, -1, layers, 151936, 2560});
  return tensors;
}

ErrorStats error_of(double relative) {
  ErrorStats s;
  s.count = 1;
  s.sum_squared = s.sum_weighted_squared = 1;
  s.sum_squared_error = s.sum_weighted_squared_error = relative * relative;
  return s;
}

// Answers by tensor name, `four` for 4 bits unless `special` has another error; 8 bits are sixteen times
// better.
RecipePlan plan_with(RecipePlanner& planner, const std::vector<TensorInfo>& tensors,
                     const std::map<std::string, double>& special = {}, double four = 0.08) {
  for (size_t q = 0; q < planner.questions().size(); ++q) {
    const auto& [t, format] = planner.questions()[q];
    const auto found = special.find(tensors[t].name);
    const double error = found != special.end() ? found->second : four;
    planner.answer(q, error_of(format.bits == 4 ? error : error / 16));
  }
  return planner.plan();
}

size_t count_of(const RecipePlan& plan, const Format& format) {
  return static_cast<size_t>(std::count_if(plan.tensors.begin(), plan.tensors.end(),
                                           [&](const auto& t) { return t.format == format; }));
}

TEST(Recipe, Names) {
  for (Recipe r : {Recipe::kPlain, Recipe::kBalanced, Recipe::kBest})
    EXPECT_EQ(parse_recipe(recipe_name(r)), r);
  EXPECT_THROW(parse_recipe("Best"), Error);
  EXPECT_THROW(parse_recipe(""), Error);
  EXPECT_EQ(recipe_method(Recipe::kPlain), Method::kPlain);
  EXPECT_EQ(recipe_method(Recipe::kBalanced), Method::kSearch);
}

TEST(Recipe, PlainAsksNothingAndGivesEverybodyTheBase) {
  const std::vector<TensorInfo> tensors = decoder_4b();
  RecipePlanner planner(tensors, {.recipe = Recipe::kPlain, .base = parse_format("int4 b32")});
  EXPECT_TRUE(planner.questions().empty());
  const RecipePlan plan = planner.plan();
  EXPECT_EQ(plan.method, Method::kPlain);
  EXPECT_EQ(count_of(plan, parse_format("int4 b32")), tensors.size());
  EXPECT_DOUBLE_EQ(plan.bits_per_weight, 5.0);
  EXPECT_EQ(plan.budget_bits, 0);
}

TEST(Recipe, BudgetsAreKeptAndUsed) {
  const std::vector<TensorInfo> tensors = decoder_4b();
  double last_damage = 1e300;
  size_t last_upgraded = 0;
  for (const auto& [recipe, bits] : {std::pair{Recipe::kBalanced, 4.9}, {Recipe::kBest, 5.8}}) {
    RecipePlanner planner(tensors, {.recipe = recipe});
    EXPECT_EQ(planner.questions().size(), 2 * tensors.size());
    const RecipePlan plan = plan_with(planner, tensors);
    EXPECT_NEAR(plan.budget_bits, bits, 1e-9);
    EXPECT_LE(plan.bits_per_weight, bits + 1e-9);
    EXPECT_GT(plan.bits_per_weight, bits - 0.03) << "the budget is hardly used";
    EXPECT_EQ(plan.total_bits_per_weight, plan.bits_per_weight);
    // The plan's own sum, recomputed.
    double stored = 0, weights = 0;
    for (const PlannedTensor& t : plan.tensors) {
      stored += t.format.bits_per_weight(t.info.rows, t.info.columns) *
                static_cast<double>(t.info.rows * t.info.columns);
      weights += static_cast<double>(t.info.rows * t.info.columns);
    }
    EXPECT_NEAR(stored / weights, plan.bits_per_weight, 1e-9);
    EXPECT_LT(plan.damage, plan.base_damage);
    EXPECT_LT(plan.damage, last_damage);
    EXPECT_GT(count_of(plan, kEight), last_upgraded);
    last_damage = plan.damage;
    last_upgraded = count_of(plan, kEight);
  }
}

// Of equal sensitivity, small tensors come first: the same damage avoided for fewer bits; then the noisier
// ones.
TEST(Recipe, BestGainPerBitFirst) {
  const std::vector<TensorInfo> tensors = {tensor("large", 1024, 1024), tensor("noisy", 512, 1024),
                                           tensor("quiet", 512, 1024), tensor("small", 128, 1024)};
  const std::map<std::string, double> errors = {
      {"large", 0.08}, {"noisy", 0.12}, {"quiet", 0.05}, {"small", 0.08}};
  const auto upgraded = [&](double budget) {
    RecipePlanner planner(tensors, {.budget_bits = budget});
    std::string names;
    for (const PlannedTensor& t : plan_with(planner, tensors, errors).tensors) {
      if (t.format == kEight) names += t.info.name + " ";
    }
    return names;
  };
  const double weights = 1024.0 * (1024 + 512 + 512 + 128);
  const auto budget = [&](int64_t rows_at_8) {
    return 4.5 + 4.0 * 1024.0 * static_cast<double>(rows_at_8) / weights;
  };
  EXPECT_EQ(upgraded(4.5), "");
  EXPECT_EQ(upgraded(budget(127)), "");
  EXPECT_EQ(upgraded(budget(128)), "small ");
  EXPECT_EQ(upgraded(budget(639)), "small ");
  EXPECT_EQ(upgraded(budget(640)), "noisy small ");
  // The next best, "large", does not fit: a smaller one behind it takes the rest.
  EXPECT_EQ(upgraded(budget(640 + 512)), "noisy quiet small ");
  EXPECT_EQ(upgraded(budget(640 + 1024)), "large noisy small ");
  EXPECT_EQ(upgraded(9.0), "large noisy quiet small ");
}

// What was measured (recipe.cc) and what follows from it for the shapes of the 4B: value and key, small and
// sensitive, are upgraded everywhere before any gate or up, and the first layer before the others.
TEST(Recipe, SensitiveTensorsOfADecoderComeFirst) {
  const std::vector<TensorInfo> tensors = decoder_4b();
  RecipePlanner planner(tensors, {.recipe = Recipe::kBalanced});
  const RecipePlan plan = plan_with(planner, tensors);
  std::map<Part, int> upgraded;
  for (const PlannedTensor& t : plan.tensors) upgraded[t.info.part] += t.format == kEight;
  EXPECT_EQ(upgraded[Part::kValue], 36);
  EXPECT_EQ(upgraded[Part::kKey], 36);
  EXPECT_GT(upgraded[Part::kAttentionOut], 10);
  EXPECT_LT(upgraded[Part::kUp], 3);
  EXPECT_EQ(plan.tensors[3].format, kEight) << "attention_out of layer 0";
  EXPECT_GT(sensitivity(tensors[6]), sensitivity(tensors[7 * 10 + 6]));
  EXPECT_GT(sensitivity(tensors[7 * 35 + 6]), sensitivity(tensors[7 * 10 + 6]));
  EXPECT_EQ(sensitivity({.name = "x"}), 1.0);
}

TEST(Recipe, SeveralUpgradesFollowTheConvexHull) {
  const Format zp = parse_format("int4 b32 zp bf16-scales"), b16 = parse_format("int4 b16 bf16-scales");
  const std::vector<TensorInfo> tensors = {tensor("a", 512, 1024), tensor("b", 512, 1024)};
  // Zero points cost 1/8 bit and halve a's squared error; blocks of 16 cost 1/2 bit and do less than that:
  // never taken.
  const std::map<std::string, double> errors_a = {
      {kBase.name(), 0.10}, {zp.name(), 0.07}, {b16.name(), 0.08}, {kEight.name(), 0.005}};
  const auto formats = [&](double budget) {
    RecipePlanner planner(
        tensors,
        {.base = kBase, .upgrades = {kEight, b16, zp, parse_format("int4 b64")}, .budget_bits = budget});
    EXPECT_EQ(planner.questions().size(), 8u);  // "int4 b64" takes no more bits than the base
    for (size_t q = 0; q < planner.questions().size(); ++q) {
      const auto& [t, format] = planner.questions()[q];
      planner.answer(q, error_of(errors_a.at(format.name()) * (t == 0 ? 1 : 0.5)));
    }
    const RecipePlan plan = planner.plan();
    return plan.tensors[0].format.name() + ", " + plan.tensors[1].format.name();
  };
  EXPECT_EQ(formats(4.5), kBase.name() + ", " + kBase.name());
  EXPECT_EQ(formats(4.5625), zp.name() + ", " + kBase.name());
  EXPECT_EQ(formats(4.7), zp.name() + ", " + zp.name());
  EXPECT_EQ(formats(6.6), kEight.name() + ", " + zp.name());
  EXPECT_EQ(formats(8.5), kEight.name() + ", " + kEight.name());
}

TEST(Recipe, FixedTensorsStayAndAreOutsideTheBudget) {
  std::vector<TensorInfo> tensors = decoder_4b(2);
  tensors.push_back({"embedding", Part::kEmbedding, -1, 2, 151936, 2560});
  RecipePlanner planner(tensors, {.embedding = Format::floating(DType::kBF16), .head = Format::row8()});
  const RecipePlan plan = plan_with(planner, tensors);
  for (const RecipePlanner::Question& q : planner.questions()) {
    EXPECT_NE(tensors[q.tensor].part, Part::kHead);
    EXPECT_NE(tensors[q.tensor].part, Part::kEmbedding);
  }
  EXPECT_EQ(plan.tensors.back().format, Format::floating(DType::kBF16));
  EXPECT_EQ(plan.tensors[14].format, Format::row8());
  EXPECT_NEAR(plan.budget_bits, 4.9, 1e-9);
  EXPECT_LE(plan.bits_per_weight, 4.9);
  EXPECT_GT(plan.total_bits_per_weight, 8);
}

TEST(Recipe, NothingToChoose) {
  const std::vector<TensorInfo> tensors = decoder_4b(1);
  for (const Format& base : {Format::row8(), Format::floating(DType::kBF16), kEight}) {
    RecipePlanner planner(tensors, {.recipe = Recipe::kBest, .base = base});
    EXPECT_TRUE(planner.questions().empty());
    EXPECT_EQ(count_of(planner.plan(), base), tensors.size()) << base.name();
  }
}

TEST(Recipe, ErrorsThatAreNoNumbers) {
  const std::vector<TensorInfo> tensors = {tensor("zeros", 16, 64), tensor("other", 16, 64)};
  RecipePlanner planner(tensors, {.budget_bits = 8.5});
  ErrorStats zeros;
  zeros.count = 1024;
  for (size_t q = 0; q < 2; ++q) planner.answer(q, zeros);
  planner.answer(2, error_of(0.1));
  planner.answer(3, error_of(0.01));
  const RecipePlan plan = planner.plan();
  EXPECT_EQ(plan.tensors[0].format, kBase);  // nothing to gain
  EXPECT_EQ(plan.tensors[1].format, kEight);
}

TEST(Recipe, PlanAndReportAreDeterministic) {
  const std::vector<TensorInfo> tensors = decoder_4b();
  RecipePlanner one(tensors, {.recipe = Recipe::kBest}), two(tensors, {.recipe = Recipe::kBest});
  const Json json = plan_with(one, tensors).to_json();
  EXPECT_EQ(json, plan_with(two, tensors).to_json());
  EXPECT_EQ(json["recipe"], "best");
  EXPECT_EQ(json["tensors"].size(), tensors.size());
  EXPECT_EQ(json["tensors"][0]["name"], "layers.0.q");
  EXPECT_GT(json["modelled_damage_without_upgrades"].get<double>(), json["modelled_damage"].get<double>());
}

TEST(Recipe, BadRequestsAreRefused) {
  const std::vector<TensorInfo> one = {tensor("a", 64, 64)};
  EXPECT_THROW(RecipePlanner({}, {}), Error);
  EXPECT_THROW(RecipePlanner({one[0], one[0]}, {}), Error);
  EXPECT_THROW(RecipePlanner({tensor("a", 0, 64)}, {}), Error);
  EXPECT_THROW(RecipePlanner({{.name = "a", .layer = 2, .layer_count = 2, .rows = 1, .columns = 1}}, {}),
               Error);
  EXPECT_THROW(RecipePlanner(one, {.base = Format::blocks(3, 32)}), Error);
  EXPECT_THROW(RecipePlanner(one, {.upgrades = {Format::blocks(4, 20)}}), Error);
  EXPECT_THROW(RecipePlanner(one, {.budget_bits = 4.4}), Error);
  EXPECT_THROW(RecipePlanner(one, {.budget_bits = std::nan("")}), Error);
  RecipePlanner planner(one, {});
  EXPECT_THROW(planner.plan(), Error);
  planner.answer(0, error_of(0.1));
  EXPECT_THROW(planner.plan(), Error);
  EXPECT_THROW(planner.answer(2, error_of(0.1)), Error);
  planner.answer(1, error_of(0.1));
  EXPECT_NO_THROW(planner.plan());
}

}  // namespace
}  // namespace qvl::quant
