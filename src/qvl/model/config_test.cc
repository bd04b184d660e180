// config.json and generation_config.json: both spellings, defaults, and every refusal by its message (spec 1,
// 7.6).
#include "qvl/model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>

#include "qvl/base/error.h"
#include "qvl/model/positions.h"
#include "qvl/model/public_shapes.h"
#include "qvl/model/tensor_table.h"

namespace qvl::model {
namespace {

const std::filesystem::path kGolden = QVL_SOURCE_DIR "/tests/fixtures/golden";

Json tiny() {
  return parse_json(public_config_json("tiny"), "test");
}

// The error of reading `json`, or "no error".
std::string error_of(const Json& json, ErrorCode code) {
  try {
    ModelConfig::from_json(json, "config.json");
  } catch (const Error& e) {
    EXPECT_EQ(error_code_name(e.code()), error_code_name(code)) << e.what();
    return e.what();
  }
  return "no error";
}

TEST(Config, ReadsThePublishedForm) {
  const ModelConfig c = public_config("4B");
  EXPECT_EQ(c.image_token_id, 151655);
  EXPECT_EQ(c.video_token_id, 151656);
  EXPECT_EQ(c.vision_start_token_id, 151652);
  EXPECT_EQ(c.vision_end_token_id, 151653);
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_TRUE(c.tie_is_explicit);
  EXPECT_EQ(c.dtype, "bfloat16");
  EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{151645});
  EXPECT_EQ(c.text.hidden_size, 2560);
  EXPECT_EQ(c.text.q_width(), 4096);
  EXPECT_EQ(c.text.kv_width(), 1024);
  EXPECT_EQ(c.text.head_dim, 128);
  EXPECT_EQ(c.text.max_positions, 262144);
  EXPECT_EQ(c.text.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.text.rope.theta, 5e6);
  EXPECT_EQ(c.text.rope.mrope_section, (std::array<int64_t, 3>{24, 20, 20}));
  EXPECT_EQ(c.vision.head_dim(), 64);
  EXPECT_EQ(c.vision.position_side(), 48);
  EXPECT_EQ(c.vision.patch_width(), 1536);
  EXPECT_EQ(c.vision.merged_width(), 4096);
  EXPECT_EQ(c.vision.deepstack_indexes, (std::vector<int64_t>{5, 11, 17}));
  EXPECT_EQ(public_config("8b").vision.head_dim(), 72);
}

TEST(Config, PublishedTextKeepsItsLists) {
  const Json json = parse_json(public_config_json("2b"), "test");
  EXPECT_EQ(json["architectures"], Json::array({"Qwen3VLForConditionalGeneration"}));
  const Json generation = parse_json(public_generation_config_json("2b"), "test");
  EXPECT_EQ(generation["eos_token_id"], Json::array({151645, 151643}));
  const Json images = parse_json(public_preprocessor_config_json(), "test");
  EXPECT_EQ(images["size"]["shortest_edge"], 65536);
  EXPECT_EQ(images["image_mean"], Json::array({0.5, 0.5, 0.5}));
  EXPECT_EQ(parse_json(public_video_preprocessor_config_json(), "test")["size"]["longest_edge"], 25165824);
}

TEST(Config, OldAndNewSpellingOfTheRotaryKeysAreTheSame) {
  Json old_form = tiny();
  old_form["text_config"]["rope_theta"] = 12345;
  Json new_form = tiny();
  new_form["text_config"].erase("rope_scaling");
  new_form["text_config"].erase("rope_theta");
  new_form["text_config"]["rope_parameters"] = {{"mrope_interleaved", true},
                                                {"mrope_section", {8, 4, 4}},
                                                {"rope_theta", 12345},
                                                {"rope_type", "default"}};
  for (const Json& json : {old_form, new_form}) {
    const ModelConfig c = ModelConfig::from_json(json, "config.json");
    EXPECT_EQ(c.text.rope.theta, 12345.0);
    EXPECT_EQ(c.text.rope.mrope_section, (std::array<int64_t, 3>{8, 4, 4}));
    EXPECT_EQ(c.text.rope.type, RopeType::kDefault);
  }
}

TEST(Config, RotaryKeysResolveInTheReferenceOrder) {
  Json json = tiny();
  Json& text = json["text_config"];
  text["rope_scaling"]["rope_theta"] = 777;  // inside the object beats beside it
  text["rope_parameters"] = {{"rope_theta", 888},
                             {"mrope_section", {16, 0, 0}}};  // not looked at: rope_scaling is there
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.theta, 777.0);
  text.erase("rope_scaling");
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.theta, 888.0);
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.mrope_section[0], 16);
  text["rope_scaling"] = Json::object();  // empty and null count as absent
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.theta, 888.0);
  text["rope_scaling"] = nullptr;
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.theta, 888.0);
  text["rope_parameters"] = {{"type", "mrope"}, {"mrope_section", {8, 4, 4}}};  // older key for the type
  text["rope_theta"] = 999;
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.theta, 999.0);
  text.erase("rope_theta");
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.theta, 500000.0)
      << "trap 18: the default of the library";
}

