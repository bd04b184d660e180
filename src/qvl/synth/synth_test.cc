// Synthetic checkpoints: complete, deterministic, with sane statistics, and nothing left behind on failure.
#include "qvl/synth/synth.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "qvl/base/json.h"
#include "qvl/base/mapped_file.h"
#include "qvl/checkpoint/checkpoint.h"
#include "qvl/checkpoint/test_support.h"
#include "qvl/model/public_shapes.h"
#include "qvl/model/tensor_table.h"
#include "qvl/synth/random_weights.h"
#include "qvl/synth/synthetic_weights.h"

namespace qvl::synth {
namespace {

using checkpoint::Checkpoint;
using checkpoint::error_of;
using checkpoint::ScratchFolder;

SynthOptions tiny(const std::filesystem::path& out) {
  SynthOptions options;
  options.shape = "tiny";
  options.out_folder = out;
  options.threads = 2;
  return options;
}

// Every file of a folder by name.
std::map<std::string, std::string> contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> result;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    result[entry.path().filename().string()] = read_file(entry.path(), size_t{1} << 30);
  }
  return result;
}

model::CheckpointMatch check(const Checkpoint& c, const model::ModelConfig& config) {
  std::vector<model::FoundTensor> found;
  for (const checkpoint::CheckpointTensor& t : c.tensors()) {
    found.push_back({t.name, t.view->dtype, t.view->shape, t.view->file, t.view->name});
  }
  return model::check_checkpoint(config, found, "synth");
}

TEST(Synth, ACompleteCheckpoint) {
  const ScratchFolder scratch;
  uint64_t last = 0;
  SynthOptions options = tiny(scratch / "out/");
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GT(done, last);
    EXPECT_LE(done, total);
    last = done;
    return true;
  };
  const SynthResult result = write_synthetic_checkpoint(options);
  EXPECT_EQ(last, result.weight_bytes);
  EXPECT_EQ(result.shards, 1u);
  EXPECT_FALSE(result.has_tokenizer);

  const model::ModelConfig config = model::ModelConfig::load(scratch / "out");
  const Checkpoint c = Checkpoint::open(scratch / "out");
  EXPECT_TRUE(check(c, config).tied_head);
  EXPECT_EQ(c.tensors().size(), result.tensors);
  EXPECT_EQ(c.total_bytes(), 2 * static_cast<uint64_t>(model::parameter_count(config).total));
  EXPECT_EQ(model::GenerationConfig::load(scratch / "out", config).top_k, 20);
  for (const char* name : {"config.json", "generation_config.json", "preprocessor_config.json",
                           "video_preprocessor_config.json", "model.safetensors"}) {
    EXPECT_TRUE(c.has_file(name)) << name;
  }
  EXPECT_EQ(contents(scratch / "out").size(), 5u);
  size_t siblings = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(scratch.path())) ++siblings;
  EXPECT_EQ(siblings, 1u) << "no temporary folder stays";
}

TEST(Synth, ShardsLikeThePublishedOnes) {
  const ScratchFolder scratch;
  SynthOptions options = tiny(scratch / "out");
  options.max_shard_bytes = 400'000;
  const SynthResult result = write_synthetic_checkpoint(options);
  EXPECT_GT(result.shards, 3u);
  const Checkpoint c = Checkpoint::open(scratch / "out");
  EXPECT_EQ(c.file_count(), result.shards);
  check(c, model::public_config("tiny"));

  SynthOptions whole = tiny(scratch / "whole");
  write_synthetic_checkpoint(whole);
  const Checkpoint w = Checkpoint::open(scratch / "whole");
  for (const checkpoint::CheckpointTensor& t : w.tensors()) {
    const checkpoint::TensorView* other = c.find(t.name);
    ASSERT_NE(other, nullptr);
    EXPECT_TRUE(std::ranges::equal(t.view->bytes, other->bytes)) << t.name;
  }
}

