// `qvl export` without --vision: 8-bit weights where the features stay what they were, bf16 where not.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>

#include "fixture.h"
#include "process.h"
#include "qvl/base/dtype.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/engine/native/open.h"
#include "qvl/kernels/ops.h"
#include "qvl/package/manifest.h"

namespace qvl::cli {
namespace {

namespace fs = std::filesystem;

class VisionChoice : public FolderTest {
 protected:
  VisionChoice() : FolderTest("qvl_vision_choice") {}
  std::string at(const std::string& name) const { return (folder_ / name).string(); }
  package::Manifest exported(const std::string& checkpoint, const std::string& name,
                             std::vector<std::string> options) const {
    std::vector<std::string> arguments = {"export", checkpoint, at(name)};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Outcome o = qvl(arguments);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return package::Manifest::load(at(name));
  }
  static double score(const std::string& model) {
    const Outcome o = qvl({"eval", model, (kSource / "tests/fixtures/small/eval").string(), "--json"});
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return parse_json(o.out, "eval")["score"].get<double>();
  }
};

engine::EngineOptions with(const std::function<void(engine::EngineOptions&)>& change) {
  engine::EngineOptions options;
  change(options);
  return options;
}

// What the native engine calls the vision stage of a package.
std::string vision_name(const std::string& package, const engine::EngineOptions& options) {
  const auto opened = std::make_shared<const package::Package>(package::Package::open(package));
  return engine::native::open_package(opened, options, {.vision = true, .text = false}, std::make_shared<ThreadPool>(1)).vision_name;
}

// The small model with the first `count` columns of every qkv matrix `factor` times as large, a power of two, their inputs as
// much smaller: the same function in floats. 8 bits a row leave nothing of the other columns where these are large, nor codes
// of the other inputs where they are small.
std::string lopsided_model(const fs::path& folder, float factor, size_t count) {
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(kSmall)) fs::copy(entry.path(), folder);
  const fs::path weights = folder / "model.safetensors";
  std::string bytes = slurp(weights);
  const auto file = checkpoint::SafetensorsFile::open(weights);
  const auto scale = [&](const std::string& name, int64_t columns, float by) {
    const checkpoint::TensorView& tensor = file.get(name);
    EXPECT_EQ(tensor.dtype, DType::kBF16) << name;
    const auto offset = static_cast<size_t>(tensor.bytes.data() - file.mapping().bytes().data());
    std::vector<BFloat16> values(tensor.bytes.size() / sizeof(BFloat16));
    std::memcpy(values.data(), bytes.data() + offset, tensor.bytes.size());
    for (size_t i = 0; i < values.size(); i += static_cast<size_t>(columns))
      for (size_t column = 0; column < count; ++column) values[i + column] = to_bfloat16(to_float(values[i + column]) * by);
    std::memcpy(bytes.data() + offset, values.data(), tensor.bytes.size());
  };
  for (int block = 0;; ++block) {
    const std::string prefix = "model.visual.blocks." + std::to_string(block) + ".";
    if (!file.find(prefix + "norm1.weight")) break;
    const auto width = static_cast<int64_t>(file.get(prefix + "norm1.weight").bytes.size() / sizeof(BFloat16));
    scale(prefix + "norm1.weight", width, 1.0f / factor);
    scale(prefix + "norm1.bias", width, 1.0f / factor);
    scale(prefix + "attn.qkv.weight", width, factor);
  }
  std::ofstream(weights, std::ios::binary | std::ios::trunc) << bytes;
  return folder.string();
}

TEST_F(VisionChoice, EightBitsWhereFeaturesStayAndTheScoreDoes) {
  const package::Manifest m = exported(kSmall, "auto", {"--text", "bf16"});
  EXPECT_EQ(m.vision.precision, "int8");
  ASSERT_TRUE(m.vision.verdict.is_object());
  EXPECT_EQ(m.vision.verdict["passed"], true);
  EXPECT_GE(m.vision.verdict["cosine"].get<double>(), 0.999);
  EXPECT_LT(m.vision.verdict["cosine"].get<double>(), 1);
  EXPECT_EQ(m.vision.verdict["pictures"], 3);
  EXPECT_EQ(m.vision.activation_bits, 7);
  EXPECT_EQ(m.vision.verdict["cosines_by_activation_bits"]["7"], m.vision.verdict["cosine"]);
  const Outcome info = qvl({"info", at("auto")});
  EXPECT_NE(info.out.find("8 bits with activations in 7 keep"), std::string::npos) << info.out;
  EXPECT_NE(info.out.find("0.999 is the limit"), std::string::npos) << info.out;
  // Of 100 points, of which a question is 0.3: what it may lose.
  EXPECT_GE(100 * score(at("auto")), 100 * score(kSmall) - 0.5);

  // Attention in 8 bits where this processor has kernels for it, and only then is anything said about it.
  const bool kernels_have_it = kernels::has_int8_attention(kernels::active_table());
  EXPECT_EQ(m.vision.int8_attention, kernels_have_it ? 7 : 0);
  EXPECT_EQ(m.vision.verdict.contains("cosines_with_int8_attention"), kernels_have_it);
  if (!kernels_have_it) return;
  EXPECT_GE(m.vision.verdict["cosines_with_int8_attention"]["7"].get<double>(), 0.999);
  EXPECT_NE(m.vision.verdict["cosines_with_int8_attention"]["7"], m.vision.verdict["cosine"]);
  EXPECT_NE(info.out.find("attention multiplies 8 bits too (activations in 7): 0.99"), std::string::npos) << info.out;
  EXPECT_EQ(vision_name(at("auto"), {}), "native int8 (7-bit activations, int8 attention)");
  EXPECT_EQ(vision_name(at("auto"), with([](auto& o) { o.vision_precision = engine::Precision::kBF16; })), "native bf16");
  EXPECT_EQ(vision_name(at("auto"), with([](auto& o) { o.vision_int8_attention = false; })), "native int8 (7-bit activations)");
  EXPECT_EQ(vision_name(at("auto"), with([](auto& o) { o.vision_activation_bits = 8; })), "native int8 (int8 attention)");
}

// A package that says so, on kernels that have it and on those that have not.
TEST_F(VisionChoice, AttentionInEightBitsIsTakenWhereKernelsHaveIt) {
  package::Manifest m = exported(kSmall, "said", {"--text", "bf16", "--vision", "int8", "--verify", "none"});
  EXPECT_EQ(vision_name(at("said"), {}), "native int8");
  m.vision.int8_attention = 7;
  m.save(at("said"));
  for (std::string_view table : kernels::runnable_tables()) {
    EXPECT_EQ(vision_name(at("said"), with([&](auto& o) { o.kernels = table; })),
              kernels::has_int8_attention(kernels::table_by_name(table)) ? "native int8 (7-bit activations, int8 attention)" : "native int8")
        << table;
  }
}

TEST_F(VisionChoice, ActivationsOfEightBitsWhereSevenAreTooFew) {
  const package::Manifest m = exported(lopsided_model(folder_ / "uneven", 1.0f / 16, 8), "eight", {"--text", "bf16"});
  EXPECT_EQ(m.vision.precision, "int8");
  EXPECT_EQ(m.vision.activation_bits, 8);
  EXPECT_EQ(m.vision.verdict["passed"], true);
  EXPECT_LT(m.vision.verdict["cosines_by_activation_bits"]["7"].get<double>(), 0.999);
  EXPECT_EQ(m.vision.verdict["cosines_by_activation_bits"]["8"], m.vision.verdict["cosine"]);
}

TEST_F(VisionChoice, Bf16WhereTheyDoNot) {
  const std::string lopsided = lopsided_model(folder_ / "lopsided", 1024, 1);
  const package::Manifest m = exported(lopsided, "refused", {});
  EXPECT_EQ(m.vision.precision, "bf16");
  ASSERT_TRUE(m.vision.verdict.is_object());
  EXPECT_EQ(m.vision.verdict["passed"], false);
  EXPECT_LT(m.vision.verdict["cosine"].get<double>(), 0.999);
  EXPECT_TRUE(m.parity["passed"].get<bool>());
  const Json info = parse_json(qvl({"info", at("refused"), "--json"}).out, "info");
  EXPECT_EQ(info["stages"]["vision"]["verdict"]["passed"], false);
  // Whoever asks for 8 bits gets them.
  const package::Manifest forced = exported(lopsided, "forced", {"--vision", "int8", "--verify", "none"});
  EXPECT_EQ(forced.vision.precision, "int8");
  EXPECT_EQ(forced.vision.activation_bits, 8);
}

TEST_F(VisionChoice, SamplesAreWhatFeaturesAreComparedOn) {
  fs::create_directories(folder_ / "samples");
  fs::copy_file(kShapes, folder_ / "samples" / "one.png");
  const package::Manifest m =
      exported(kSmall, "sampled", {"--calibrate", at("samples"), "--calibrate-tokens", "1", "--verify", "none"});
  EXPECT_EQ(m.vision.verdict["pictures"], 1);
}

TEST_F(VisionChoice, NothingIsDecidedForOtherRuntimesAndWhereAPrecisionIsAskedFor) {
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{
           {"--plain", "--text", "bf16"}, {"--layout", "genai"}, {"--vision", "bf16"}}) {
    const package::Manifest m = exported(kSmall, "other", [&] {
      std::vector<std::string> all = options;
      all.insert(all.end(), {"--verify", "none", "--replace"});
      return all;
    }());
    EXPECT_EQ(m.vision.precision, "bf16") << options[0];
    EXPECT_TRUE(m.vision.verdict.is_null()) << options[0];
  }
}

}  // namespace
}  // namespace qvl::cli
