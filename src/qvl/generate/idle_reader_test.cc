// Reading ahead beside a user who thinks: that it happens, that it waits a moment first, and that it ends at once.
#include "qvl/generate/idle_reader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/generate/fake_engine.h"

namespace qvl::generate {
namespace {

using namespace std::chrono_literals;
using testing::FakeEngine;

const std::filesystem::path kSmallModel = std::filesystem::path(QVL_SOURCE_DIR) / "models/small";
const std::filesystem::path kExamples = std::filesystem::path(QVL_SOURCE_DIR) / "examples";

class IdleReaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const model::ModelConfig real = model::ModelConfig::load(kSmallModel);
    engine_ = FakeEngine::with_tokens_of(real);
    assets_ = std::make_shared<const Assets>(Assets::load(kSmallModel, real));
    engine_->script_ = assets_->tokenizer.encode_text("one two three");
    engine_->script_.push_back(assets_->tokenizer.require_token("<|im_end|>"));
    options_.sampling.greedy = true;
    pipeline_ = std::make_unique<Pipeline>(engine_, assets_, std::make_shared<ImageMemory>(size_t{1} << 20));
    talk_ = {user_message({}, "Count.")};
    talk_.push_back(text_message(text::Role::kAssistant, pipeline_->answer(talk_, options_).text));
    engine_->calls_ = {};
    engine_->on_prefill_ = [this] { ++prefills_; };
  }
  void TearDown() override { set_log_sink({}); }

  Answer next() {
    talk_.push_back(user_message({}, "Again."));
    return pipeline_->answer(talk_, options_);
  }
  Answer cold() {
    return Pipeline(engine_, assets_, std::make_shared<ImageMemory>(size_t{1} << 20)).answer(talk_, options_);
  }
  bool wait_for_prefill() {
    for (const auto until = std::chrono::steady_clock::now() + 20s; std::chrono::steady_clock::now() < until;) {
      if (prefills_ > 0) return true;
      std::this_thread::sleep_for(1ms);
    }
    return false;
  }

  std::shared_ptr<FakeEngine> engine_;
  std::shared_ptr<const Assets> assets_;
  AnswerOptions options_;
  std::unique_ptr<Pipeline> pipeline_;
  std::vector<ChatMessage> talk_;
  std::vector<std::shared_ptr<Visual>> pictures_;
  std::atomic<int> prefills_{0};
};

TEST_F(IdleReaderTest, TheNextTurnFindsItsBeginning) {
  const int64_t before = pipeline_->session().length();
  // The fake engine needs microseconds, but on a busy machine it may be broken off before.
  for (auto time = 10ms; pipeline_->session().length() == before && time < 10s; time *= 4) {
    const IdleReader idle(*pipeline_, talk_, options_, pictures_, 0ms);
    std::this_thread::sleep_for(time);
  }
  const int64_t read = pipeline_->session().length();
  EXPECT_GT(read, before);
  const Answer b = next();
  EXPECT_EQ(b.cached_tokens, read);
  EXPECT_EQ(b.token_ids, cold().token_ids);
}

TEST_F(IdleReaderTest, AQuestionThatWasThereComesFirst) {
  const auto start = std::chrono::steady_clock::now();
  { const IdleReader idle(*pipeline_, talk_, options_, pictures_, 20s); }
  EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);
  EXPECT_EQ(prefills_, 0);
  EXPECT_FALSE(pipeline_->has_unread());
}

TEST_F(IdleReaderTest, IsBrokenOffWhereItIs) {
  std::atomic<bool> stopping{false};
  // Inside the decoder until the reader is being stopped.
  engine_->on_prefill_ = [&] {
    ++prefills_;
    for (int i = 0; !stopping && i < 20000; ++i) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(300ms);
  };
  const int64_t before = pipeline_->session().length();
  {
    const IdleReader idle(*pipeline_, talk_, options_, pictures_, 0ms);
    ASSERT_TRUE(wait_for_prefill());
    stopping = true;
  }
  EXPECT_EQ(prefills_, 1);
  EXPECT_EQ(pipeline_->session().length(), before) << "read to the end instead";
  engine_->on_prefill_ = {};
  const Answer b = next();
  EXPECT_EQ(b.cached_tokens, before);
  EXPECT_EQ(b.token_ids, cold().token_ids);
}