TEST(Synth, TheSeedDecidesEveryByteAndThreadsNone) {
  const ScratchFolder scratch;
  SynthOptions options = tiny(scratch / "a");
  options.seed = 7;
  write_synthetic_checkpoint(options);
  options.out_folder = scratch / "b";
  options.threads = 5;
  write_synthetic_checkpoint(options);
  options.out_folder = scratch / "c";
  options.seed = 8;
  write_synthetic_checkpoint(options);
  EXPECT_EQ(contents(scratch / "a"), contents(scratch / "b"));
  EXPECT_NE(contents(scratch / "a").at("model.safetensors"), contents(scratch / "c").at("model.safetensors"));
}

TEST(Synth, WeightsAreSane) {
  const ScratchFolder scratch;
  write_synthetic_checkpoint(tiny(scratch / "out"));
  const Checkpoint c = Checkpoint::open(scratch / "out");
  const auto moments = [&](const char* name) {
    double sum = 0.0;
    double squares = 0.0;
    const std::vector<float> v = c.find(name)->to_f32();
    for (const float x : v) {
      EXPECT_TRUE(std::isfinite(x));
      sum += x;
      squares += static_cast<double>(x) * x;
    }
    const double mean = sum / static_cast<double>(v.size());
    return std::pair(mean, std::sqrt(squares / static_cast<double>(v.size()) - mean * mean));
  };
  const auto [mean, deviation] = moments("model.visual.deepstack_merger_list.0.linear_fc1.weight");
  EXPECT_NEAR(deviation * std::sqrt(384.0), 1.0, 0.02);
  EXPECT_NEAR(mean, 0.0, 1e-3);
  EXPECT_NEAR(moments("model.visual.patch_embed.proj.weight").second * std::sqrt(1536.0), 1.0, 0.02);
  EXPECT_NEAR(moments("model.language_model.embed_tokens.weight").second, 0.02, 0.001);
  EXPECT_NEAR(moments("model.language_model.norm.weight").first, 1.0, 0.05);
  EXPECT_NEAR(moments("model.visual.blocks.0.norm1.bias").first, 0.0, 0.01);
  EXPECT_NE(c.find("model.language_model.layers.0.mlp.up_proj.weight")->to_f32(),
            c.find("model.language_model.layers.1.mlp.up_proj.weight")->to_f32());
}

TEST(Synth, RefusesWithoutLeavingAnything) {
  const ScratchFolder scratch;
  std::filesystem::create_directory(scratch / "there");
  EXPECT_EQ(
      error_of([&] { write_synthetic_checkpoint(tiny(scratch / "there")); }, scratch.path()),
      "invalid_argument: [DIR/there] output: expected a folder that does not exist yet, got an existing one "
      "(remove it, choose another name, or replace it where the command can (--replace))");
  EXPECT_EQ(error_of([&] { write_synthetic_checkpoint(tiny(scratch / "no/out")); }, scratch.path()),
            "not_found: [DIR/no] no such folder for the output");
  SynthOptions options = tiny(scratch / "out");
  options.shape = "5b";
  EXPECT_EQ(error_of([&] { write_synthetic_checkpoint(options); }),
            "invalid_argument: [shape] name of a model size: expected tiny, 2b, 4b, 8b or 32b, got 5b");
  options = tiny(scratch / "out");
  options.progress = [](uint64_t done, uint64_t) { return done < 100'000; };
  EXPECT_EQ(error_of([&] { write_synthetic_checkpoint(options); }, scratch.path()),
            "cancelled: [DIR/out] stopped; nothing was written");
  size_t siblings = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(scratch.path())) ++siblings;
  EXPECT_EQ(siblings, 1u);
}

