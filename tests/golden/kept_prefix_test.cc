// Keys and values of the native decoder that lie in the image memory's file: answers are those of a cold run, whoever uses the
// file at the same time, and a file that changes while it is used costs an answer at most, never a wrong one.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "golden.h"
#include "qvl/base/error.h"
#include "qvl/generate/pipeline.h"

namespace qvl::golden {
namespace {

namespace fs = std::filesystem;

constexpr const char* kQuestions[] = {"Describe this image.", "How many circles are there?", "What colour is the largest shape?"};

class KeptPrefix : public testing::TestWithParam<engine::KvType> {
 protected:
  void SetUp() override {
    engine_ = open_small({engine::Precision::kBF16, small_variants().back().kernels, GetParam()});
    assets_ = std::make_shared<const generate::Assets>(generate::Assets::load(small_model_path(), engine_->config()));
    folder_ = fs::temp_directory_path() / ("qvl_kept_prefix_test_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // One that remembers nothing of others but what is in the folder.
  std::unique_ptr<generate::Pipeline> pipeline(bool with_memory) const {
    auto disk = with_memory ? std::make_shared<generate::DiskMemory>(std::make_shared<CacheFolder>(folder_, uint64_t{1} << 30),
                                                                     *engine_, *assets_)
                            : nullptr;
    return std::make_unique<generate::Pipeline>(engine_, assets_, std::make_shared<generate::ImageMemory>(0), 512, disk);
  }
  // Large enough for whole blocks of the cache.
  static std::vector<generate::ChatMessage> about_the_picture(generate::Pipeline& p, const char* question) {
    generate::VisualInput input;
    input.path = QVL_SOURCE_DIR "/examples/shapes.png";
    return {generate::user_message({p.load(input, {.min_pixels = 600000, .max_pixels = 700000})}, question)};
  }
  static generate::AnswerOptions greedy() {
    generate::AnswerOptions o;
    o.sampling.greedy = true;
    o.max_tokens = 12;
    o.ignore_eos = true;
    return o;
  }
  static generate::Answer ask(generate::Pipeline& p, const char* question, const generate::AnswerCallbacks& callbacks = {}) {
    return p.answer(about_the_picture(p, question), greedy(), callbacks);
  }
  std::vector<int32_t> cold(const char* question) const { return ask(*pipeline(false), question).token_ids; }
  fs::path kept() const {
    for (const auto& entry : fs::directory_iterator(folder_))
      if (entry.path().extension() == ".prefix") return entry.path();
    return {};
  }

  std::shared_ptr<const engine::Engine> engine_;
  std::shared_ptr<const generate::Assets> assets_;
  fs::path folder_;
};

TEST_P(KeptPrefix, SaysWhatAColdRunSays) {
  EXPECT_EQ(ask(*pipeline(true), kQuestions[0]).cached_tokens, 0);
  ASSERT_FALSE(kept().empty());
  // At the same time, and in turn: one goes on where another has written behind the same blocks.
  const auto a = pipeline(true), b = pipeline(true);
  for (const char* question : kQuestions) {
    const std::vector<int32_t> expected = cold(question);
    const auto fresh = pipeline(true);
    for (generate::Pipeline* p : {a.get(), b.get(), fresh.get()}) {
      const generate::Answer answer = ask(*p, question);
      EXPECT_EQ(answer.token_ids, expected) << question;
      EXPECT_GT(answer.cached_tokens, 512);
    }
  }
  // Removed while it is in use: the bytes stay where they are.
  const auto c = pipeline(true);
  EXPECT_GT(ask(*c, kQuestions[1]).cached_tokens, 512);
  fs::remove(kept());
  const generate::Answer again = ask(*c, kQuestions[2]);
  EXPECT_GT(again.cached_tokens, 512);
  EXPECT_EQ(again.token_ids, cold(kQuestions[2]));
  EXPECT_FALSE(kept().empty());  // and it is kept again, from the file that has no name any more
  EXPECT_EQ(ask(*pipeline(true), kQuestions[0]).token_ids, cold(kQuestions[0]));
}

TEST_P(KeptPrefix, CutShortBetweenTwoQuestionsItIsComputedAgain) {
  ask(*pipeline(true), kQuestions[0]);
  const auto p = pipeline(true);
  EXPECT_GT(ask(*p, kQuestions[0]).cached_tokens, 512);
  fs::resize_file(kept(), 100);
  const generate::Answer answer = ask(*p, kQuestions[1]);
  EXPECT_EQ(answer.cached_tokens, 0);
  EXPECT_EQ(answer.token_ids, cold(kQuestions[1]));
  EXPECT_GT(ask(*pipeline(true), kQuestions[2]).cached_tokens, 512);
}

TEST_P(KeptPrefix, CutShortWithinAnAnswerItIsOneError) {
  ask(*pipeline(true), kQuestions[0]);
  const auto p = pipeline(true);
  generate::AnswerCallbacks cut;
  int tokens = 0;
  cut.on_token = [&](const generate::SaidToken&) {
    if (++tokens == 2) fs::resize_file(kept(), 100);
    return true;
  };
  try {
    ask(*p, kQuestions[0], cut);
    FAIL() << "answered from a file that was cut short";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(e.what()).find("changed while it was in use"), std::string::npos) << e.what();
  }
  EXPECT_EQ(tokens, 2);
  EXPECT_EQ(ask(*p, kQuestions[1]).token_ids, cold(kQuestions[1]));
  EXPECT_EQ(ask(*p, kQuestions[2]).token_ids, cold(kQuestions[2]));
}

INSTANTIATE_TEST_SUITE_P(Golden, KeptPrefix, testing::Values(engine::KvType::kAuto, engine::KvType::kInt8),
                         [](const auto& p) { return p.param == engine::KvType::kInt8 ? "int8" : "bf16"; });

}  // namespace
}  // namespace qvl::golden
