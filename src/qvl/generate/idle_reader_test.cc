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
  std::atomic<int> prefills_{0};
};

TEST_F(IdleReaderTest, TheNextTurnFindsItsBeginning) {
  const int64_t before = pipeline_->session().length();
  // The fake engine needs microseconds, but on a busy machine it may be broken off before.
  for (auto time = 10ms; pipeline_->session().length() == before && time < 10s; time *= 4) {
    const IdleReader idle(*pipeline_, talk_, options_, 0ms);
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
  { const IdleReader idle(*pipeline_, talk_, options_, 20s); }
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
    const IdleReader idle(*pipeline_, talk_, options_, 0ms);
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
    const IdleReader idle(*pipeline_, talk_, options_, 0ms);
    ASSERT_TRUE(wait_for_prefill());
  }
  ASSERT_EQ(said.size(), 1U);
  EXPECT_NE(said[0].find("the file changed"), std::string::npos) << said[0];
  engine_->on_prefill_ = {};
  EXPECT_EQ(next().token_ids, cold().token_ids);
}

}  // namespace
}  // namespace qvl::generate