TEST(Synth, CopiesATokenizerThatFits) {
  const ScratchFolder scratch;
  const std::filesystem::path from = scratch / "tok";
  std::filesystem::create_directory(from);
  SynthOptions options = tiny(scratch / "out");
  options.tokenizer_folder = from;
  EXPECT_EQ(error_of([&] { write_synthetic_checkpoint(options); }, scratch.path()),
            "not_found: [DIR/tok/tokenizer.json] no such tokenizer file");
  checkpoint::write_text(from / "tokenizer.json", R"({"added_tokens":[{"id":9,"content":"<|image_pad|>"}]})");
  EXPECT_EQ(error_of([&] { write_synthetic_checkpoint(options); }, scratch.path()),
            "mismatch: [DIR/tok/tokenizer.json] id of <|image_pad|>: expected 501, as in shape tiny, got 9 "
            "(a tokenizer "
            "of another model)");
  checkpoint::write_text(
      from / "tokenizer.json",
      R"({"added_tokens":[{"id":501,"content":"<|image_pad|>"},{"id":502,"content":"<|video_pad|>"}]})");
  checkpoint::write_text(from / "chat_template.jinja", "x");
  checkpoint::write_text(from / "model.safetensors", "not to be copied");
  EXPECT_TRUE(write_synthetic_checkpoint(options).has_tokenizer);
  EXPECT_TRUE(std::filesystem::exists(scratch / "out/tokenizer.json"));
  EXPECT_TRUE(std::filesystem::exists(scratch / "out/chat_template.jinja"));
  EXPECT_NO_THROW(Checkpoint::open(scratch / "out"));
}

TEST(RandomWeights, AnyRangeAloneEqualsTheWhole) {
  const WeightSource source(3, "w", 0.0, 1.0);
  std::vector<BFloat16> whole(1001);
  source.fill(0, whole);
  for (const size_t first : {size_t{0}, size_t{4}, size_t{256}, size_t{996}}) {
    std::vector<BFloat16> part(whole.size() - first);
    source.fill(first, part);
    for (size_t i = 0; i < part.size(); ++i)
      ASSERT_EQ(part[i].bits, whole[first + i].bits) << first << " " << i;
  }
}

TEST(RandomWeights, IsNormal) {
  const WeightSource source(1, "w", 0.0, 1.0);
  std::vector<BFloat16> values(1 << 20);
  source.fill(0, values);
  double m[5] = {};
  double neighbours = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double v = to_float(values[i]);
    for (int k = 1; k < 5; ++k) m[k] += std::pow(v, k);
    if (i) neighbours += v * to_float(values[i - 1]);
  }
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(m[1] / n, 0.0, 0.005);
  EXPECT_NEAR(m[2] / n, 1.0, 0.01);
  EXPECT_NEAR(m[3] / n, 0.0, 0.02);
  EXPECT_NEAR(m[4] / n, 3.0, 0.1);
  EXPECT_NEAR(neighbours / n, 0.0, 0.005);
}

// One at a time, in any order, and without a file: the same bits.
TEST(SyntheticWeights, AreThoseOfTheCheckpoint) {
  const ScratchFolder scratch;
  SynthOptions options = tiny(scratch / "out");
  options.seed = 5;
  const SynthResult result = write_synthetic_checkpoint(options);
  const Checkpoint c = Checkpoint::open(scratch / "out");
  ThreadPool pool(3);
  SyntheticWeights weights("tiny", 5, pool);
  EXPECT_EQ(weights.total_bytes(), result.weight_bytes);
  std::vector<model::TensorSpec> table = model::tensor_table(weights.config());
  std::reverse(table.begin(), table.end());
  for (const model::TensorSpec& spec : table) {
    const checkpoint::TensorView& made = weights.tensor(spec.role, spec.layer);
    EXPECT_EQ(made.name, spec.name);
    EXPECT_EQ(made.dtype, DType::kBF16);
    const checkpoint::TensorView& stored = c.get(spec.name, made.shape);
    EXPECT_TRUE(std::ranges::equal(made.bytes, stored.bytes)) << spec.name;
    EXPECT_EQ(&weights.tensor(spec.role, spec.layer), &made);  // not made again
  }
  EXPECT_THROW(SyntheticWeights("9b", 5, pool), Error);
  EXPECT_THROW(weights.tensor(model::TensorRole::kTextQWeight, -1), Error);
}

}  // namespace
}  // namespace qvl::synth
