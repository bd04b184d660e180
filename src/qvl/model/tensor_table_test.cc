// The tensor table against the released sizes (spec 1.1 and 2) and checkpoints with defects against the
// table.
#include "qvl/model/tensor_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/model/public_shapes.h"

namespace qvl::model {
namespace {

std::map<std::string, Shape> shapes_by_name(const ModelConfig& config) {
  std::map<std::string, Shape> result;
  for (const TensorSpec& spec : tensor_table(config)) result[spec.name] = spec.shape;
  return result;
}

TEST(TensorTable, CountsOfReleasedSizes) {
  struct Case {
    const char* name;
    size_t tensors;
    int64_t parameters, vision, kv_bytes;
  };
  // Tensor counts: 3 + 12 depth + 6 + 18 vision, 2 + 11 layers text, head.
  for (const Case& c :
       {Case{"2b", 625, 2127532032, 406957056, 114688}, Case{"4b", 713, 4437815808, 415347712, 147456},
        Case{"8b", 750, 8767123696, 576388336, 147456}, Case{"32b", 1058, 33357390064, 595266800, 262144}}) {
    const ModelConfig config = public_config(c.name);
    const ParameterCount count = parameter_count(config);
    EXPECT_EQ(tensor_table(config).size(), c.tensors) << c.name;
    EXPECT_EQ(count.total, c.parameters) << c.name;
    EXPECT_EQ(count.vision, c.vision) << c.name;
    EXPECT_EQ(config.kv_bytes_per_token(DType::kBF16), c.kv_bytes) << c.name;
    EXPECT_EQ(config.kv_bytes_per_token(DType::kF32), 2 * c.kv_bytes) << c.name;
    // Heads of 128: as many codes and a float.
    EXPECT_EQ(config.kv_bytes_per_token(DType::kI8) * 256, c.kv_bytes * 132) << c.name;
    EXPECT_THROW(config.kv_bytes_per_token(DType::kI16), Error);
  }
}

TEST(TensorTable, ShapesThatAreEasyToGetWrong) {
  const auto shapes = shapes_by_name(public_config("8b"));
  EXPECT_EQ(shapes.at("model.visual.patch_embed.proj.weight"), (Shape{1152, 3, 2, 16, 16}));
  EXPECT_EQ(shapes.at("model.visual.pos_embed.weight"), (Shape{2304, 1152}));
  EXPECT_EQ(shapes.at("model.visual.merger.norm.weight"), (Shape{1152}));
  EXPECT_EQ(shapes.at("model.visual.deepstack_merger_list.2.norm.weight"), (Shape{4608}));
  EXPECT_EQ(shapes.at("model.visual.deepstack_merger_list.2.linear_fc2.weight"), (Shape{4096, 4608}));
  EXPECT_EQ(shapes.at("model.visual.blocks.26.mlp.linear_fc2.weight"), (Shape{1152, 4304}));
  EXPECT_EQ(shapes.at("lm_head.weight"), (Shape{151936, 4096}));
  const auto four = shapes_by_name(public_config("4B"));
  EXPECT_EQ(four.at("model.language_model.layers.35.self_attn.o_proj.weight"), (Shape{2560, 4096}));
  EXPECT_EQ(four.at("model.language_model.layers.0.self_attn.k_norm.weight"), (Shape{128}));
  EXPECT_FALSE(four.contains("lm_head.weight"));
  EXPECT_FALSE(four.contains("model.language_model.layers.36.input_layernorm.weight"));
}

TEST(TensorTable, NamesAndRolesAgree) {
  ModelConfig config = public_config("tiny");
  config.tie_word_embeddings = false;
  config.text.attention_bias = true;
  const std::vector<TensorSpec> table = tensor_table(config);
  for (const TensorSpec& spec : table) {
    EXPECT_EQ(spec.name, tensor_name(spec.role, spec.layer));
    EXPECT_EQ(spec.shape, tensor_shape(config, spec.role));
    EXPECT_EQ(spec.precision, precision_class(spec.role));
    EXPECT_EQ(spec.name.starts_with("model.visual."), is_vision_role(spec.role)) << spec.name;
    EXPECT_EQ(spec.precision == PrecisionClass::kBias,
              spec.name.ends_with(".bias") && spec.name.find("norm") == std::string::npos)
        << spec.name;
  }
  const auto biases = std::count_if(table.begin(), table.end(), [](const TensorSpec& s) {
    return s.name.find("self_attn") != std::string::npos && s.name.ends_with("bias");
  });
  EXPECT_EQ(biases, 4 * config.text.num_layers);
  EXPECT_THROW(tensor_name(TensorRole::kTextQWeight), Error);
  EXPECT_THROW(tensor_name(TensorRole::kLmHead, 0), Error);
}

class CheckCheckpoint : public testing::Test {
 protected:
  CheckCheckpoint() {
    for (const TensorSpec& spec : tensor_table(config_)) {
      found_.push_back(
          {spec.name, DType::kBF16, spec.shape, "dir/model-00001-of-00002.safetensors", spec.name});
    }
  }
  ~CheckCheckpoint() override { set_log_sink({}); }

