// Checkpoint folders: single file and shards, name variants, and every defect by its message.
#include "qvl/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <map>

#include "qvl/base/log.h"
#include "qvl/checkpoint/test_support.h"

namespace qvl::checkpoint {
namespace {

class CheckpointFolder : public testing::Test {
 protected:
  CheckpointFolder() { write_text(scratch_ / "config.json", R"({"model_type":"qwen3_vl"})"); }
  ~CheckpointFolder() override { set_log_sink({}); }

  // A file of U8 tensors of one byte each, in a shape of their own.
  void shard(std::string_view file, const std::vector<std::string>& names) {
    std::string json = "{";
    for (size_t i = 0; i < names.size(); ++i) {
      json += (i ? ",\"" : "\"") + names[i] + R"(":{"dtype":"BF16","shape":[1,1],"data_offsets":[)" +
              std::to_string(2 * i) + "," + std::to_string(2 * i + 2) + "]}";
    }
    write_text(scratch_ / file, safetensors_bytes(json + "}", std::string(2 * names.size(), '\x3f')));
  }
  void index(const std::map<std::string, std::string>& weight_map) {
    Json json;
    json["metadata"]["total_size"] = 0;
    json["weight_map"] = weight_map;
    write_text(scratch_ / "model.safetensors.index.json", json.dump());
  }
  std::string error() {
    return error_of([&] { Checkpoint::open(scratch_.path()); }, scratch_.path());
  }
  Checkpoint open() { return Checkpoint::open(scratch_.path()); }

  ScratchFolder scratch_;
};

constexpr std::string_view kA = "a.safetensors";
constexpr std::string_view kB = "b.safetensors";
const std::string kNorm = "model.language_model.norm.weight";
const std::string kHead = "lm_head.weight";

TEST_F(CheckpointFolder, SingleFile) {
  shard("model.safetensors", {kNorm, kHead});
  EXPECT_TRUE(is_checkpoint_folder(scratch_.path()));
  const Checkpoint c = open();
  EXPECT_EQ(c.names(), (std::vector<std::string>{kHead, kNorm}));
  EXPECT_EQ(c.total_bytes(), 4u);
  EXPECT_EQ(c.file_count(), 1u);
  EXPECT_EQ(c.renamed_count(), 0u);
  EXPECT_EQ(c.config_json()["model_type"], "qwen3_vl");
  EXPECT_TRUE(c.has_file("config.json"));
  EXPECT_FALSE(c.has_file("tokenizer.json"));
  EXPECT_EQ(c.get(kNorm, {1, 1}).bytes.size(), 2u);
  c.prefetch();
  c.prefetch(c.tensors()[0]);
  c.drop(c.tensors()[0]);
  EXPECT_EQ(c.find(kNorm)->to_f32().size(), 1u) << "hints change nothing";
}

TEST_F(CheckpointFolder, LookupStatesWhatItExpects) {
  shard("model.safetensors", {kNorm});
  const Checkpoint c = open();
  EXPECT_EQ(c.find("model.language_model.norm"), nullptr);
  EXPECT_EQ(error_of(
                [&] {
                  c.get(kHead, {1, 1});
                },
                scratch_.path()),
            "not_found: [DIR: tensor 'lm_head.weight'] not in the checkpoint");
  EXPECT_EQ(
      error_of([&] { c.get(kNorm, {1}); }, scratch_.path()),
      "mismatch: [DIR/model.safetensors: tensor 'model.language_model.norm.weight'] shape: expected [1], got "
      "[1, 1]");
  write_text(scratch_ / "model.safetensors",
             safetensors_bytes(R"({"lm_head.weight":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}})", "x"));
  const Checkpoint integers = open();
  EXPECT_EQ(error_of([&] { integers.get(kHead, {1}); }, scratch_.path()),
            "unsupported: [DIR/model.safetensors: tensor 'lm_head.weight'] element type: expected F32, BF16 "
            "or F16, "
            "got I8");
}

TEST_F(CheckpointFolder, Shards) {
  shard(kA, {kNorm, "model.visual.pos_embed.weight"});
  shard(kB, {kHead});
  index({{kNorm, "a.safetensors"},
         {"model.visual.pos_embed.weight", "a.safetensors"},
         {kHead, "b.safetensors"}});
  Checkpoint first = open();
  const Checkpoint c = std::move(first);
  EXPECT_EQ(c.file_count(), 2u);
  EXPECT_EQ(c.tensors().size(), 3u);
  EXPECT_EQ(c.find(kHead)->file, (scratch_ / kB).string());
  EXPECT_EQ(c.total_bytes(), 6u);
}

TEST_F(CheckpointFolder, TheSingleFileBeatsTheIndexAndThatIsLogged) {
  std::string log;
  set_log_sink([&](LogLevel, std::string_view m) { log += m; });
  shard("model.safetensors", {kNorm});
  index({{kNorm, "gone.safetensors"}});
  EXPECT_EQ(open().tensors().size(), 1u);
  EXPECT_NE(log.find("the single file is used"), std::string::npos) << log;
}

TEST(TensorNames, VariantsBecomeCanonical) {
  const std::map<std::string, std::string> cases = {
      {"model.visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"},
      {"visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"},
      {"model.language_model.layers.3.mlp.up_proj.weight",
       "model.language_model.layers.3.mlp.up_proj.weight"},
      {"language_model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"},
      {"language_model.model.layers.3.mlp.up_proj.weight",
       "model.language_model.layers.3.mlp.up_proj.weight"},
      {"model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"},
      {"model.embed_tokens.weight", "model.language_model.embed_tokens.weight"},
      {"model.norm.weight", "model.language_model.norm.weight"},
      {"lm_head.weight", "lm_head.weight"},
      {"language_model.lm_head.weight", "lm_head.weight"},
      {"something.else", "something.else"},
      {"model.visualiser.weight", "model.visualiser.weight"},
      {"", ""}};
  for (const auto& [from, to] : cases) EXPECT_EQ(canonical_tensor_name(from), to) << from;
}

TEST_F(CheckpointFolder, NameVariantsAreMappedCountedAndLogged) {
  std::string log;
  set_log_sink([&](LogLevel, std::string_view m) { log += m; });
  shard("model.safetensors", {"language_model.model.norm.weight", "visual.pos_embed.weight", kHead});
  const Checkpoint c = open();
  EXPECT_EQ(c.renamed_count(), 2u);
  ASSERT_NE(c.find(kNorm), nullptr);
  EXPECT_EQ(c.find(kNorm)->name, "language_model.model.norm.weight") << "errors name what is in the file";
  EXPECT_NE(log.find("2 tensor names"), std::string::npos) << log;
}

TEST_F(CheckpointFolder, TwoSpellingsOfOneTensor) {
  shard("model.safetensors", {kNorm, "language_model.norm.weight"});
  EXPECT_EQ(
      error(),
      "mismatch: [DIR: tensor 'model.language_model.norm.weight'] there twice: as "
      "'model.language_model.norm.weight' in DIR/model.safetensors and as 'language_model.norm.weight' in "
      "DIR/model.safetensors");
}

TEST_F(CheckpointFolder, NoFolderNoConfigNoWeights) {
  EXPECT_EQ(error_of([&] { Checkpoint::open(scratch_ / "none"); }, scratch_.path()),
            "not_found: [DIR/none] no such folder");
  EXPECT_EQ(error_of([&] { Checkpoint::open(scratch_ / "config.json"); }, scratch_.path()),
            "invalid_argument: [DIR/config.json] checkpoint: expected a folder with config.json and weights, "
            "got a file");
  EXPECT_EQ(error(),
            "not_found: [DIR] weights: expected model.safetensors or model.safetensors.index.json, got "
            "neither (is the "
            "download complete?)");
  write_text(scratch_ / "pytorch_model.bin", "x");
  EXPECT_EQ(error(),
            "not_found: [DIR] weights: expected model.safetensors or model.safetensors.index.json, got "
            "neither (the "
            "folder has pytorch_model.bin: convert it to safetensors first)");
  EXPECT_FALSE(is_checkpoint_folder(scratch_.path()));
  std::filesystem::remove(scratch_ / "config.json");
  EXPECT_EQ(error(), "not_found: [DIR/config.json] no such file in the checkpoint folder");
  write_text(scratch_ / "config.json", "{");
  EXPECT_EQ(error().find("format: [DIR/config.json] not valid JSON"), 0u);
}

TEST_F(CheckpointFolder, AnIndexThatPointsNowhere) {
  shard(kA, {kNorm});
  index({{kNorm, "a.safetensors"}, {kHead, "b.safetensors"}});
  EXPECT_EQ(error(),
            "not_found: [DIR/model.safetensors.index.json] shard 'b.safetensors' does not exist, but tensor "
            "'lm_head.weight' should be in it (is the download complete?)");
}

TEST_F(CheckpointFolder, ATensorMissingInItsShard) {
  shard(kA, {kNorm});
  index({{kNorm, "a.safetensors"}, {kHead, "a.safetensors"}});
  EXPECT_EQ(error(),
            "mismatch: [DIR/a.safetensors: tensor 'lm_head.weight'] listed in model.safetensors.index.json "
            "but not in "
            "the file");
}

TEST_F(CheckpointFolder, ATensorTheIndexDoesNotList) {
  shard(kA, {kNorm, kHead});
  index({{kNorm, "a.safetensors"}});
  EXPECT_EQ(error(),
            "mismatch: [DIR/a.safetensors: tensor 'lm_head.weight'] place in model.safetensors.index.json: "
            "expected "
            "this file, got not listed");
}

TEST_F(CheckpointFolder, ATensorInTwoShards) {
  shard(kA, {kNorm, kHead});
  shard(kB, {kHead});
  index({{kNorm, "a.safetensors"}, {kHead, "b.safetensors"}});
  EXPECT_EQ(error(),
            "mismatch: [DIR/a.safetensors: tensor 'lm_head.weight'] place in model.safetensors.index.json: "
            "expected "
            "this file, got 'b.safetensors'");
}

TEST_F(CheckpointFolder, ShardsOutsideTheFolderAreRefused) {
  shard(kA, {kNorm});
  std::filesystem::create_directory(scratch_ / "sub");
  std::filesystem::copy_file(scratch_ / kA, scratch_ / "sub/a.safetensors");
  for (const std::string bad :
       {"../a.safetensors", "sub/a.safetensors", "/etc/passwd", "..", ".", "", "a\\b"}) {
    index({{kNorm, bad}});
    EXPECT_EQ(error(),
              "format: [DIR/model.safetensors.index.json] shard of tensor "
              "'model.language_model.norm.weight': expected "
              "a file name inside the folder, got '" +
                  bad + "'");
  }
}

TEST_F(CheckpointFolder, IndexesThatAreNone) {
  const auto with = [&](std::string_view text) {
    write_text(scratch_ / "model.safetensors.index.json", text);
    return error();
  };
  const std::string where = "format: [DIR/model.safetensors.index.json] ";
  EXPECT_EQ(with("{\"weight_map\":").find(where + "not valid JSON"), 0u);
  EXPECT_EQ(with("[]"), where + "index: expected a JSON object, got array");
  EXPECT_EQ(with("{}"), where + "key 'weight_map': expected an object from tensor to shard, got no such key");
  EXPECT_EQ(with(R"({"weight_map":[]})"),
            where + "key 'weight_map': expected an object from tensor to shard, got array");
  EXPECT_EQ(with(R"({"weight_map":{}})"),
            where + "key 'weight_map': expected at least one tensor, got an empty object");
  EXPECT_EQ(with(R"({"weight_map":{"a":1}})"), where + "shard of tensor 'a': expected a string, got number");
}

TEST_F(CheckpointFolder, ATruncatedShard) {
  shard(kA, {kNorm});
  shard(kB, {kHead, "model.visual.pos_embed.weight"});
  index({{kNorm, "a.safetensors"},
         {kHead, "b.safetensors"},
         {"model.visual.pos_embed.weight", "b.safetensors"}});
  std::filesystem::resize_file(scratch_ / kB, std::filesystem::file_size(scratch_ / kB) - 1);
  EXPECT_EQ(error(),
            "format: [DIR/b.safetensors: tensor 'model.visual.pos_embed.weight'] end of the data: expected "
            "at most byte "
            "3 of the data in the file, got 4 (offset out of range, or the file is truncated)");
  std::filesystem::resize_file(scratch_ / kB, 20);
  EXPECT_EQ(
      error().find("format: [DIR/b.safetensors] header length: expected at most the 12 bytes that follow"),
      0u);
}

TEST(CheckpointGolden, OpensTheFixtureModel) {
  const Checkpoint c = Checkpoint::open(QVL_SOURCE_DIR "/tests/fixtures/golden/model");
  EXPECT_EQ(c.get("model.visual.patch_embed.proj.weight", {64, 3, 2, 16, 16}).dtype, DType::kF32);
  EXPECT_EQ(c.find("lm_head.weight"), nullptr);
}

}  // namespace
}  // namespace qvl::checkpoint
