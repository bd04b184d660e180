// Conversations with pictures on the fake engine and the small model's tokenizer: what is computed, what is
// taken over, what is reported.
#include "qvl/generate/pipeline.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <tuple>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"

namespace qvl::generate {
namespace {

namespace fs = std::filesystem;
using testing::FakeEngine;
using Kind = VisualInput::Kind;

const fs::path kSmall = fs::path(QVL_SOURCE_DIR) / "models/small";
const fs::path kExamples = fs::path(QVL_SOURCE_DIR) / "examples";

class PipelineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const model::ModelConfig real = model::ModelConfig::load(kSmall);
    engine_ = FakeEngine::with_tokens_of(real);
    assets_ = std::make_shared<const Assets>(Assets::load(kSmall, real));
    memory_ = std::make_shared<ImageMemory>(size_t{1} << 30);
    folder_ = fs::temp_directory_path() / ("qvl_pipeline_test_" + std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // The model says this, then <|im_end|>.
  void script(std::string_view text) {
    engine_->script_ = assets_->tokenizer.encode_text(text);
    engine_->script_.push_back(assets_->tokenizer.require_token("<|im_end|>"));
  }
  Pipeline pipeline() { return Pipeline(engine_, assets_, memory_, 16); }
  static AnswerOptions greedy() {
    AnswerOptions o;
    o.sampling.greedy = true;
    return o;
  }

  std::shared_ptr<FakeEngine> engine_;
  std::shared_ptr<const Assets> assets_;
  std::shared_ptr<ImageMemory> memory_;
  fs::path folder_;
};

TEST_F(PipelineTest, AnswersAndReports) {
  script("A red circle.");
  Pipeline p = pipeline();
  std::string streamed;
  std::vector<std::pair<Phase, int64_t>> progress;
  AnswerCallbacks callbacks;
  callbacks.on_text = [&](std::string_view s) { streamed += s; };
  callbacks.progress = [&](Phase phase, int64_t done, int64_t total) {
    EXPECT_LE(done, total);
    progress.push_back({phase, done});
  };
  const auto visual = p.load({.kind = Kind::kImageFile, .path = kExamples / "shapes.png"});
  const Answer a = p.answer({user_message({visual}, "What is this?")}, greedy(), callbacks);
  EXPECT_EQ(a.text, "A red circle.");
  EXPECT_EQ(streamed, a.text);
  EXPECT_EQ(a.token_ids, engine_->script_);  // the end token included
  EXPECT_EQ(a.reason, FinishReason::kStop);
  ASSERT_EQ(a.visuals.size(), 1U);
  EXPECT_EQ(a.visuals[0].info.width, 192);
  EXPECT_EQ(a.visuals[0].info.height, 160);
  EXPECT_EQ(a.visuals[0].info.grid, (image::Grid{1, 10, 12}));
  EXPECT_EQ(a.visuals[0].tokens, 30);
  EXPECT_FALSE(a.visuals[0].cached);
  EXPECT_GT(a.visuals[0].encode_ms, 0);
  EXPECT_EQ(a.image_tokens, 30);
  EXPECT_EQ(a.vision_patches, 120);
  EXPECT_EQ(a.cached_tokens, 0);
  EXPECT_GT(a.prompt_tokens, 30);
  EXPECT_GE(a.ttft_ms, a.preprocess_ms + a.vision_ms + a.prefill_ms - 1e-3);
  EXPECT_GT(a.preprocess_ms, 0);
  EXPECT_EQ(progress.front().first, Phase::kVision);
  EXPECT_EQ(progress.back().first, Phase::kPrefill);
}

TEST_F(PipelineTest, ASecondTurnEncodesNothingAgainEvenWithoutTheFile) {
  fs::copy_file(kExamples / "first.png", folder_ / "a.png");
  script("Red.");
  Pipeline p = pipeline();
  std::vector<ChatMessage> talk = {user_message({p.load({.path = folder_ / "a.png"})}, "What colour?")};
  const Answer first = p.answer(talk, greedy());
  fs::remove(folder_ / "a.png");
  talk.push_back(text_message(text::Role::kAssistant, first.text));
  talk.push_back(user_message({}, "Sure?"));
  engine_->calls_ = {};
  const Answer second = p.answer(talk, greedy());
  EXPECT_EQ(engine_->calls_.encodes, 0);
  EXPECT_TRUE(second.visuals.at(0).cached);
  EXPECT_EQ(second.visuals.at(0).encode_ms, 0);
  EXPECT_EQ(second.preprocess_ms, 0);
  // Everything but the first answer's end token, which never was an input, and what follows it.
  EXPECT_EQ(second.cached_tokens, first.prompt_tokens + static_cast<int64_t>(first.token_ids.size()) - 1);
  int64_t computed = 0;
  for (int64_t n : engine_->calls_.prefill_chunks) computed += n;
  EXPECT_EQ(computed, second.prompt_tokens - second.cached_tokens);
}

TEST_F(PipelineTest, TheSamePictureIsRememberedAcrossSessions) {
  script("x");
  Pipeline a = pipeline(), b = pipeline();
  a.answer({user_message({a.load({.path = kExamples / "first.png"})}, "?")}, greedy());
  const std::string bytes = [] {
    std::ifstream in(kExamples / "first.png", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  const Answer again = b.answer(
      {user_message({b.load({.kind = Kind::kImageBytes, .bytes = bytes, .name = "upload"})}, "?")}, greedy());
  EXPECT_EQ(engine_->calls_.encodes, 1);
  EXPECT_TRUE(again.visuals.at(0).cached);
  EXPECT_EQ(again.cached_tokens, 0);
  EXPECT_EQ(again.visuals.at(0).info.width, 128);
  // Other pixel limits make other features.
  const Answer larger = b.answer(
      {user_message({b.load({.path = kExamples / "first.png"}, {.min_pixels = 20000, .max_pixels = 40000})},
                    "?")},
      greedy());
  EXPECT_EQ(engine_->calls_.encodes, 2);
  EXPECT_GT(larger.visuals.at(0).tokens, again.visuals.at(0).tokens);
}

TEST_F(PipelineTest, PicturesOfAFolderAreAVideo) {
  for (int i = 0; i < 6; ++i)
    fs::copy_file(kExamples / "first.png", folder_ / ("frame" + std::to_string(i) + ".png"));
  script("x");
  Pipeline p = pipeline();
  const auto video = p.load({.kind = Kind::kFrameFolder, .path = folder_, .native_fps = 2.0});
  EXPECT_TRUE(video->info().is_video);
  EXPECT_EQ(video->info().grid.t, 3);
  EXPECT_EQ(video->info().timestamps_s, (std::vector<double>{0.25, 1.25, 2.25}));
  const auto picture = p.load({.path = kExamples / "second.png"});
  const Answer a = p.answer({user_message({picture, video}, "?")}, greedy());
  EXPECT_EQ(a.visuals.size(), 2U);
  EXPECT_EQ(a.image_tokens, a.visuals[0].tokens + a.visuals[1].tokens);
  EXPECT_NE(p.load({.kind = Kind::kFrameFolder, .path = folder_, .native_fps = 4.0})->info().key,
            video->info().key);
}

TEST_F(PipelineTest, StopStringsLengthAndIgnoredEnds) {
  script("one two three");
  Pipeline p = pipeline();
  AnswerOptions o = greedy();
  o.stop = {"two"};
  Answer a = p.answer({user_message({}, "Count.")}, o);
  EXPECT_EQ(a.text, "one ");
  EXPECT_EQ(a.reason, FinishReason::kStop);
  o = greedy();
  o.max_tokens = 2;
  a = p.answer({user_message({}, "Count.")}, o);
  EXPECT_EQ(a.reason, FinishReason::kLength);
  EXPECT_EQ(a.token_ids.size(), 2U);
  o.max_tokens = static_cast<int64_t>(engine_->script_.size()) + 5;
  o.ignore_eos = true;
  a = p.answer({user_message({}, "Count.")}, o);
  EXPECT_EQ(a.reason, FinishReason::kLength);
  EXPECT_EQ(a.token_ids.size(), engine_->script_.size() + 5);
  EXPECT_TRUE(a.text.starts_with("one two three")) << a.text;
  EXPECT_EQ(a.text.find("<|im_end|>"), std::string::npos);
}

TEST_F(PipelineTest, CancellingInEveryPhaseLeavesAUsablePipeline) {
  script("one two three");
  Pipeline p = pipeline();
  const auto visual = p.load({.path = kExamples / "first.png"});
  const std::vector<ChatMessage> talk = {user_message({visual}, "What is this?")};
  for (Phase phase : {Phase::kVision, Phase::kPrefill}) {
    std::atomic<bool> cancel = false;
    AnswerCallbacks callbacks;
    callbacks.cancel = &cancel;
    callbacks.progress = [&](Phase now, int64_t, int64_t) { cancel = cancel || now == phase; };
    const Answer a = p.answer(talk, greedy(), callbacks);
    EXPECT_EQ(a.reason, FinishReason::kCancelled);
    EXPECT_EQ(a.text, "");
    EXPECT_TRUE(a.token_ids.empty());
  }
  std::atomic<bool> cancel = false;
  AnswerCallbacks callbacks;
  callbacks.cancel = &cancel;
  callbacks.on_text = [&](std::string_view) { cancel = true; };
  const Answer part = p.answer(talk, greedy(), callbacks);
  EXPECT_EQ(part.reason, FinishReason::kCancelled);
  EXPECT_FALSE(part.text.empty());
  const Answer whole = p.answer(talk, greedy());
  EXPECT_EQ(whole.text, "one two three");
  EXPECT_TRUE(whole.text.starts_with(part.text));
}

TEST_F(PipelineTest, UserTextNeverMakesControlTokens) {
  script("x");
  Pipeline p = pipeline();
  const Prompt prompt = p.make_prompt({user_message({}, "<|im_end|><|image_pad|>")}, greedy());
  EXPECT_EQ(std::count(prompt.ids.begin(), prompt.ids.end(), engine_->config_.image_token_id), 0);
  EXPECT_EQ(std::count(prompt.ids.begin(), prompt.ids.end(), assets_->tokenizer.require_token("<|im_end|>")),
            1);
}

TEST_F(PipelineTest, BadPicturesAreNamed) {
  Pipeline p = pipeline();
  auto message = [&](VisualInput input) -> std::string {
    try {
      p.load(std::move(input));
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  std::ofstream(folder_ / "junk.png") << "not a picture";
  EXPECT_NE(message({.path = folder_ / "junk.png"}).find("junk.png"), std::string::npos);
  EXPECT_NE(message({.path = folder_ / "absent.png"}).find("absent.png"), std::string::npos);
  EXPECT_NE(message({.path = folder_}).find(folder_.filename().string()), std::string::npos);
  EXPECT_NE(message({.kind = Kind::kFrameFolder, .path = folder_ / "none"}).find("none"), std::string::npos);
  EXPECT_NE(message({.kind = Kind::kImageBytes, .bytes = "", .name = "upload 1"}).find("upload 1"),
            std::string::npos);
}

TEST_F(PipelineTest, AnAnswerReadAheadIsTheOneOfAPrompt) {
  script("one two three four five six seven");
  Pipeline p = pipeline(), keeps = pipeline();
  p.set_reuse(Session::Reuse::kPromptsOnly);
  const auto visual = p.load({.path = kExamples / "shapes.png"});
  std::vector<ChatMessage> talk = {user_message({visual}, "Count.")};
  EXPECT_FALSE(p.has_unread());
  const Answer a = p.answer(talk, greedy());
  ASSERT_TRUE(p.has_unread());
  engine_->calls_ = {};
  EXPECT_THROW(p.read_ahead(3, [](int64_t, int64_t) { return false; }), Error);
  ASSERT_TRUE(p.has_unread());
  int pieces = 0;
  for (; p.has_unread() && pieces < 100; ++pieces) p.read_ahead(3);
  // The answer and, up to the question's text, the marks behind its end token.
  const auto marks = static_cast<int64_t>(assets_->tokenizer.encode("\n<|im_start|>user\n").size());
  const int64_t read = static_cast<int64_t>(a.token_ids.size()) + marks;
  EXPECT_EQ(pieces, (read + 2) / 3);
  EXPECT_EQ(engine_->calls_.encodes, 0);
  p.read_ahead(3);  // nothing
  talk.push_back(text_message(text::Role::kAssistant, a.text));
  talk.push_back(user_message({}, "Again."));
  const Answer b = p.answer(talk, greedy());
  EXPECT_EQ(b.cached_tokens, a.prompt_tokens + read);
  EXPECT_EQ(b.token_ids, pipeline().answer(talk, greedy()).token_ids);
  p.reset();
  EXPECT_FALSE(p.has_unread());
  keeps.answer(talk, greedy());
  EXPECT_FALSE(keeps.has_unread()) << "what was generated may be taken over as it is";
  EXPECT_THROW(p.read_ahead(0), Error);
}

TEST_F(PipelineTest, BehindAnAnswerThatWasCutNoMarksAreReadAhead) {
  script("one two three four");
  Pipeline p = pipeline();
  p.set_reuse(Session::Reuse::kPromptsOnly);
  AnswerOptions o = greedy();
  o.max_tokens = 3;
  const Answer a = p.answer({user_message({}, "Count.")}, o);
  ASSERT_TRUE(p.has_unread());
  p.read_ahead(100);
  EXPECT_EQ(p.session().length(), a.prompt_tokens + 3);
}

TEST_F(PipelineTest, TheNextTurnsBeginningIsReadAheadUpToTheQuestion) {
  for (const std::string_view said : {"one two three.", "Red", "a new line\n"}) {
    for (const bool stopped : {false, true}) {
      SCOPED_TRACE(std::string(said) + (stopped ? ", cut" : ""));
      script(said);
      Pipeline p = pipeline();
      AnswerOptions o = greedy();
      if (stopped) o.max_tokens = static_cast<int64_t>(engine_->script_.size()) - 1;
      std::vector<ChatMessage> talk = {user_message({p.load({.path = kExamples / "shapes.png"})}, "Count.")};
      talk.push_back(text_message(text::Role::kAssistant, p.answer(talk, o).text));
      p.expect_turn(talk, o);
      ASSERT_TRUE(p.has_unread());
      EXPECT_THROW(p.read_ahead(100, [](int64_t, int64_t) { return false; }), Error);
      ASSERT_TRUE(p.has_unread());
      engine_->calls_ = {};
      p.read_ahead(2);
      while (p.has_unread()) p.read_ahead(2);
      EXPECT_EQ(engine_->calls_.encodes, 0);
      p.expect_turn(talk, o);
      EXPECT_FALSE(p.has_unread()) << "all of it is there";
      // Whatever is asked, it begins so. Behind it: the question, its end and the answer's marks.
      const int64_t read = p.session().length();
      const auto marks = static_cast<int64_t>(assets_->tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n").size());
      for (const char* question : {"Sure?", "2 + 2", " indented", "\xc3\xa9"}) {
        std::vector<ChatMessage> next = talk;
        next.push_back(user_message({}, question));
        const Prompt prompt = p.make_prompt(next, o);
        EXPECT_EQ(p.session().cached_prefix(prompt), read) << question;
        const auto asked = static_cast<int64_t>(assets_->tokenizer.encode_text(question).size());
        EXPECT_EQ(static_cast<int64_t>(prompt.ids.size()), read + asked + marks) << question;
      }
      // A picture, or a line that begins with an end of line, may share a token less.
      for (const std::vector<std::shared_ptr<Visual>>& pictures :
           {std::vector<std::shared_ptr<Visual>>{p.load({.path = kExamples / "first.png"})}, {}}) {
        std::vector<ChatMessage> next = talk;
        next.push_back(user_message(pictures, "\nWhat?"));
        const Answer b = p.answer(next, o);
        EXPECT_GE(b.cached_tokens, read - 1);
        EXPECT_EQ(b.token_ids, pipeline().answer(next, o).token_ids);
      }
    }
  }
}

TEST_F(PipelineTest, NothingIsReadAheadWhereItWouldCostOrShow) {
  script("one two three");
  Pipeline p = pipeline();
  std::vector<ChatMessage> talk = {user_message({p.load({.path = kExamples / "shapes.png"})}, "Count.")};
  talk.push_back(text_message(text::Role::kAssistant, p.answer(talk, greedy()).text));
  const auto expects = [&] {
    p.expect_turn(talk, greedy());
    return p.has_unread();
  };
  EXPECT_TRUE(expects());
  // Rows that depend on each other: the answer would depend on the time its user takes.
  engine_->rows_are_independent_ = false;
  EXPECT_FALSE(expects());
  engine_->rows_are_independent_ = true;
  // The context is full.
  engine_->config_.text.max_positions = p.session().length() + 5;
  EXPECT_FALSE(expects());
  engine_->config_.text.max_positions = 4096;
  EXPECT_TRUE(expects());
  // A turn that comes first ends it.
  std::vector<ChatMessage> next = talk;
  next.push_back(user_message({}, "Sure?"));
  p.answer(next, greedy());
  EXPECT_FALSE(p.has_unread());
  // What the session holds is something else by now: pictures would have to be encoded.
  p.answer({user_message({}, "Hello")}, greedy());
  engine_->calls_ = {};
  EXPECT_FALSE(expects());
  p.reset();
  EXPECT_FALSE(expects());
  EXPECT_EQ(engine_->calls_.encodes, 0);
  EXPECT_TRUE(engine_->calls_.prefill_chunks.empty());
}

TEST_F(PipelineTest, LimitsHoldForRememberedPicturesToo) {
  script("A red circle.");
  Pipeline p = pipeline();
  VisualInput picture{.kind = Kind::kImageFile, .path = kExamples / "shapes.png"};  // 192x160
  VisualInput limited = picture;
  limited.limits.max_pixels = 192 * 160 - 1;
  const auto refused = [&] {
    try {
      p.load(limited);
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("30719 pixels"), std::string::npos) << e.what();
      return e.code() == ErrorCode::kLimit;
    }
    return false;
  };
  EXPECT_TRUE(refused());
  p.answer({user_message({p.load(picture)}, "?")}, greedy());
  ASSERT_EQ(engine_->calls_.encodes, 1);
  EXPECT_TRUE(refused());
  limited.limits.max_pixels += 1;
  EXPECT_EQ(p.load(limited)->info().width, 192);
}

TEST_F(PipelineTest, APromptTooLongFailsBeforeAnythingIsEncoded) {
  engine_->config_.text.max_positions = 30;
  Pipeline p = pipeline();
  const auto visual = p.load({.path = kExamples / "shapes.png"});
  EXPECT_THROW(p.answer({user_message({visual}, "?")}, greedy()), Error);
  EXPECT_EQ(engine_->calls_.encodes, 0);
}

TEST_F(PipelineTest, SeedsAreReported) {
  Pipeline p = pipeline();
  AnswerOptions o;
  o.max_tokens = 12;
  const Answer a = p.answer({user_message({}, "Hello")}, o);
  o.seed = a.seed;
  const Answer b = p.answer({user_message({}, "Hello")}, o);
  EXPECT_EQ(a.token_ids, b.token_ids);
  o.seed = a.seed + 1;
  EXPECT_NE(p.answer({user_message({}, "Hello")}, o).token_ids, a.token_ids);
}

// ---- answers in steps

TEST_F(PipelineTest, AnswersStepTogetherAsEachAlone) {
  std::vector<std::vector<ChatMessage>> talks;
  std::vector<std::unique_ptr<Pipeline>> pipelines;
  std::vector<std::string> streamed(3);
  std::vector<std::unique_ptr<Answering>> all;
  AnswerOptions o;
  o.max_tokens = 25;
  o.seed = 7;
  o.stop = {"qq"};
  const auto talk = [](Pipeline& p, size_t i) {
    std::vector<std::shared_ptr<Visual>> pictures;
    if (i > 0) pictures.push_back(p.load({.path = kExamples / (i == 1 ? "first.png" : "shapes.png")}));
    return std::vector<ChatMessage>{user_message(pictures, i == 0 ? "Hello there" : "What is this?")};
  };
  int64_t inside = 0;
  for (size_t i = 0; i < 3; ++i) {
    pipelines.push_back(std::make_unique<Pipeline>(pipeline()));
    AnswerCallbacks callbacks;
    callbacks.on_text = [&, i](std::string_view s) { streamed[i] += s; };
    // While one reads its picture and its prompt, those before it go on.
    callbacks.progress = [&](Phase, int64_t done, int64_t total) {
      EXPECT_LE(done, total);
      std::vector<Generation*> others;
      for (const auto& a : all) {
        if (!a->done() && a->generation()->ids().size() < 5) others.push_back(a->generation());
      }
      if (others.empty()) return;
      decode_step(*engine_, others);
      ++inside;
    };
    AnswerOptions mine = o;
    if (i == 1) mine.sampling.greedy = true;
    all.push_back(pipelines.back()->begin(talk(*pipelines.back(), i), mine, callbacks));
  }
  EXPECT_GT(inside, 3);
  for (;;) {
    std::vector<Generation*> now;
    for (const auto& a : all) {
      if (!a->done()) now.push_back(a->generation());
    }
    if (now.empty()) break;
    decode_step(*engine_, now);
  }
  for (size_t i = 0; i < 3; ++i) {
    const Answer together = all[i]->finish();
    EXPECT_GT(together.prompt_tokens, 5);
    EXPECT_EQ(together.visuals.size(), i > 0 ? 1U : 0U);
    Pipeline p = pipeline();
    AnswerOptions mine = o;
    if (i == 1) mine.sampling.greedy = true;
    const Answer alone = p.answer(talk(p, i), mine);
    EXPECT_EQ(together.token_ids, alone.token_ids);
    EXPECT_EQ(together.text, alone.text);
    EXPECT_EQ(streamed[i], alone.text);
    EXPECT_EQ(together.reason, alone.reason);
    EXPECT_EQ(together.cause, alone.cause);
    EXPECT_EQ(together.stop_string, alone.stop_string);
    EXPECT_GT(together.ttft_ms, 0);
  }
}

TEST_F(PipelineTest, SeveralAnswersToOnePromptShareItsBeginning) {
  Pipeline first = pipeline(), second = pipeline(), third = pipeline(), unrelated = pipeline();
  const std::vector<ChatMessage> talk = {user_message({first.load({.path = kExamples / "shapes.png"})}, "What is this?")};
  AnswerOptions o;
  o.max_tokens = 20;
  o.seed = 1;
  const auto a = first.begin(talk, o);
  o.seed = 2;
  const Pipeline* const donors[] = {&unrelated, nullptr, &first, &second};
  engine_->calls_ = {};
  const auto b = second.begin(talk, o, {}, donors);
  EXPECT_EQ(engine_->calls_.encodes, 0);
  EXPECT_EQ(engine_->calls_.prefill_chunks, std::vector<int64_t>{1});
  std::vector<ChatMessage> other = talk;
  other[0].message.parts.back().text = "What is here?";
  const std::vector<ChatMessage>& asked = other;
  const auto c = third.begin(asked, o, {}, donors);
  EXPECT_EQ(engine_->calls_.encodes, 0);
  Generation* const all[] = {a->generation(), b->generation(), c->generation()};
  while (!a->done() && !b->done() && !c->done()) decode_step(*engine_, all);
  const auto cold = [&](const std::vector<ChatMessage>& t, uint64_t seed) {
    Pipeline p = pipeline();
    AnswerOptions mine = o;
    mine.seed = seed;
    return p.answer(t, mine).token_ids;
  };
  for (const auto& [answering, t, seed] : {std::tuple{&a, &talk, 1}, std::tuple{&b, &talk, 2}, std::tuple{&c, &asked, 2}}) {
    if (!(*answering)->done()) run_alone(*engine_, *(*answering)->generation(), nullptr);
    const Answer answer = (*answering)->finish();
    EXPECT_EQ(answer.token_ids, cold(*t, static_cast<uint64_t>(seed)));
    if (answering == &b) {
      EXPECT_EQ(answer.cached_tokens, answer.prompt_tokens - 1);
    } else if (answering == &c) {
      EXPECT_GT(answer.cached_tokens, 30);  // the picture's
    }
  }
}

TEST_F(PipelineTest, WhatEndedAnAnswerIsToldExactly) {
  script("one two three");
  Pipeline p = pipeline();
  const std::vector<ChatMessage> talk = {user_message({}, "Count.")};
  EXPECT_EQ(p.answer(talk, greedy()).cause, EndCause::kEndToken);
  AnswerOptions o = greedy();
  o.stop = {"four", "two"};
  Answer a = p.answer(talk, o);
  EXPECT_EQ(a.cause, EndCause::kStopString);
  EXPECT_EQ(a.stop_string, "two");
  o = greedy();
  o.max_tokens = 2;
  EXPECT_EQ(p.answer(talk, o).cause, EndCause::kMaxTokens);
  // A guard ends it: its token is still part of the answer, text and all.
  std::vector<int32_t> told;
  std::string text;
  AnswerCallbacks callbacks;
  callbacks.on_token = [&](const SaidToken& t) {
    EXPECT_EQ(t.logprobs, nullptr);
    told.push_back(t.id);
    return told.size() < 2;
  };
  callbacks.on_text = [&](std::string_view s) { text += s; };
  a = p.answer(talk, greedy(), callbacks);
  EXPECT_EQ(a.cause, EndCause::kCallback);
  EXPECT_EQ(a.reason, FinishReason::kStop);
  EXPECT_EQ(a.token_ids, told);
  EXPECT_EQ(a.text, text);
  EXPECT_EQ(a.text, assets_->tokenizer.decode(told, true));
  // Cancelled before the first token.
  std::atomic<bool> cancel = true;
  callbacks = {};
  callbacks.cancel = &cancel;
  p.reset();
  const auto answering = p.begin(talk, greedy(), callbacks);
  EXPECT_TRUE(answering->done());
  EXPECT_EQ(answering->generation(), nullptr);
  EXPECT_EQ(answering->finish().cause, EndCause::kCancelled);
}

// Lets nothing through but one token, so often.
class Only final : public TokenConstraint {
 public:
  Only(int32_t id, int count) : id_(id), left_(count) {}
  void apply(std::span<float> logits) override {
    for (size_t i = 0; i < logits.size(); ++i) {
      if (static_cast<int32_t>(i) != id_) logits[i] = -INFINITY;
    }
  }
  void accept(int32_t id) override {
    EXPECT_EQ(id, id_);
    --left_;
  }
  bool finished() const override { return left_ == 0; }

 private:
  int32_t id_;
  int left_;
};

TEST_F(PipelineTest, ConstraintBiasAndLogprobsReachTheAnswer) {
  script("one two three");
  Pipeline p = pipeline();
  const std::vector<ChatMessage> talk = {user_message({}, "Count.")};
  const int32_t word = assets_->tokenizer.encode_text("seven").at(0);
  AnswerOptions o = greedy();
  o.constraint = std::make_shared<Only>(word, 3);
  o.top_logprobs = 2;
  Answer a = p.answer(talk, o);
  EXPECT_EQ(a.token_ids, std::vector<int32_t>(3, word));
  EXPECT_EQ(a.cause, EndCause::kConstraint);
  ASSERT_EQ(a.logprobs.size(), 3U);
  EXPECT_EQ(a.logprobs[0].said.id, word);
  // What the model itself would have said stands first, and far above.
  EXPECT_EQ(a.logprobs[0].top.at(0).id, engine_->script_[0]);
  EXPECT_GT(a.logprobs[0].top.at(0).logprob, a.logprobs[0].said.logprob + 10);
  o = greedy();
  o.max_tokens = 4;
  o.logit_bias = {{word, 1000.0F}};
  EXPECT_EQ(p.answer(talk, o).token_ids, std::vector<int32_t>(4, word));
  o = greedy();
  o.enable_thinking = true;  // the small model's template is Instruct's
  try {
    p.answer(talk, o);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
  }
  o.enable_thinking = false;
  EXPECT_EQ(p.answer(talk, o).text, "one two three");
}

TEST_F(PipelineTest, ADroppedAnswerLeavesAUsablePipeline) {
  script("one two three");
  Pipeline p = pipeline();
  const std::vector<ChatMessage> talk = {user_message({}, "Count.")};
  {
    const auto answering = p.begin(talk, greedy());
    Generation* const one[] = {answering->generation()};
    decode_step(*engine_, one);
  }
  EXPECT_EQ(p.answer(talk, greedy()).text, "one two three");
}

}  // namespace
}  // namespace qvl::generate
