// `qvl export` without --vision: 8-bit weights where the features stay what they were, bf16 where not.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "fixture.h"
#include "process.h"
#include "qvl/base/dtype.h"
#include "qvl/base/json.h"
#include "qvl/checkpoint/safetensors.h"
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
  EXPECT_EQ(m.vision.verdict["cosines_by_activation_bits"].size(), 1u);
  const Outcome info = qvl({"info", at("auto")});
  EXPECT_NE(info.out.find("8 bits with activations in 7 keep"), std::string::npos) << info.out;
  EXPECT_NE(info.out.find("0.999 is the limit"), std::string::npos) << info.out;
  // Of 100 points, of which a question is 0.3: what it may lose.
  EXPECT_GE(100 * score(at("auto")), 100 * score(kSmall) - 0.5);
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
