#include "qvl/generate/parity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"
#include "qvl/generate/parity_cases.h"

namespace qvl::generate {
namespace {

using testing::FakeEngine;
constexpr float kInf = std::numeric_limits<float>::infinity();

Tensor tensor(Shape shape, const std::vector<float>& values) {
  Tensor t(DType::kF32, std::move(shape));
  std::copy(values.begin(), values.end(), t.as<float>().begin());
  return t;
}

Tensor ids(const std::vector<int64_t>& values) {
  Tensor t(DType::kI64, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), t.as<int64_t>().begin());
  return t;
}

using Trace = std::vector<TracedTensor>;

// Two tokens with a picture, one layer, three words.
Trace small_trace() {
  Trace t;
  t.push_back({"input_ids", ids({1, 2})});
  t.push_back({"pixel_values", tensor({4, 1}, {0, 0, 0, 0})});
  t.push_back({"vision.block0", tensor({2, 2}, {1, 2, 3, 4})});
  t.push_back({"vision.merged", tensor({1, 2}, {3, -4})});
  t.push_back({"inputs_embeds", tensor({2, 2}, {1, 1, 3, -4})});
  t.push_back({"layer0", tensor({2, 2}, {2, 2, 6, -8})});
  t.push_back({"logits", tensor({2, 3}, {0, 1, 2, 5, 0, 0})});
  t.push_back({"greedy_tokens", ids({0, 2, 1})});
  return t;
}

Tensor& get(Trace& trace, std::string_view name) {
  for (TracedTensor& t : trace) {
    if (t.name == name) return t.value;
  }
  throw std::runtime_error(std::string(name));
}

const TensorParity& get(const CaseParity& c, std::string_view name) {
  for (const TensorParity& t : c.tensors) {
    if (t.name == name) return t;
  }
  throw std::runtime_error(std::string(name));
}

TEST(Parity, EqualTracesHaveNoError) {
  const CaseParity c = compare_traces("same", small_trace(), small_trace(), {});
  EXPECT_TRUE(c.failures.empty());
  EXPECT_EQ(c.prompt_tokens, 2);
  EXPECT_EQ(c.patches, 4);
  ASSERT_EQ(c.tensors.size(), 5U);
  for (const TensorParity& t : c.tensors) {
    EXPECT_EQ(t.max_error, 0) << t.name;
    EXPECT_EQ(t.relative_rms, 0) << t.name;
    EXPECT_NEAR(t.cosine, 1, 1e-12) << t.name;
  }
  EXPECT_EQ(c.logits.positions, 2);
  EXPECT_EQ(c.logits.top1_equal, 2);
  EXPECT_EQ(c.logits.mean_kl_nats, 0);
  EXPECT_EQ(c.logits.greedy_equal, 3);
  EXPECT_EQ(c.logits.greedy_tokens, 3);
}

// A fault that only single steps have (another kernel, another cache) must not hide behind a sound prompt.
TEST(Parity, StepsAfterThePromptAreHeldToTheSameLimits) {
  Trace reference = small_trace(), other = small_trace();
  reference.push_back({"decode_logits", tensor({2, 3}, {0, 1, 9, 9, 0, 0})});
  EXPECT_FALSE(compare_traces("none", reference, other, {}).failures.empty());
  other.push_back({"decode_logits", tensor({2, 3}, {0, 1, 9, 9, 0, 0})});
  EXPECT_TRUE(compare_traces("same", reference, other, {}).failures.empty());
  EXPECT_EQ(compare_traces("same", reference, other, {}).decode.positions, 2);
  get(other, "decode_logits") = tensor({2, 3}, {9, 1, 0, 9, 0, 0});
  const CaseParity c =
      compare_traces("wrong", reference, other, {Fidelity::kExact, Fidelity::kExact, Fidelity::kInt4});
  ASSERT_FALSE(c.failures.empty());
  EXPECT_EQ(c.failures[0].tensor, "decode_logits");
  get(other, "decode_logits") = tensor({2, 3}, {0, 1, 9, std::numeric_limits<float>::quiet_NaN(), 0, 0});
  EXPECT_FALSE(
      compare_traces("nan", reference, other, {Fidelity::kExact, Fidelity::kExact, Fidelity::kInt4}).failures.empty());
}

TEST(Parity, FiguresAreThoseOfTheDefinition) {
  Trace other = small_trace();
  get(other, "layer0") = tensor({2, 2}, {2, 2, 6, -6});
  get(other, "logits") = tensor({2, 3}, {0, 2, 1, 5, 0, 0});
  get(other, "greedy_tokens") = ids({0, 1, 1});
  const CaseParity c = compare_traces("case", small_trace(), other, {.decoder = Fidelity::kInt4});
  const TensorParity& layer = get(c, "layer0");
  EXPECT_EQ(layer.stage, ParityStage::kDecoder);
  EXPECT_DOUBLE_EQ(layer.max_error, 2);
  EXPECT_DOUBLE_EQ(layer.mean_error, 0.5);
  EXPECT_DOUBLE_EQ(layer.reference_max, 8);
  EXPECT_DOUBLE_EQ(layer.relative_error, 0.25);
  EXPECT_DOUBLE_EQ(layer.reference_rms, std::sqrt(27.0));
  EXPECT_DOUBLE_EQ(layer.relative_rms, 1 / std::sqrt(27.0));
  EXPECT_DOUBLE_EQ(layer.cosine, (4 + 4 + 36 + 48) / std::sqrt(108.0 * 80.0));
  // KL of softmax(0, 1, 2) from softmax(0, 2, 1): (p2 - p1) * 1.
  const double z = 1 + std::exp(1.0) + std::exp(2.0);
  const double kl = (std::exp(2.0) - std::exp(1.0)) / z;
  EXPECT_NEAR(c.logits.max_kl_nats, kl, 1e-12);
  EXPECT_NEAR(c.logits.mean_kl_nats, kl / 2, 1e-12);
  EXPECT_EQ(c.logits.top1_equal, 1);
  EXPECT_EQ(c.logits.sure, 2);  // 0.67 and 0.99
  EXPECT_EQ(c.logits.sure_equal, 1);
  EXPECT_EQ(c.logits.greedy_equal, 1);
}

TEST(Parity, LimitsOfEachStageFollowTheCoarsestBeforeIt) {
  auto failures = [](const Fidelities& f) {
    Trace other = small_trace();
    get(other, "layer0").as<float>()[3] += 0.001F;  // 1.25e-4 of the largest
    return compare_traces("case", small_trace(), other, f).failures;
  };
  const auto strict = failures({});
  ASSERT_EQ(strict.size(), 1U);
  EXPECT_EQ(strict[0].tensor, "layer0");
  EXPECT_EQ(strict[0].measure, "relative error");
  EXPECT_NEAR(strict[0].excess, 1.25e-4 / 3e-5, 0.01);
  EXPECT_NE(strict[0].to_text().find("case 'case', layer0: relative error 0.000125, expected at most 3e-05"),
            std::string::npos)
      << strict[0].to_text();
  EXPECT_TRUE(failures({.vision = Fidelity::kBF16}).empty());
  EXPECT_TRUE(failures({.embedding = Fidelity::kInt8}).empty());
  EXPECT_TRUE(failures({.decoder = Fidelity::kInt4}).empty());
  // Without a picture vision is no excuse.
  Trace text, other;
  text.push_back({"logits", tensor({1, 2}, {1, 2})});
  other.push_back({"logits", tensor({1, 2}, {1, 2.001F})});
  EXPECT_EQ(compare_traces("text", text, other, {.vision = Fidelity::kInt8}).failures.size(), 1U);
}

TEST(Parity, LimitsGrowWithCoarsenessAndAreFinite) {
  ParityLimits before = parity_limits(Fidelity::kExact);
  EXPECT_EQ(before.feature_error, 3e-5);
  EXPECT_EQ(before.logits_error, 1e-4);
  for (Fidelity f : {Fidelity::kF16, Fidelity::kBF16, Fidelity::kInt8, Fidelity::kInt4}) {
    const ParityLimits l = parity_limits(f);
    EXPECT_LT(l.feature_cosine, before.feature_cosine);
    EXPECT_LT(l.logits_cosine, before.logits_cosine);
    EXPECT_GT(l.mean_kl_nats, before.mean_kl_nats);
    EXPECT_GT(l.max_kl_nats, before.max_kl_nats);
    EXPECT_LT(l.sure_top1, before.sure_top1);
    before = l;
  }
  EXPECT_GT(before.logits_cosine, 0.5);
}

// At every fidelity, garbage fails.
TEST(Parity, NumbersThatAreNoneFail) {
  for (Fidelity f : {Fidelity::kExact, Fidelity::kBF16, Fidelity::kInt4}) {
    for (float bad : {std::nanf(""), kInf, -kInf}) {
      for (const char* name : {"vision.block0", "vision.merged", "inputs_embeds", "layer0", "logits"}) {
        Trace other = small_trace();
        get(other, name).as<float>()[1] = bad;
        const CaseParity c = compare_traces("case", small_trace(), other, {f, f, f});
        ASSERT_FALSE(c.failures.empty()) << name << " " << bad;
        EXPECT_EQ(c.failures[0].tensor, name);
      }
    }
  }
}

TEST(Parity, WhatIsMissingOrOfAnotherShapeFails) {
  for (const char* name : {"vision.merged", "inputs_embeds", "logits", "greedy_tokens"}) {
    Trace other = small_trace();
    std::erase_if(other, [&](const TracedTensor& t) { return t.name == name; });
    const CaseParity c = compare_traces("case", small_trace(), other, {});
    ASSERT_EQ(c.failures.size(), 1U) << name;
    EXPECT_EQ(c.failures[0].tensor, name);
  }
  Trace other = small_trace();
  std::erase_if(other, [&](const TracedTensor& t) { return t.name == "layer0"; });
  const CaseParity inner = compare_traces("case", small_trace(), other, {});
  EXPECT_TRUE(inner.failures.empty());
  EXPECT_EQ(inner.not_compared, std::vector<std::string>{"layer0"});

  other = small_trace();
  get(other, "logits") = tensor({1, 3}, {0, 1, 2});
  EXPECT_EQ(compare_traces("case", small_trace(), other, {}).failures.size(), 1U);
}

// Pixels and grids for one picture of 4 x 4 patches and one video of two frame pairs.
ParityCase fake_case() {
  ParityCase c{.name = "mixed", .input = {}, .greedy_tokens = 4};
  c.input.ids = {1, 62, 60, 60, 60, 60, 63, 2, 62, 61, 63, 3, 62, 61, 63, 4};
  c.input.image_grids = {{1, 4, 4}};
  c.input.video_grids = {{2, 2, 2}};
  c.input.pixel_values = Tensor(DType::kF32, {16, 1536});
  c.input.pixel_values_videos = Tensor(DType::kF32, {8, 1536});
  float v = 0;
  for (float& x : c.input.pixel_values.as<float>()) x = std::sin(v += 0.37F);
  for (float& x : c.input.pixel_values_videos.as<float>()) x = std::sin(v += 0.37F);
  return c;
}

TEST(Parity, EnginesAreComparedCaseByCase) {
  const FakeEngine reference;
  auto same = std::make_shared<FakeEngine>();
  auto wrong = std::make_shared<FakeEngine>(63);  // another vocabulary
  std::vector<ParityCase> cases;
  cases.push_back(fake_case());
  cases.push_back({.name = "text", .input = {.ids = {1, 2, 3}}, .greedy_tokens = 2});
  int64_t last = -1, total = 0;
  const std::vector<Candidate> candidates = {{"same", same, {}}, {"wrong", wrong, {}}};
  const auto out = measure_parity(reference, candidates, cases, [&](int64_t done, int64_t all) {
    EXPECT_GE(done, last);
    last = done, total = all;
    return true;
  });
  EXPECT_EQ(last, 6);
  EXPECT_EQ(total, 6);
  ASSERT_EQ(out.size(), 2U);
  EXPECT_EQ(out[0].name, "same");
  EXPECT_TRUE(out[0].passed());
  EXPECT_EQ(out[0].worst(), nullptr);
  ASSERT_EQ(out[0].cases.size(), 2U);
  EXPECT_EQ(out[0].cases[0].patches, 24);
  EXPECT_EQ(out[0].cases[1].patches, 0);
  EXPECT_EQ(out[0].cases[0].logits.greedy_equal, 4);
  EXPECT_FALSE(out[1].passed());
  ASSERT_NE(out[1].worst(), nullptr);
  // The vision tensors come first though the last case has none.
  EXPECT_EQ(out[0].worst_by_tensor().front().name, "vision.merged");
  EXPECT_EQ(out[0].worst_by_tensor().back().name, "decode_logits");
}

// An engine whose features of one level are slightly off: the report names that tensor as the first.
TEST(Parity, TheWorstAndTheFirstTensorAreNamed) {
  const FakeEngine reference;
  auto candidate = std::make_shared<FakeEngine>();
  candidate->config_.vision.deepstack_indexes = {0};  // one level less
  const std::vector<Candidate> candidates = {{"onnx", candidate, {}}};
  std::vector<ParityCase> cases;
  cases.push_back(fake_case());
  const auto out = measure_parity(reference, candidates, cases);
  ASSERT_FALSE(out[0].passed());
  EXPECT_EQ(out[0].cases[0].failures.front().tensor, "vision.deepstack1");
  const std::string text = out[0].to_text();
  EXPECT_NE(text.find("onnx: FAILED"), std::string::npos) << text;
  EXPECT_NE(text.find("first off: case 'mixed', vision.deepstack1: the engine gives no such tensor"),
            std::string::npos)
      << text;
  const Json json = out[0].to_json(true);
  EXPECT_EQ(json["passed"], false);
  EXPECT_EQ(json["cases"][0]["failures"][0]["tensor"], "vision.deepstack1");
  EXPECT_EQ(json["cases"][0]["tensors"][0]["tensor"], "vision.merged");
  EXPECT_FALSE(out[0].to_json(false)["cases"][0].contains("tensors"));
  EXPECT_NO_THROW(parse_json(json.dump(), "report"));
}

TEST(Parity, RefusalsFailTheCaseAndCancellingStops) {
  const FakeEngine reference;
  auto narrow = std::make_shared<FakeEngine>();
  narrow->config_.text.max_positions = 4;
  const std::vector<Candidate> candidates = {{"narrow", narrow, {}}};
  std::vector<ParityCase> cases;
  cases.push_back({.name = "short", .input = {.ids = {1, 2, 3}}, .greedy_tokens = 1});
  cases.push_back({.name = "long", .input = {.ids = {1, 2, 3, 4, 5, 6}}, .greedy_tokens = 1});
  const auto out = measure_parity(reference, candidates, cases);
  EXPECT_TRUE(out[0].cases[0].failures.empty());
  ASSERT_EQ(out[0].cases[1].failures.size(), 1U);
  EXPECT_NE(out[0].worst()->to_text().find("at most 4 tokens"), std::string::npos)
      << out[0].worst()->to_text();
  // The reference itself must not fail.
  FakeEngine broken;
  broken.config_.text.max_positions = 4;
  EXPECT_THROW(measure_parity(broken, candidates, cases), Error);
  try {
    measure_parity(reference, candidates, cases, [](int64_t done, int64_t) { return done < 1; });
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kCancelled);
  }
}