TEST(Config, SectionDefaultsOnlyFitHeadDim128) {
  Json json = parse_json(public_config_json("2b"), "test");
  json["text_config"].erase("rope_scaling");
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.mrope_section, (std::array<int64_t, 3>{24, 20, 20}));
  Json small = tiny();
  small["text_config"].erase("rope_scaling");
  EXPECT_EQ(error_of(small, ErrorCode::kMismatch),
            "[config.json: text_config] sum of mrope_section: expected 16 (half of head_dim), got 64");
}

TEST(Config, ReadsYarn) {
  Json json = parse_json(public_config_json("8b"), "test");
  json["text_config"]["max_position_embeddings"] = 786432;
  json["text_config"]["rope_scaling"] = {{"rope_type", "yarn"},
                                         {"factor", 3.0},
                                         {"mrope_section", {24, 20, 20}},
                                         {"original_max_position_embeddings", 262144}};
  const RopeConfig rope = ModelConfig::from_json(json, "c").text.rope;
  EXPECT_EQ(rope.type, RopeType::kYarn);
  EXPECT_EQ(rope.factor, 3.0);
  EXPECT_EQ(rope.original_max_positions, 262144);
  EXPECT_EQ(rope.beta_fast, 32.0);
  EXPECT_EQ(rope.beta_slow, 1.0);
  EXPECT_FALSE(rope.attention_factor.has_value());
  json["text_config"]["rope_scaling"].erase("factor");  // then the ratio of the lengths
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.rope.factor, 3.0);
  json["text_config"]["rope_scaling"]["factor"] = 0.5;
  EXPECT_NE(error_of(json, ErrorCode::kMismatch).find("yarn factor: expected at least 1"), std::string::npos);
}

TEST(Config, RefusesOtherRopeTypes) {
  for (const char* type : {"linear", "dynamic", "longrope", "llama3", "su"}) {
    Json json = tiny();
    json["text_config"]["rope_scaling"]["rope_type"] = type;
    EXPECT_EQ(error_of(json, ErrorCode::kUnsupported),
              "[config.json: text_config: rope_scaling] rope_type: expected default, mrope or yarn, got " +
                  std::string(type));
  }
  Json json = tiny();
  json["text_config"]["partial_rotary_factor"] = 0.5;
  EXPECT_NE(error_of(json, ErrorCode::kUnsupported).find("partial_rotary_factor"), std::string::npos);
}

TEST(Config, RefusesOtherModels) {
  Json json = tiny();
  json["model_type"] = "qwen2_5_vl";
  EXPECT_EQ(error_of(json, ErrorCode::kUnsupported),
            "[config.json] model_type: expected qwen3_vl, got qwen2_5_vl");
  json["model_type"] = "qwen3_vl_moe";
  EXPECT_NE(error_of(json, ErrorCode::kUnsupported).find("mixture-of-experts"), std::string::npos);
  json.erase("model_type");
  EXPECT_NE(error_of(json, ErrorCode::kMismatch).find("not a Qwen3-VL configuration"), std::string::npos);
  Json quantised = tiny();
  quantised["quantization_config"] = {{"quant_method", "fp8"}};
  EXPECT_EQ(error_of(quantised, ErrorCode::kUnsupported),
            "[config.json] quantised checkpoint (quantization_config, method fp8): use the original bf16 "
            "checkpoint");
  quantised["quantization_config"] = nullptr;
  EXPECT_EQ(error_of(quantised, ErrorCode::kUnsupported), "no error");
}

TEST(Config, RefusesTheMoeFixture) {
  try {
    ModelConfig::load(kGolden / "moe/model");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(e.what()).find("moe/model/config.json] model_type qwen3_vl_moe"),
              std::string::npos);
  }
}