  FoundTensor& tensor(std::string_view name) {
    return *std::find_if(found_.begin(), found_.end(), [&](const FoundTensor& t) { return t.name == name; });
  }
  void erase(std::string_view name) {
    std::erase_if(found_, [&](const FoundTensor& t) { return t.name == name; });
  }
  std::string message() {
    try {
      check_checkpoint(config_, found_, "dir");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kMismatch);
      return e.what();
    }
    return "no error";
  }
  void capture_log() {
    set_log_sink([this](LogLevel, std::string_view m) { log_ += std::string(m) + "\n"; });
  }

  ModelConfig config_ = public_config("tiny");
  std::vector<FoundTensor> found_;
  std::string log_;
};

TEST_F(CheckCheckpoint, ACompleteOneFits) {
  const CheckpointMatch match = check_checkpoint(config_, found_, "dir");
  EXPECT_TRUE(match.tied_head);
  EXPECT_FALSE(match.redundant_head);
  EXPECT_EQ(match.parameters, parameter_count(config_).total);
  EXPECT_TRUE(match.ignored.empty());
}

TEST_F(CheckCheckpoint, MissingNamesTheTensor) {
  erase("model.visual.merger.norm.bias");
  EXPECT_EQ(message(),
            "[dir] the tensors do not fit config.json: missing: 'model.visual.merger.norm.bias' [96]");
}

TEST_F(CheckCheckpoint, SurplusNamesTensorFileAndSpelling) {
  found_.push_back({"model.visual.blocks.9.norm1.weight",
                    DType::kBF16,
                    {96},
                    "dir/b.safetensors",
                    "visual.blocks.9.norm1.weight"});
  EXPECT_EQ(
      message(),
      "[dir] the tensors do not fit config.json: surplus: 'model.visual.blocks.9.norm1.weight' (stored as "
      "'visual.blocks.9.norm1.weight') in dir/b.safetensors");
}

TEST_F(CheckCheckpoint, MisshapenNamesBothShapes) {
  tensor("model.language_model.layers.1.self_attn.q_proj.weight").shape = {64, 128};
  EXPECT_EQ(
      message(),
      "[dir] the tensors do not fit config.json: misshapen: "
      "'model.language_model.layers.1.self_attn.q_proj.weight' in dir/model-00001-of-00002.safetensors is "
      "[64, 128], should be [128, 64]");
}

TEST_F(CheckCheckpoint, WrongTypeIsRefusedAndMixedFloatsAreNot) {
  tensor("model.language_model.norm.weight").dtype = DType::kF32;
  tensor("model.visual.pos_embed.weight").dtype = DType::kF16;
  EXPECT_EQ(message(), "no error");
  tensor("model.language_model.norm.weight").dtype = DType::kI8;
  EXPECT_EQ(message(),
            "[dir] the tensors do not fit config.json: wrong type: 'model.language_model.norm.weight' in "
            "dir/model-00001-of-00002.safetensors is I8, should be BF16, F16 or F32");
}

TEST_F(CheckCheckpoint, ListsFiveFaultsAndCountsTheRest) {
  found_.erase(found_.begin(), found_.begin() + 8);
  const std::string text = message();
  size_t listed = 0;
  for (size_t at = text.find("missing: "); at != std::string::npos; at = text.find("missing: ", at + 1))
    ++listed;
  EXPECT_EQ(listed, 5u);
  EXPECT_TRUE(text.ends_with("; and 3 more")) << text;
}

TEST_F(CheckCheckpoint, StoredRotaryTablesAreIgnoredAndLogged) {
  capture_log();
  found_.push_back({"model.language_model.rotary_emb.inv_freq", DType::kF32, {16}, "dir/b.safetensors", ""});
  const CheckpointMatch match = check_checkpoint(config_, found_, "dir");
  EXPECT_EQ(match.ignored, std::vector<std::string>{"model.language_model.rotary_emb.inv_freq"});
  EXPECT_NE(log_.find("model.language_model.rotary_emb.inv_freq"), std::string::npos) << log_;
}

TEST_F(CheckCheckpoint, HeadOfATiedModelIsReportedForComparison) {
  found_.push_back({"lm_head.weight", DType::kBF16, {512, 64}, "dir/b.safetensors", ""});
  const CheckpointMatch match = check_checkpoint(config_, found_, "dir");
  EXPECT_TRUE(match.tied_head);
  EXPECT_TRUE(match.redundant_head);
  EXPECT_EQ(match.parameters, parameter_count(config_).total);
  found_.back().shape = {512, 32};
  EXPECT_NE(message().find("misshapen: 'lm_head.weight'"), std::string::npos);
  try {
    fail_different_head("dir", "dir/b.safetensors");
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("'lm_head.weight' in dir/b.safetensors differs"), std::string::npos);
  }
}

TEST_F(CheckCheckpoint, UntiedNeedsItsHead) {
  config_.tie_word_embeddings = false;
  EXPECT_EQ(message(), "[dir] the tensors do not fit config.json: missing: 'lm_head.weight' [512, 64]");
  found_.push_back({"lm_head.weight", DType::kBF16, {512, 64}, "dir/b.safetensors", ""});
  EXPECT_FALSE(check_checkpoint(config_, found_, "dir").tied_head);
}

TEST_F(CheckCheckpoint, ASilentConfigurationWithoutHeadCountsAsTied) {
  capture_log();
  config_.tie_word_embeddings = false;
  config_.tie_is_explicit = false;
  EXPECT_TRUE(check_checkpoint(config_, found_, "dir").tied_head);
  EXPECT_NE(log_.find("embedding matrix serves as head"), std::string::npos) << log_;
}

}  // namespace
}  // namespace qvl::model
