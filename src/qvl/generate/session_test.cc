// The timeline: prefix reuse, chunks, positions over turns, limits and cancelling, on an engine whose logits
// depend on every bit it is given (fake_engine.h).
#include "qvl/generate/session.h"

#include <gtest/gtest.h>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"

namespace qvl::generate {
namespace {

using testing::FakeEngine;

constexpr int32_t kImagePad = 60, kVideoPad = 61, kStart = 62, kEnd = 63;

std::shared_ptr<const engine::VisionFeatures> features(int64_t rows, float base) {
  auto f = std::make_shared<engine::VisionFeatures>();
  auto level = [&](float offset) {
    Tensor t(DType::kF32, {rows, 8});
    float v = base + offset;
    for (float& x : t.as<float>()) x = v += 0.5F;
    return t;
  };
  f->merged = level(0);
  f->deepstack.push_back(level(1000));
  f->deepstack.push_back(level(2000));
  return f;
}

PromptVisual image(std::string key, int64_t h, int64_t w, float base) {
  return {.is_video = false, .grid = {1, h, w}, .key = std::move(key), .features = features(h * w / 4, base)};
}

void append_text(Prompt& p, std::vector<int32_t> ids) {
  p.ids.insert(p.ids.end(), ids.begin(), ids.end());
}

void append_image(Prompt& p, PromptVisual v) {
  p.ids.push_back(kStart);
  p.ids.insert(p.ids.end(), static_cast<size_t>(v.grid.merged_tokens()), kImagePad);
  p.ids.push_back(kEnd);
  p.visuals.push_back(std::move(v));
}

void append_video(Prompt& p, std::string key, image::Grid grid, float base) {
  PromptVisual v{.is_video = true,
                 .grid = grid,
                 .key = std::move(key),
                 .features = features(grid.merged_tokens(), base)};
  for (int64_t t = 0; t < grid.t; ++t) {
    append_text(p, {20, 21, static_cast<int32_t>(t), kStart});
    p.ids.insert(p.ids.end(), static_cast<size_t>(grid.h * grid.w / 4), kVideoPad);
    p.ids.push_back(kEnd);
  }
  p.visuals.push_back(std::move(v));
}

std::vector<int32_t> say(Session& session, int64_t count) {
  const GenerateOptions options{.sampling = {.greedy = true}, .max_tokens = count};
  return session.generate(options, [](int32_t) { return true; }).ids;
}

// What a fresh session says to the prompt.
std::vector<int32_t> cold(const Prompt& p, int64_t count, int64_t chunk = 512) {
  Session session(std::make_shared<FakeEngine>(), chunk);
  session.prefill(p);
  return say(session, count);
}

Prompt mixed_prompt() {
  Prompt p;
  append_text(p, {1, 2, 3});
  append_image(p, image("a", 4, 6, 10));
  append_text(p, {4});
  append_video(p, "v", {3, 4, 4}, 300);
  append_text(p, {5, 6});
  append_image(p, image("b", 6, 4, 20));
  append_text(p, {7, 8, 9});
  return p;
}

TEST(Session, ResultsDoNotDependOnTheChunkSize) {
  const Prompt p = mixed_prompt();
  const auto want = cold(p, 12, 100000);
  for (int64_t chunk = 1; chunk < 40; ++chunk) {
    SCOPED_TRACE(chunk);
    auto engine = std::make_shared<FakeEngine>();
    Session session(engine, chunk);
    session.prefill(p);
    int64_t rows = 0;
    for (int64_t n : engine->calls_.prefill_chunks) {
      EXPECT_LE(n, chunk);
      rows += n;
    }
    EXPECT_EQ(rows, static_cast<int64_t>(p.ids.size()));
    EXPECT_EQ(say(session, 12), want);
  }
}

TEST(Session, TheFakeEngineNoticesEveryKindOfMistake) {
  const auto want = cold(mixed_prompt(), 12);
  Prompt p = mixed_prompt();
  p.visuals[0] = image("a", 4, 6, 11);
  EXPECT_NE(cold(p, 12), want);
  p = mixed_prompt();
  p.visuals[0].grid = {1, 6, 4};  // same count of tokens, other positions
  EXPECT_NE(cold(p, 12), want);
  p = mixed_prompt();
  std::swap(p.visuals[0].features, p.visuals[2].features);
  EXPECT_NE(cold(p, 12), want);
}

TEST(Session, ALaterTurnComputesOnlyWhatIsNewAndEqualsAFreshOne) {
  auto engine = std::make_shared<FakeEngine>();
  Session session(engine, 7);
  Prompt p;
  append_text(p, {1, 2, 3});
  append_image(p, image("a", 4, 6, 10));
  append_text(p, {4, 5});
  auto first = session.prefill(p);
  EXPECT_EQ(first.cached_tokens, 0);
  EXPECT_EQ(first.prompt_tokens, 13);
  EXPECT_EQ(first.visual_tokens, 6);
  const auto answer = say(session, 5);
  ASSERT_EQ(answer.size(), 5U);

  // Second turn: the answer becomes history, a new picture comes. The last token said is not in the cache
  // yet.
  append_text(p, answer);
  append_text(p, {30, 31});
  append_image(p, image("b", 8, 4, 20));
  append_text(p, {6});
  EXPECT_EQ(session.cached_prefix(p), 13 + 4);
  EXPECT_EQ(session.visuals_needed(p, 17), (std::vector<bool>{false, true}));
  // The first picture's features are no longer needed.
  Prompt lean = p;
  lean.visuals[0].features.reset();
  engine->calls_ = {};
  const auto second = session.prefill(lean);
  EXPECT_EQ(second.cached_tokens, 17);
  int64_t computed = 0;
  for (int64_t n : engine->calls_.prefill_chunks) computed += n;
  EXPECT_EQ(computed, static_cast<int64_t>(p.ids.size()) - 17);
  EXPECT_EQ(say(session, 9), cold(p, 9));
}

TEST(Session, AChangedPictureOfTheSameSizeIsNotTakenFromTheCache) {
  Session session(std::make_shared<FakeEngine>());
  Prompt a, b;
  append_text(a, {1, 2});
  append_image(a, image("a", 4, 4, 10));
  append_text(a, {3, 4, 5});
  b = a;
  b.visuals[0] = image("other", 4, 4, 99);
  session.prefill(a);
  EXPECT_EQ(session.cached_prefix(a), static_cast<int64_t>(a.ids.size()) - 1);
  EXPECT_EQ(session.cached_prefix(b), 3);
  session.prefill(b);
  EXPECT_EQ(say(session, 6), cold(b, 6));
}

TEST(Session, BranchingOffEarlierForgetsTheRest) {
  Session session(std::make_shared<FakeEngine>());
  const Prompt p = mixed_prompt();
  session.prefill(p);
  say(session, 10);
  Prompt branch = p;
  branch.ids.back() = 33;
  EXPECT_EQ(session.prefill(branch).cached_tokens, static_cast<int64_t>(p.ids.size()) - 1);
  EXPECT_EQ(say(session, 8), cold(branch, 8));
  // The same prompt again keeps all but its last token.
  EXPECT_EQ(session.prefill(p).cached_tokens, static_cast<int64_t>(p.ids.size()) - 1);
  EXPECT_EQ(say(session, 8), cold(p, 8));
  session.clear();
  EXPECT_EQ(session.prefill(p).cached_tokens, 0);
  EXPECT_EQ(say(session, 8), cold(p, 8));
}

TEST(Session, AGeneratedPadIsNotMistakenForAPicture) {
  auto engine = std::make_shared<FakeEngine>();
  engine->script_ = {kImagePad, kImagePad};
  Session session(engine);
  Prompt p;
  append_text(p, {1, 2});
  session.prefill(p);
  EXPECT_EQ(say(session, 3).at(0), kImagePad);
  Prompt q;
  append_text(q, {1, 2});
  q.ids.push_back(kImagePad);
  q.ids.push_back(5);
  q.visuals.push_back(image("a", 2, 2, 1));
  EXPECT_EQ(session.cached_prefix(q), 2);
}

TEST(Session, EndTokensStopTokensAndLimits) {
  auto engine = std::make_shared<FakeEngine>();
  engine->script_ = {10, 11, 12, 13, 14};
  Session session(engine);
  Prompt p;
  append_text(p, {1, 2});
  std::vector<int32_t> seen;
  auto take = [&](int32_t id) {
    seen.push_back(id);
    return id != 13;
  };
  session.prefill(p);
  auto result = session.generate({.sampling = {.greedy = true}, .end_ids = {12}}, take);
  EXPECT_EQ(result.reason, FinishReason::kStop);
  EXPECT_EQ(result.ids, (std::vector<int32_t>{10, 11, 12}));
  EXPECT_EQ(seen, (std::vector<int32_t>{10, 11}));

  session.prefill(p);
  result = session.generate({.sampling = {.greedy = true}}, take);
  EXPECT_EQ(result.reason, FinishReason::kStop);
  EXPECT_EQ(result.ids, (std::vector<int32_t>{10, 11, 12, 13}));

  session.prefill(p);
  result = session.generate({.sampling = {.greedy = true}, .max_tokens = 2}, take);
  EXPECT_EQ(result.reason, FinishReason::kLength);
  EXPECT_EQ(result.ids, (std::vector<int32_t>{10, 11}));
  EXPECT_THROW(session.generate({.sampling = {.greedy = true}}, take), Error);  // needs a prefill

  engine->config_.text.max_positions = 5;
  session.prefill(p);
  result = session.generate({.sampling = {.greedy = true}}, [](int32_t) { return true; });
  EXPECT_EQ(result.reason, FinishReason::kLength);
  EXPECT_EQ(result.ids.size() + p.ids.size(), 5U);
}

TEST(Session, APromptBeyondTheContextIsRefused) {
  auto engine = std::make_shared<FakeEngine>();
  engine->config_.text.max_positions = 10;
  Session session(engine);
  Prompt p;
  append_text(p, {1});
  append_image(p, image("a", 8, 8, 1));
  try {
    session.prefill(p);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kLimit);
    EXPECT_NE(std::string(e.what()).find("19 (16 of them visual)"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("--max-pixels"), std::string::npos) << e.what();
  }
}

TEST(Session, CountsOfPlaceholdersMustFit) {
  Session session(std::make_shared<FakeEngine>());
  Prompt p = mixed_prompt();
  p.ids.insert(p.ids.begin() + 5, kImagePad);
  EXPECT_THROW(session.prefill(p), Error);
  p = mixed_prompt();
  p.visuals.pop_back();
  EXPECT_THROW(session.prefill(p), Error);
  p = mixed_prompt();
  p.visuals[1].features.reset();
  EXPECT_THROW(session.prefill(p), Error);
  EXPECT_THROW(session.prefill({}), Error);
  // And the session still works.
  session.prefill(mixed_prompt());
  EXPECT_EQ(say(session, 6), cold(mixed_prompt(), 6));
}

TEST(Session, ACancelledPrefillKeepsItsFinishedChunks) {
  auto engine = std::make_shared<FakeEngine>();
  Session session(engine, 8);
  const Prompt p = mixed_prompt();
  int64_t last = 0;
  try {
    session.prefill(p, [&](int64_t done, int64_t total) {
      EXPECT_EQ(total, static_cast<int64_t>(p.ids.size()));
      EXPECT_GE(done, last);
      last = done;
      return done < 20;
    });
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kCancelled);
  }
  EXPECT_EQ(session.length(), 16);
  EXPECT_EQ(session.prefill(p).cached_tokens, 16);
  EXPECT_EQ(say(session, 8), cold(p, 8));
}

TEST(Session, CancellingKeepsWhatWasSaid) {
  auto engine = std::make_shared<FakeEngine>();
  Session session(engine);
  const Prompt p = mixed_prompt();
  std::atomic<bool> cancel = false;
  session.prefill(p);
  engine->on_decode_ = [&] {
    if (engine->calls_.decode_steps == 3) cancel = true;
  };
  const auto result = session.generate(
      {.sampling = {.greedy = true}, .max_tokens = 100}, [](int32_t) { return true; }, &cancel);
  EXPECT_EQ(result.reason, FinishReason::kCancelled);
  EXPECT_EQ(result.ids.size(), 3U);
  EXPECT_EQ(session.length(), static_cast<int64_t>(p.ids.size()) + 2);
  cancel = false;
  engine->on_decode_ = nullptr;
  Prompt next = p;
  append_text(next, result.ids);
  append_text(next, {4});
  EXPECT_EQ(session.prefill(next).cached_tokens, static_cast<int64_t>(p.ids.size()) + 2);
  EXPECT_EQ(say(session, 5), cold(next, 5));
}

TEST(Session, SeedsRepeatAnswers) {
  const Prompt p = mixed_prompt();
  auto drawn = [&](uint64_t seed) {
    Session session(std::make_shared<FakeEngine>());
    session.prefill(p);
    return session
        .generate({.sampling = {.temperature = 1.0}, .seed = seed, .max_tokens = 20},
                  [](int32_t) { return true; })
        .ids;
  };
  EXPECT_EQ(drawn(1), drawn(1));
  EXPECT_NE(drawn(1), drawn(2));
}

}  // namespace
}  // namespace qvl::generate