TEST(Config, RefusesContradictions) {
  struct Case {
    const char* part;
    const char* key;
    Json value;
    const char* message;
  };
  const std::vector<Case> cases = {
      {"text_config", "num_key_value_heads", 3,
       "num_attention_heads: expected a multiple of num_key_value_heads 3, got 4"},
      {"text_config", "num_key_value_heads", 0, "num_key_value_heads: expected 1 to 1024, got 0"},
      {"text_config", "head_dim", 33, "head_dim: expected an even number, got 33"},
      {"text_config", "hidden_size", -5, "hidden_size: expected 1 to 1048576, got -5"},
      {"text_config", "hidden_size", 128,
       "vision out_hidden_size: expected the text hidden_size 128, got 64"},
      {"text_config", "num_hidden_layers", 2,
       "number of deepstack_visual_indexes: expected at most the 2 decoder layers, got 3"},
      {"text_config", "num_hidden_layers", 1e30, "key 'num_hidden_layers': expected an integer, got 1e+30"},
      {"text_config", "hidden_act", "gelu", "hidden_act: expected silu, got gelu"},
      {"text_config", "rms_norm_eps", 0, "rms_norm_eps: expected a positive number"},
      {"text_config", "rope_theta", -1, "rope_theta: expected a positive number"},
      {"text_config", "vocab_size", "many", "key 'vocab_size': expected an integer, got \"many\""},
      {"text_config", "vocab_size", 100, "image_token_id: expected an id below vocab_size 100, got 501"},
      {"text_config", "attention_bias", 1, "key 'attention_bias': expected true or false, got 1"},
      {"vision_config", "num_heads", 5, "hidden_size: expected a multiple of num_heads 5, got 96"},
      {"vision_config", "num_heads", 16,
       "head size hidden_size / num_heads: expected a multiple of 4, got 6"},
      {"vision_config", "num_position_embeddings", 2300,
       "num_position_embeddings: expected a square, got 2300"},
      {"vision_config",
       "deepstack_visual_indexes",
       {0, 2, 2},
       "ascending block numbers below depth 4, got 2"},
      {"vision_config",
       "deepstack_visual_indexes",
       {0, 1, 4},
       "ascending block numbers below depth 4, got 4"},
      {"vision_config", "deepstack_visual_indexes", {0, 1.5}, "expected a list of integers, got 1.5"},
      {"vision_config", "hidden_act", "quick_gelu", "hidden_act: expected gelu_pytorch_tanh, got quick_gelu"},
      {"vision_config", "patch_size", Json::array({16, 14}), "patch_size with unequal sides"},
      {"vision_config", "out_hidden_size", 65,
       "vision out_hidden_size: expected the text hidden_size 64, got 65"},
      {"", "image_token_id", -1, "key 'image_token_id': expected a token id, got -1"},
      {"", "image_token_id", 502, "image_token_id and video_token_id: expected two different ids"},
      {"", "text_config", "x", "text_config] content: expected a JSON object, got string"},
  };
  for (const Case& c : cases) {
    Json json = tiny();
    (*c.part ? json[c.part] : json)[c.key] = c.value;
    std::string text = "no error";
    try {
      ModelConfig::from_json(json, "config.json");
    } catch (const Error& e) {
      text = e.what();
    }
    EXPECT_NE(text.find(c.message), std::string::npos) << c.key << ": " << text;
    EXPECT_EQ(text.rfind("[config.json", 0), 0u) << text;
  }
}

// Puts every odd value in place of every value of the document, one at a time.
void for_each_replacement(Json& root, Json& node, const std::function<void(const std::string&)>& fn) {
  static const std::vector<Json> kOdd = {nullptr,
                                         true,
                                         0,
                                         -1,
                                         1,
                                         3,
                                         1e308,
                                         0.5,
                                         "x",
                                         "",
                                         INT64_MAX,
                                         INT64_MIN,
                                         UINT64_MAX,
                                         Json::array(),
                                         Json::object(),
                                         Json::array({1, 2, 3}),
                                         Json::array({nullptr}),
                                         1048576,
                                         1024};
  for (auto& [key, value] : node.items()) {
    const Json original = value;
    for (const Json& odd : kOdd) {
      value = odd;
      fn(key + " = " + odd.dump());
    }
    value = original;
    if (value.is_object()) for_each_replacement(root, value, fn);
  }
}

TEST(Config, OddValuesAreReadOrRefusedButNeverWorse) {
  int accepted = 0;
  int refused = 0;
  for (const char* type : {"default", "yarn"}) {
    Json json = tiny();
    json["text_config"]["rope_scaling"]["rope_type"] = type;
    json["text_config"]["rope_scaling"]["factor"] = 2.0;
    json["text_config"]["rope_scaling"]["original_max_position_embeddings"] = 1024;
    json["text_config"]["rope_scaling"]["beta_fast"] = 32;
    json["text_config"]["rope_scaling"]["attention_factor"] = 1.5;
    json["quantization_config"] = nullptr;
    for_each_replacement(json, json, [&](const std::string& what) {
      try {
        const ModelConfig c = ModelConfig::from_json(json, "config.json");
        EXPECT_GT(parameter_count(c).total, 0) << what;
        EXPECT_GT(c.kv_bytes_per_token(DType::kF32), 0) << what;
        for (const float f : mrope_inv_freq(c.text)) EXPECT_TRUE(std::isfinite(f)) << what;
        EXPECT_TRUE(std::isfinite(mrope_attention_factor(c.text))) << what;
        ++accepted;
      } catch (const Error& e) {
        EXPECT_EQ(std::string(e.what()).find("[config.json"), 0u) << what << ": " << e.what();
        ++refused;
      }
    });
  }
  EXPECT_GT(accepted, 300);
  EXPECT_GT(refused, 600);
  Json generation = parse_json(public_generation_config_json("tiny"), "test");
  for_each_replacement(generation, generation, [&](const std::string& what) {
    try {
      GenerationConfig::from_json(generation, "g");
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).find("[g]"), 0u) << what << ": " << e.what();
    }
  });
}