TEST(ParityCases, PicturesAreTheSameEverywhereAndNoTwoAlike) {
  const image::RgbImage a = draw_picture({64, 48}, 1);
  EXPECT_EQ(a.rgb.size(), 64U * 48 * 3);
  EXPECT_EQ(a.rgb, draw_picture({64, 48}, 1).rgb);
  EXPECT_NE(a.rgb, draw_picture({64, 48}, 2).rgb);
  uint32_t sum = 0;
  for (uint8_t v : a.rgb) sum = sum * 31 + v;
  EXPECT_EQ(sum, 1894538976U);
}

TEST(ParityCases, SizesAreParsedOrRefused) {
  EXPECT_EQ(parse_picture_size("640x480", "--sizes"), (PictureSize{640, 480}));
  EXPECT_EQ(parse_picture_size("1X65536", "--sizes"), (PictureSize{1, 65536}));
  for (const char* bad : {"", "640", "640x", "x480", "640x480x3", "0x5", "5x0", "-4x4", "65537x1", "6 4x4",
                          "99999999999999999999x1"}) {
    EXPECT_THROW(parse_picture_size(bad, "--sizes"), Error) << bad;
  }
}

// The small model's own folder: every case fits its placeholders; without a tokenizer too.
TEST(ParityCases, StandardCasesFitTheModel) {
  namespace fs = std::filesystem;
  const fs::path small = fs::path(QVL_SOURCE_DIR) / "models/small";
  const model::ModelConfig config = model::ModelConfig::load(small);
  const fs::path bare = fs::temp_directory_path() / "qvl_parity_cases_test";
  fs::create_directories(bare);
  fs::copy_file(small / "preprocessor_config.json", bare / "preprocessor_config.json",
                fs::copy_options::overwrite_existing);
  for (const fs::path& folder : {small, bare}) {
    const auto cases = standard_parity_cases(folder, config, {}, nullptr);
    ASSERT_EQ(cases.size(), 8U);
    for (const ParityCase& c : cases) {
      int64_t images = 0, videos = 0, image_rows = 0, video_rows = 0;
      for (int32_t id : c.input.ids)
        images += id == config.image_token_id, videos += id == config.video_token_id;
      for (const image::Grid& g : c.input.image_grids) image_rows += g.patches();
      for (const image::Grid& g : c.input.video_grids) video_rows += g.patches();
      EXPECT_EQ(images * 4, image_rows) << c.name;
      EXPECT_EQ(videos * 4, video_rows) << c.name;
      EXPECT_EQ(c.input.pixel_values.size(), image_rows * 1536) << c.name;
      EXPECT_EQ(c.input.pixel_values_videos.size(), video_rows * 1536) << c.name;
    }
    EXPECT_EQ(cases[6].input.image_grids.size(), 3U);
    EXPECT_EQ(cases[7].input.video_grids.size(), 1U);
    EXPECT_EQ(cases[7].input.video_grids[0].t, 3);
    // Twice the same.
    EXPECT_EQ(standard_parity_cases(folder, config, {}, nullptr)[6].input.ids, cases[6].input.ids);
  }
  fs::remove_all(bare);
  EXPECT_THROW(standard_parity_cases(small, config, {.sizes = {{8000, 16}}}, nullptr), Error);
}

}  // namespace
}  // namespace qvl::generate