TEST_F(IdleReaderTest, APictureIsReadWhileItsQuestionIsTyped) {
  for (const bool first_turn : {true, false}) {
    SCOPED_TRACE(first_turn);
    if (first_turn) {
      talk_.clear();
      pipeline_->reset();
    }
    pictures_ = {pipeline_->load({.path = kExamples / (first_turn ? "shapes.png" : "first.png")})};
    std::vector<ChatMessage> asked = talk_;
    asked.push_back(user_message(pictures_, "What is it?"));
    const int64_t visual_end = [&] {
      const Prompt prompt = pipeline_->make_prompt(asked, options_);
      const auto& config = engine_->config();
      return prompt.ids.rend() - std::find(prompt.ids.rbegin(), prompt.ids.rend(), config.vision_end_token_id);
    }();
    engine_->calls_ = {};
    for (auto time = 10ms; pipeline_->session().length() < visual_end && time < 10s; time *= 4) {
      const IdleReader idle(*pipeline_, talk_, options_, pictures_, 0ms);
      std::this_thread::sleep_for(time);
    }
    EXPECT_GE(pipeline_->session().length(), visual_end);
    EXPECT_EQ(engine_->calls_.encodes, 1);
    talk_ = asked;
    const Answer a = pipeline_->answer(talk_, options_);
    EXPECT_EQ(engine_->calls_.encodes, 1);
    EXPECT_TRUE(a.visuals.back().cached);
    EXPECT_GE(a.cached_tokens, visual_end);
    EXPECT_EQ(a.token_ids, cold().token_ids);
    talk_.push_back(text_message(text::Role::kAssistant, a.text));
  }
}

TEST_F(IdleReaderTest, AQuestionWaitsForItsPicture) {
  pictures_ = {pipeline_->load({.path = kExamples / "shapes.png"}), pipeline_->load({.path = kExamples / "first.png"})};
  std::atomic<bool> inside{false}, let_go{false};
  engine_->on_encode_ = [&] {
    inside = true;
    for (int i = 0; !let_go && i < 20000; ++i) std::this_thread::sleep_for(1ms);
  };
  {
    IdleReader idle(*pipeline_, talk_, options_, pictures_, 0ms);
    while (!inside) std::this_thread::sleep_for(1ms);
    int64_t told = 0, of = 0;
    idle.finish_picture([&](int64_t done, int64_t total) {
      told = done, of = total;
      let_go = true;
      return true;
    });
    EXPECT_EQ(of, pictures_[0]->info().grid.patches());
    EXPECT_GE(told, of / 2);
  }
  EXPECT_EQ(engine_->calls_.encodes, 1) << "the second one is left to the answer";
  EXPECT_EQ(prefills_, 0);
  talk_.push_back(user_message(pictures_, "What are they?"));
  const Answer a = pipeline_->answer(talk_, options_);
  EXPECT_TRUE(a.visuals[0].cached);
  EXPECT_FALSE(a.visuals[1].cached);
  EXPECT_EQ(a.token_ids, cold().token_ids);
}

TEST_F(IdleReaderTest, APictureIsGivenUpWhenNobodyWantsIt) {
  for (const bool asked : {true, false}) {
    pictures_ = {pipeline_->load({.path = kExamples / "shapes.png"})};
    engine_->calls_ = {};
    prefills_ = 0;
    std::atomic<bool> inside{false}, let_go{false};
    engine_->on_encode_ = [&] {
      inside = true;
      for (int i = 0; asked && !let_go && i < 20000; ++i) std::this_thread::sleep_for(1ms);
      if (!asked) std::this_thread::sleep_for(300ms);  // the destructor is called meanwhile
    };
    {
      IdleReader idle(*pipeline_, talk_, options_, pictures_, 0ms);
      while (!inside) std::this_thread::sleep_for(1ms);
      if (asked) {
        idle.finish_picture([&](int64_t, int64_t) {
          let_go = true;
          return false;
        });
      }
    }
    EXPECT_EQ(engine_->calls_.encodes, 0);
    EXPECT_EQ(prefills_, 0);
    engine_->on_encode_ = {};
    std::vector<ChatMessage> talk = talk_;
    talk.push_back(user_message(pictures_, "What is it?"));
    EXPECT_FALSE(Pipeline(engine_, assets_, std::make_shared<ImageMemory>(size_t{1} << 20)).answer(talk, options_).token_ids.empty());
  }
}

TEST_F(IdleReaderTest, AFailureIsLoggedAndTheNextTurnComputesItself) {
  std::vector<std::string> said;
  std::mutex mutex;
  set_log_sink([&](LogLevel level, std::string_view message) {
    std::lock_guard lock(mutex);
    if (level == LogLevel::kWarning) said.emplace_back(message);
  });
  engine_->on_prefill_ = [&] {
    ++prefills_;
    fail(ErrorCode::kIo, "fake", "the file changed");
  };
  {
    const IdleReader idle(*pipeline_, talk_, options_, pictures_, 0ms);
    ASSERT_TRUE(wait_for_prefill());
  }
  ASSERT_EQ(said.size(), 1U);
  EXPECT_NE(said[0].find("the file changed"), std::string::npos) << said[0];
  engine_->on_prefill_ = {};
  EXPECT_EQ(next().token_ids, cold().token_ids);
}

}  // namespace
}  // namespace qvl::generate
