// What outlives a process: a second pipeline on the same folder (a "new process") says the same tokens as a cold one and
// computes only what is new; anything that would change a bit is never met.
#include "qvl/generate/disk_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>

#include "qvl/generate/fake_engine.h"
#include "qvl/generate/pipeline.h"

namespace qvl::generate {
namespace {

namespace fs = std::filesystem;
using testing::FakeCalls;
using testing::FakeEngine;
using Kind = VisualInput::Kind;

const fs::path kSmall = fs::path(QVL_SOURCE_DIR) / "models/small";
const fs::path kExamples = fs::path(QVL_SOURCE_DIR) / "examples";

class DiskMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    real_ = model::ModelConfig::load(kSmall);
    assets_ = std::make_shared<const Assets>(Assets::load(kSmall, real_));
    folder_ = fs::temp_directory_path() / ("qvl_disk_memory_test_" + std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // An engine, a pipeline and a memory that share nothing with others but the folder.
  struct Process {
    std::shared_ptr<FakeEngine> engine;
    std::unique_ptr<Pipeline> pipeline;
    const FakeCalls& calls() const { return engine->calls_; }
    int64_t computed() const {
      return std::accumulate(calls().prefill_chunks.begin(), calls().prefill_chunks.end(), int64_t{0});
    }
  };
  Process process(std::function<void(FakeEngine&, Assets&)> change = {}, std::string program = "program") const {
    Process out{FakeEngine::with_tokens_of(real_), nullptr};
    auto assets = std::make_shared<Assets>(*assets_);
    if (change) change(*out.engine, *assets);
    auto disk = std::make_shared<DiskMemory>(std::make_shared<CacheFolder>(folder_ / "memory", 1 << 26), *out.engine,
                                             *assets, program);
    out.pipeline = std::make_unique<Pipeline>(out.engine, assets, std::make_shared<ImageMemory>(1 << 26), 16, disk);
    return out;
  }
  Process without() const {
    Process out{FakeEngine::with_tokens_of(real_), nullptr};
    out.pipeline = std::make_unique<Pipeline>(out.engine, assets_, std::make_shared<ImageMemory>(0), 16);
    return out;
  }

  static AnswerOptions greedy() {
    AnswerOptions o;
    o.sampling.greedy = true;
    o.max_tokens = 8;
    o.ignore_eos = true;
    return o;
  }
  static Answer ask(Process& p, const std::vector<VisualInput>& inputs, const std::string& question,
                    const image::PixelOverrides& pixels = {}) {
    return p.pipeline->answer({user_message(p.pipeline->load(inputs, pixels), question)}, greedy());
  }
  // Files whose names end like this.
  std::vector<fs::path> kept(std::string_view kind) const {
    std::vector<fs::path> out;
    if (!fs::exists(folder_ / "memory")) return out;
    for (const auto& entry : fs::directory_iterator(folder_ / "memory"))
      if (entry.path().extension() == kind) out.push_back(entry.path());
    return out;
  }

  model::ModelConfig real_;
  std::shared_ptr<const Assets> assets_;
  fs::path folder_;
};

const VisualInput kShapes{.path = kExamples / "shapes.png"};
const VisualInput kFirst{.path = kExamples / "first.png"};

TEST_F(DiskMemoryTest, AnotherProcessComputesOnlyTheQuestion) {
  Process cold = process();
  const Answer a = ask(cold, {kShapes}, "What is this?");
  EXPECT_EQ(a.cached_tokens, 0);
  EXPECT_FALSE(a.visuals.at(0).cached);

  Process again = process();
  const Answer b = ask(again, {kShapes}, "What is this?");
  EXPECT_EQ(b.token_ids, a.token_ids);
  EXPECT_EQ(again.calls().encodes, 0);
  EXPECT_EQ(b.vision_patches, 0);
  EXPECT_TRUE(b.visuals.at(0).cached);
  EXPECT_EQ(b.visuals.at(0).encode_ms, 0);
  EXPECT_EQ(b.visuals.at(0).info.grid, a.visuals.at(0).info.grid);
  EXPECT_EQ(b.visuals.at(0).info.width, a.visuals.at(0).info.width);
  EXPECT_EQ(b.visuals.at(0).info.resized_height, a.visuals.at(0).info.resized_height);
  EXPECT_GE(b.cached_tokens, 30 + 2);  // the picture between its markers
  EXPECT_EQ(again.computed(), b.prompt_tokens - b.cached_tokens);

  // Another question: what a run without a memory says.
  Process other = process();
  const Answer c = ask(other, {kShapes}, "How many circles are there?");
  EXPECT_EQ(c.cached_tokens, b.cached_tokens);
  Process plain = without();
  EXPECT_EQ(c.token_ids, ask(plain, {kShapes}, "How many circles are there?").token_ids);
  EXPECT_NE(c.token_ids, b.token_ids);
  EXPECT_EQ(kept(".features").size(), 1U);
  EXPECT_EQ(kept(".prefix").size(), 1U);
}

TEST_F(DiskMemoryTest, FeaturesServeWhereThePrefixDiffers) {
  Process cold = process();
  ask(cold, {kShapes}, "?");
  // Behind another picture: the same features at other positions.
  Process second = process();
  const Answer b = ask(second, {kFirst, kShapes}, "?");
  EXPECT_EQ(second.calls().encodes, 1);
  EXPECT_FALSE(b.visuals.at(0).cached);
  EXPECT_TRUE(b.visuals.at(1).cached);
  Process plain = without();
  EXPECT_EQ(b.token_ids, ask(plain, {kFirst, kShapes}, "?").token_ids);
  // The longest beginning there is: shapes alone, then first.
  Process third = process();
  const Answer c = ask(third, {kShapes, kFirst}, "?");
  EXPECT_EQ(third.calls().encodes, 0);
  EXPECT_GT(c.cached_tokens, 30);
  EXPECT_LT(c.cached_tokens, c.prompt_tokens - c.visuals.at(1).tokens);
  Process plain2 = without();
  EXPECT_EQ(c.token_ids, ask(plain2, {kShapes, kFirst}, "?").token_ids);
}

TEST_F(DiskMemoryTest, WhateverChangesABitIsNotMet) {
  Process cold = process();
  const Answer a = ask(cold, {kShapes}, "?");
  const auto expect_cold = [&](Process p, const image::PixelOverrides& pixels = {}) {
    const Answer b = ask(p, {kShapes}, "?", pixels);
    EXPECT_EQ(b.cached_tokens, 0);
    EXPECT_EQ(p.calls().encodes, 1);
    EXPECT_FALSE(b.visuals.at(0).cached);
  };
  expect_cold(process([](FakeEngine& e, Assets&) { e.info_.vision_identity = "fake vision, bf16"; }));
  expect_cold(process([](FakeEngine&, Assets& assets) { assets.image.max_pixels /= 2; }));
  expect_cold(process([](FakeEngine&, Assets& assets) { assets.image.mean[0] = 0.4; }));
  expect_cold(process([](FakeEngine&, Assets& assets) { assets.video.sample_fps = 1; }));
  expect_cold(process({}, "another build"));
  expect_cold(process(), {.min_pixels = 20000, .max_pixels = 40000});
  // Another text stage still sees the same pictures, but other keys and values.
  Process text = process([](FakeEngine& e, Assets&) { e.info_.text_identity = "fake text, fp32"; });
  const Answer b = ask(text, {kShapes}, "?");
  EXPECT_EQ(b.cached_tokens, 0);
  EXPECT_EQ(text.calls().encodes, 0);
  EXPECT_TRUE(b.visuals.at(0).cached);
  EXPECT_EQ(b.token_ids, a.token_ids);
  // Another system message: another beginning.
  Process system = process();
  const std::vector visuals = {system.pipeline->load(kShapes)};
  const Answer c =
      system.pipeline->answer({text_message(text::Role::kSystem, "Be brief."), user_message(visuals, "?")}, greedy());
  EXPECT_EQ(c.cached_tokens, 0);
  EXPECT_TRUE(c.visuals.at(0).cached);
  // Another picture under the same name.
  fs::copy_file(kExamples / "first.png", folder_ / "a.png");
  Process one = process();
  ask(one, {{.path = folder_ / "a.png"}}, "?");
  fs::copy_file(kExamples / "second.png", folder_ / "a.png", fs::copy_options::overwrite_existing);
  Process two = process();
  EXPECT_EQ(ask(two, {{.path = folder_ / "a.png"}}, "?").cached_tokens, 0);
}

TEST_F(DiskMemoryTest, StagesWithoutAnIdentityKeepNothing) {
  Process p = process([](FakeEngine& e, Assets&) { e.info_.vision_identity.clear(); });
  ask(p, {kShapes}, "?");
  EXPECT_TRUE(kept(".features").empty());
  EXPECT_TRUE(kept(".prefix").empty());
  Process q = process([](FakeEngine& e, Assets&) { e.info_.text_identity.clear(); });
  ask(q, {kShapes}, "?");
  EXPECT_EQ(kept(".features").size(), 1U);
  EXPECT_TRUE(kept(".prefix").empty());
}

TEST_F(DiskMemoryTest, DamagedEntriesCostTimeAndNothingElse) {
  Process cold = process();
  const Answer a = ask(cold, {kShapes}, "?");
  const auto damage = [&](std::string_view kind, int64_t from_end) {
    const fs::path path = kept(kind).at(0);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-from_end, std::ios::end);
    const int c = file.get();
    file.seekp(-from_end, std::ios::end);
    file.put(static_cast<char>(c ^ 1));
  };
  for (const std::string_view kind : {".features", ".prefix"}) {
    for (const int64_t at : {int64_t{1}, int64_t{200}}) {
      damage(kind, at);
      Process p = process();
      const Answer b = ask(p, {kShapes}, "?");
      EXPECT_EQ(b.token_ids, a.token_ids) << kind;
    }
  }
  // Both at once, the features' header sound: what was promised has to be computed.
  damage(".features", 1);
  damage(".prefix", 1);
  Process p = process();
  const Answer b = ask(p, {kShapes}, "?");
  EXPECT_EQ(b.token_ids, a.token_ids);
  EXPECT_EQ(p.calls().encodes, 1);
  EXPECT_EQ(b.cached_tokens, 0);
  Process q = process();  // whole again
  EXPECT_GT(ask(q, {kShapes}, "?").cached_tokens, 0);
}

TEST_F(DiskMemoryTest, ConversationsGoOnFromARestoredPicture) {
  const auto talk = [](Process& p) {
    std::vector<ChatMessage> messages = {user_message({p.pipeline->load(kShapes)}, "What is this?")};
    std::vector<std::vector<int32_t>> out;
    for (const char* next : {"Sure?", "And now?"}) {
      const Answer a = p.pipeline->answer(messages, greedy());
      out.push_back(a.token_ids);
      messages.push_back(text_message(text::Role::kAssistant, a.text));
      messages.push_back(user_message({}, next));
    }
    // A picture in a later turn.
    messages.back() = user_message({p.pipeline->load(kFirst)}, "And this?");
    out.push_back(p.pipeline->answer(messages, greedy()).token_ids);
    return out;
  };
  Process plain = without();
  const auto want = talk(plain);
  Process cold = process(), warm = process();
  EXPECT_EQ(talk(cold), want);
  EXPECT_EQ(talk(warm), want);
  EXPECT_EQ(warm.calls().encodes, 0);
}

TEST_F(DiskMemoryTest, GeneratedTokensAreNotKeptAsAPrompts) {
  auto engine = FakeEngine::with_tokens_of(real_);
  auto disk = std::make_shared<DiskMemory>(std::make_shared<CacheFolder>(folder_ / "memory", 1 << 26), *engine,
                                           *assets_, "program");
  Session session(engine, 16);
  const auto picture = [&](Prompt& p, const std::string& key) {
    auto f = std::make_shared<engine::VisionFeatures>();
    f->merged = Tensor::zeros(DType::kF32, {4, 8});
    f->deepstack.resize(2);
    for (Tensor& level : f->deepstack) level = Tensor::zeros(DType::kF32, {4, 8});
    p.ids.push_back(real_.vision_start_token_id);
    p.ids.insert(p.ids.end(), 4, real_.image_token_id);
    p.ids.push_back(real_.vision_end_token_id);
    p.visuals.push_back({.is_video = false, .grid = {1, 4, 4}, .key = key, .features = f});
  };
  Prompt p;
  p.ids = {1, 2};
  picture(p, "a");
  p.ids.push_back(3);
  session.prefill(p);
  const auto said = session.generate({.sampling = {.greedy = true}, .max_tokens = 4}, [](int32_t) { return true; }).ids;
  session.keep(p, *disk);
  EXPECT_EQ(kept(".prefix").size(), 1U);
  // A second picture behind generated tokens: its end is not kept, the first one's still is.
  Prompt longer = p;
  longer.ids.insert(longer.ids.end(), said.begin(), said.end() - 1);
  picture(longer, "b");
  longer.ids.push_back(4);
  EXPECT_EQ(session.prefill(longer).cached_tokens, static_cast<int64_t>(p.ids.size() + said.size()) - 1);
  session.keep(longer, *disk);
  EXPECT_EQ(kept(".prefix").size(), 1U);
  // Fed whole it is a prompt.
  session.clear();
  session.prefill(longer);
  session.keep(longer, *disk);
  EXPECT_EQ(kept(".prefix").size(), 2U);
  // What a session holds is not replaced by something shorter, nor thrown away when there is nothing.
  const int64_t length = session.length();
  EXPECT_EQ(session.restore(longer, *disk), length - 1);
  EXPECT_EQ(session.length(), length);
  Prompt foreign = longer;
  foreign.visuals[1].key = "c";
  EXPECT_EQ(session.restore(foreign, *disk), static_cast<int64_t>(p.ids.size() + said.size()));
  EXPECT_EQ(session.length(), length);
}

TEST_F(DiskMemoryTest, VideosAreRememberedWithTheirTimestamps) {
  fs::create_directories(folder_ / "video");
  for (int i = 0; i < 6; ++i) {
    fs::copy_file(kExamples / (i < 4 ? "first.png" : "second.png"),
                  folder_ / "video" / ("frame" + std::to_string(i) + ".png"));
  }
  const VisualInput video{.kind = Kind::kFrameFolder, .path = folder_ / "video", .native_fps = 2.0};
  Process cold = process();
  const Answer a = ask(cold, {video}, "?");
  Process warm = process();
  const Answer b = ask(warm, {video}, "?");
  EXPECT_EQ(b.token_ids, a.token_ids);
  EXPECT_EQ(warm.calls().encodes, 0);
  EXPECT_EQ(b.visuals.at(0).info.timestamps_s, a.visuals.at(0).info.timestamps_s);
  EXPECT_GT(b.cached_tokens, b.image_tokens);
}

TEST_F(DiskMemoryTest, FramesAndPicturesThatRepeatAreEncodedOnce) {
  fs::create_directories(folder_ / "video");
  // Pairs of frames: first, second, first, first.
  for (int i = 0; i < 8; ++i) {
    fs::copy_file(kExamples / (i / 2 == 1 ? "second.png" : "first.png"),
                  folder_ / "video" / ("frame" + std::to_string(i) + ".png"));
  }
  const VisualInput video{.kind = Kind::kFrameFolder, .path = folder_ / "video", .native_fps = 2.0};
  Process once = process();
  const Answer a = ask(once, {video}, "?");
  const image::Grid grid = a.visuals.at(0).info.grid;
  ASSERT_EQ(grid.t, 4);
  EXPECT_EQ(once.calls().encoded_patches, 2 * grid.h * grid.w);
  EXPECT_EQ(a.vision_patches, 2 * grid.h * grid.w);
  Process every = without();
  every.engine->frames_are_independent_ = false;
  const Answer b = ask(every, {video}, "?");
  EXPECT_EQ(every.calls().encoded_patches, grid.patches());
  EXPECT_EQ(a.token_ids, b.token_ids);

  // The same page twice in a prompt, without any memory between.
  Process pages = without();
  const Answer c = ask(pages, {kShapes, kFirst, kShapes}, "?");
  EXPECT_EQ(pages.calls().encodes, 2);
  EXPECT_FALSE(c.visuals.at(0).cached);
  EXPECT_TRUE(c.visuals.at(2).cached);
  EXPECT_EQ(c.visuals.at(2).info.width, c.visuals.at(0).info.width);
}

TEST_F(DiskMemoryTest, CancelledAnswersKeepWhatWasEncoded) {
  Process p = process();
  std::atomic<bool> cancel = false;
  AnswerCallbacks callbacks;
  callbacks.cancel = &cancel;
  callbacks.progress = [&](Phase phase, int64_t, int64_t) { cancel = cancel || phase == Phase::kPrefill; };
  const std::vector visuals = {p.pipeline->load(kShapes)};
  EXPECT_EQ(p.pipeline->answer({user_message(visuals, "?")}, greedy(), callbacks).reason, FinishReason::kCancelled);
  EXPECT_EQ(kept(".features").size(), 1U);
  EXPECT_TRUE(kept(".prefix").empty());
  Process q = process();
  EXPECT_TRUE(ask(q, {kShapes}, "?").visuals.at(0).cached);
  EXPECT_EQ(q.calls().encodes, 0);
}

}  // namespace
}  // namespace qvl::generate