TEST(Config, NullAndAbsentKeyValueHeads) {
  Json json = tiny();
  json["text_config"]["num_key_value_heads"] = nullptr;
  EXPECT_EQ(ModelConfig::from_json(json, "c").text.num_kv_heads, 4);
}

TEST(Config, TiedOnlyByTheTopLevelKey) {
  Json json = tiny();
  json["tie_word_embeddings"] = false;
  json["text_config"]["tie_word_embeddings"] = true;
  ModelConfig c = ModelConfig::from_json(json, "c");
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_TRUE(c.tie_is_explicit);
  json.erase("tie_word_embeddings");
  c = ModelConfig::from_json(json, "c");
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_FALSE(c.tie_is_explicit);
}

TEST(Config, LoadsTheFixtureModel) {
  const ModelConfig c = ModelConfig::load(kGolden / "model");
  EXPECT_EQ(c.text.rope.theta, 100.0);
  EXPECT_EQ(c.dtype, "float32");
  EXPECT_EQ(c.image_token_id, 500);
  const GenerationConfig g = GenerationConfig::load(kGolden / "model", c);
  EXPECT_EQ(g.eos_token_ids, (std::vector<int32_t>{505, 504}));
  EXPECT_EQ(g.pad_token_id, 506);
  EXPECT_FALSE(g.do_sample);
  EXPECT_THROW(ModelConfig::load(kGolden / "no-such-folder"), Error);
}

TEST(GenerationConfig, PublishedValues) {
  const GenerationConfig g = GenerationConfig::from_json(
      parse_json(public_generation_config_json("4b"), "test"), "generation_config.json");
  EXPECT_TRUE(g.do_sample);
  EXPECT_EQ(g.temperature, 0.7);
  EXPECT_EQ(g.top_p, 0.8);
  EXPECT_EQ(g.top_k, 20);
  EXPECT_EQ(g.repetition_penalty, 1.0);
  EXPECT_EQ(g.eos_token_ids, (std::vector<int32_t>{151645, 151643}));
  EXPECT_EQ(g.pad_token_id, 151643);
  EXPECT_FALSE(g.max_new_tokens.has_value());
}

TEST(GenerationConfig, DefaultsWithoutAFileTakeTheEndFromTheModel) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "qvl-generation-none";
  std::filesystem::create_directories(folder);
  const GenerationConfig g = GenerationConfig::load(folder, public_config("4b"));
  EXPECT_FALSE(g.do_sample);
  EXPECT_EQ(g.temperature, 1.0);
  EXPECT_EQ(g.top_p, 1.0);
  EXPECT_EQ(g.top_k, 50);
  EXPECT_EQ(g.min_p, 0.0);
  EXPECT_EQ(g.eos_token_ids, std::vector<int32_t>{151645});
  std::filesystem::remove_all(folder);
}

TEST(GenerationConfig, OneEndOrSeveralAndRanges) {
  const auto read = [](const char* text) { return GenerationConfig::from_json(parse_json(text, "t"), "g"); };
  EXPECT_EQ(read(R"({"eos_token_id": 7})").eos_token_ids, std::vector<int32_t>{7});
  EXPECT_EQ(read(R"({"eos_token_id": [7, 9]})").eos_token_ids, (std::vector<int32_t>{7, 9}));
  EXPECT_TRUE(read(R"({"eos_token_id": null})").eos_token_ids.empty());
  EXPECT_EQ(read(R"({"max_new_tokens": 32, "min_p": 0.05})").max_new_tokens, 32);
  for (const char* bad :
       {R"({"top_p": 0})", R"({"top_p": 1.5})", R"({"temperature": -1})", R"({"top_k": -1})",
        R"({"min_p": 2})", R"({"repetition_penalty": 0})", R"({"eos_token_id": "x"})",
        R"({"eos_token_id": [-1]})", R"({"max_new_tokens": 0})", "[]"}) {
    EXPECT_THROW(read(bad), Error) << bad;
  }
}

}  // namespace
}  // namespace qvl::model
