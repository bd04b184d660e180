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

TEST(Session, OnlyWhatPromptsBroughtIsTakenOverWhereTokensMustNotDependOnIt) {
  auto engine = std::make_shared<FakeEngine>();
  Session session(engine, 7);
  session.set_reuse(Session::Reuse::kPromptsOnly);
  Prompt p;
  append_text(p, {1, 2, 3});
  append_image(p, image("a", 4, 6, 10));
  append_text(p, {4, 5});
  session.prefill(p);
  const auto answer = say(session, 5);
  ASSERT_EQ(answer.size(), 5U);
  append_text(p, answer);
  append_text(p, {30, 31});
  EXPECT_EQ(session.cached_prefix(p), 13);
  EXPECT_EQ(session.prefill(p).cached_tokens, 13);
  const auto second = say(session, 9);
  EXPECT_EQ(second, cold(p, 9));
  // The first answer came in a prompt now.
  const auto known = static_cast<int64_t>(p.ids.size());
  append_text(p, second);
  append_text(p, {32});
  EXPECT_EQ(session.cached_prefix(p), known);
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

TEST(Session, ReadingAheadComputesWhatIsMissingAndNothingElse) {
  for (int64_t chunk : {2, 512}) {
    SCOPED_TRACE(chunk);
    const Prompt p = mixed_prompt();
    const auto all = static_cast<int64_t>(p.ids.size());
    auto engine = std::make_shared<FakeEngine>();
    Session session(engine, chunk);
    const auto rows = [&] {
      int64_t sum = 0;
      for (int64_t n : engine->calls_.prefill_chunks) sum += n;
      return sum;
    };
    for (int64_t length : {3, 20, 20, 7, 21}) session.read_ahead(p, length);
    EXPECT_EQ(session.length(), 21);
    EXPECT_EQ(rows(), 21) << "what is there is neither computed again nor given up";
    EXPECT_THROW(say(session, 1), Error) << "no logits are known";
    std::vector<int64_t> done;
    session.read_ahead(p, all, [&](int64_t d, int64_t total) {
      EXPECT_EQ(total, all - 21);
      done.push_back(d);
      return true;
    });
    ASSERT_FALSE(done.empty());
    EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
    EXPECT_EQ(rows(), all);
    EXPECT_THROW(say(session, 1), Error);
    EXPECT_EQ(session.prefill(p).cached_tokens, all - 1);
    EXPECT_EQ(say(session, 12), cold(p, 12));
  }
}

TEST(Session, ReadingAheadRefusesWhatAPrefillWouldAndMore) {
  auto engine = std::make_shared<FakeEngine>();
  engine->config_.text.max_positions = 40;
  Session session(engine);
  Prompt p = mixed_prompt();
  EXPECT_THROW(session.read_ahead(p, 3), Error) << "the context";
  engine->config_.text.max_positions = 4096;
  EXPECT_THROW(session.read_ahead(p, 0), Error);
  EXPECT_THROW(session.read_ahead(p, static_cast<int64_t>(p.ids.size()) + 1), Error);
  p.visuals[2].features.reset();
  session.read_ahead(p, 8);  // up to the picture that has none
  EXPECT_THROW(session.read_ahead(p, static_cast<int64_t>(p.ids.size())), Error);
  EXPECT_EQ(session.length(), 8);
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

// ---- beginnings taken over from another session

TEST(SessionShare, AnotherSessionsBeginningCostsOnlyTheRestAndChangesNothing) {
  auto engine = std::make_shared<FakeEngine>();
  Session donor(engine), session(engine);
  const Prompt p = mixed_prompt();
  const auto length = static_cast<int64_t>(p.ids.size());
  donor.prefill(p);
  Prompt q = p;
  append_text(q, {40, 41, 42});
  EXPECT_EQ(session.share(q, donor), length);
  EXPECT_EQ(session.cached_prefix(q), length);
  EXPECT_EQ(session.visuals_needed(q, length), (std::vector<bool>{false, false, false}));
  for (PromptVisual& v : q.visuals) v.features.reset();
  EXPECT_EQ(session.prefill(q).cached_tokens, length);
  Prompt full = mixed_prompt();
  append_text(full, {40, 41, 42});
  EXPECT_EQ(say(session, 9), cold(full, 9));
  // Neither noticed: the donor answers its own prompt, and the same prompt again needs its last token alone.
  EXPECT_EQ(say(donor, 9), cold(p, 9));
  Session third(engine);
  EXPECT_EQ(third.share(p, donor), length - 1);
  third.prefill(p);
  EXPECT_EQ(say(third, 9), cold(p, 9));
}

TEST(SessionShare, TakesWhatIsLongerAndCameFromPromptsOnly) {
  auto engine = std::make_shared<FakeEngine>();
  Session donor(engine), session(engine);
  Prompt p;
  append_text(p, {1, 2, 3, 4, 5, 6});
  donor.prefill(p);
  const auto said = say(donor, 5);
  Prompt q = p;
  append_text(q, said);
  append_text(q, {30, 31});
  // Generated tokens have other last bits than a prompt's (here they do not, but a session cannot know).
  EXPECT_EQ(donor.cached_prefix(q), 6 + 4);
  EXPECT_EQ(session.share(q, donor), 6);
  session.prefill(q);
  EXPECT_EQ(say(session, 5), cold(q, 5));
  // Nothing to gain: what is there stays.
  EXPECT_EQ(session.share(q, donor), static_cast<int64_t>(q.ids.size()) - 1);
  EXPECT_EQ(session.share(q, session), static_cast<int64_t>(q.ids.size()) - 1);
  Prompt other;
  append_text(other, {9, 8, 7});
  EXPECT_EQ(session.share(other, donor), 0);
  EXPECT_EQ(session.cached_prefix(q), static_cast<int64_t>(q.ids.size()) - 1);
  Session empty(engine);
  EXPECT_EQ(empty.share(p, Session(engine)), 0);
  // Another picture of the same size is another beginning.
  Prompt a, b;
  append_text(a, {1, 2});
  append_image(a, image("a", 4, 4, 10));
  append_text(a, {3, 4, 5});
  b = a;
  b.visuals[0] = image("other", 4, 4, 99);
  donor.prefill(a);
  EXPECT_EQ(empty.share(b, donor), 3);
  empty.prefill(b);
  EXPECT_EQ(say(empty, 6), cold(b, 6));
  Session foreign(std::make_shared<FakeEngine>());
  EXPECT_THROW(foreign.share(a, donor), Error);
}

TEST(SessionShare, ADonorInTheMiddleOfItsPrefillGivesItsFinishedChunks) {
  auto engine = std::make_shared<FakeEngine>();
  Session donor(engine, 8), session(engine);
  const Prompt p = mixed_prompt();
  int64_t shared = -1;
  donor.prefill(p, [&](int64_t done, int64_t) {
    if (done >= 20 && shared < 0) {
      shared = session.share(p, donor);
      session.prefill(p);
      EXPECT_EQ(say(session, 6), cold(p, 6));
    }
    return true;
  });
  EXPECT_EQ(shared, 16);
  EXPECT_EQ(say(donor, 6), cold(p, 6));
}

// ---- speculation: every token, reason and cache as without it

Speculation fixed(int64_t n) {
  return {.mode = Speculation::Mode::kFixed, .draft_tokens = n};
}
const Speculation kOff{.mode = Speculation::Mode::kOff};

// Repeats itself with a period of seven, on which guesses come true as often as `logit` prevails over the hash.
std::shared_ptr<FakeEngine> repeating_engine(float logit, int64_t tokens = 60) {
  auto engine = std::make_shared<FakeEngine>();
  for (int64_t i = 0; i < tokens; ++i) engine->script_.push_back(static_cast<int32_t>(10 + i % 7));
  engine->script_logit_ = logit;
  return engine;
}

struct Said {
  GenerateResult result;
  std::vector<int32_t> seen;
  std::vector<int64_t> rows;  // of the decode steps
  int64_t length = 0;
  std::vector<int32_t> next;  // after another turn
};

Said say_with(const std::shared_ptr<FakeEngine>& engine, GenerateOptions options, const Speculation& speculation,
              int32_t stop_at = -1) {
  Said out;
  Session session(engine);
  Prompt p = mixed_prompt();
  session.prefill(p);
  engine->calls_ = {};
  options.speculation = speculation;
  out.result = session.generate(options, [&](int32_t id) {
    out.seen.push_back(id);
    return id != stop_at;
  });
  out.rows = engine->calls_.decode_rows;
  out.length = session.length();
  append_text(p, out.result.ids);
  append_text(p, {3});
  EXPECT_EQ(session.prefill(p).cached_tokens, out.length);
  options.max_tokens = 20;
  out.next = session.generate(options, [](int32_t) { return true; }).ids;
  return out;
}

void expect_same(const std::shared_ptr<FakeEngine>& engine, const GenerateOptions& options, int32_t stop_at = -1) {
  const Said plain = say_with(engine, options, kOff, stop_at);
  EXPECT_EQ(plain.result.counts.drafted_tokens, 0);
  EXPECT_EQ(plain.length, static_cast<int64_t>(mixed_prompt().ids.size() + plain.result.ids.size()) - 1);
  for (const Speculation& s : {fixed(1), fixed(3), fixed(15), Speculation{}}) {
    SCOPED_TRACE(s.mode == Speculation::Mode::kAuto ? 0 : s.draft_tokens);
    const Said said = say_with(engine, options, s, stop_at);
    EXPECT_EQ(said.result.ids, plain.result.ids);
    EXPECT_EQ(said.seen, plain.seen);
    EXPECT_EQ(said.result.reason, plain.result.reason);
    EXPECT_EQ(said.length, plain.length);
    EXPECT_EQ(said.next, plain.next);
    const DecodeCounts& counts = said.result.counts;
    EXPECT_EQ(counts.steps, static_cast<int64_t>(said.rows.size()));
    int64_t drafted = 0;
    for (int64_t r : said.rows) {
      EXPECT_LE(r, 16);
      drafted += r - 1;
    }
    EXPECT_EQ(counts.drafted_tokens, drafted);
    // Every step ends with a token of the sampler's own, unless on_token ended the answer within the guesses.
    const int64_t own = static_cast<int64_t>(said.result.ids.size()) - 1 - counts.accepted_tokens;
    if (stop_at < 0) {
      EXPECT_EQ(own, counts.steps);
    } else {
      EXPECT_LE(own, counts.steps);
      EXPECT_GE(own, counts.steps - 1);
    }
  }
}

TEST(SessionSpeculation, ChangesNoToken) {
  const std::vector<SamplingParams> ways = {
      {.greedy = true},
      {.greedy = true, .repetition_penalty = 1.2},
      {.greedy = true, .presence_penalty = 0.5, .frequency_penalty = 0.3},
      {.temperature = 1.0},
      {.temperature = 0.5, .top_k = 12, .top_p = 0.9, .repetition_penalty = 1.1},
      {.temperature = 2.0, .min_p = 0.2, .frequency_penalty = 0.2},
  };
  for (float logit : {50.0F, 6.0F, 3.9F, 0.0F}) {
    for (size_t way = 0; way < ways.size(); ++way) {
      for (uint64_t seed = 0; seed < 3; ++seed) {
        SCOPED_TRACE(::testing::Message() << "logit " << logit << " way " << way << " seed " << seed);
        expect_same(repeating_engine(logit), {.sampling = ways[way], .seed = seed, .max_tokens = 60});
      }
    }
  }
}

TEST(SessionSpeculation, TakesFewerStepsWhereTextRepeats) {
  const GenerateOptions options{.sampling = {.greedy = true}, .max_tokens = 60};
  EXPECT_EQ(say_with(repeating_engine(50), options, kOff).result.counts.steps, 59);
  EXPECT_LE(say_with(repeating_engine(50), options, fixed(15)).result.counts.steps, 12);
  EXPECT_LE(say_with(repeating_engine(50), options, fixed(3)).result.counts.steps, 22);
}

TEST(SessionSpeculation, EndsWhereItEndsWithout) {
  for (int64_t tokens = 1; tokens <= 40; ++tokens) {
    SCOPED_TRACE(tokens);
    expect_same(repeating_engine(50), {.sampling = {.greedy = true}, .max_tokens = tokens});
  }
  // An end token, and one that on_token stops at, at every place of a period; both were guessed.
  for (int32_t id = 10; id < 17; ++id) {
    SCOPED_TRACE(id);
    auto engine = repeating_engine(50, 14);
    for (int i = 0; i < 12; ++i) engine->script_.push_back(20 + i % 4);
    for (int32_t t : {10, 11, 12, 13, 14, 15, 16}) engine->script_.push_back(t);
    std::erase(engine->script_, id);
    engine->script_.insert(engine->script_.begin() + 20, id);
    expect_same(engine, {.sampling = {.greedy = true}, .max_tokens = 40, .end_ids = {id}});
    expect_same(engine, {.sampling = {.greedy = true}, .max_tokens = 40}, id);
    expect_same(repeating_engine(50), {.sampling = {.greedy = true}, .max_tokens = 40, .end_ids = {id}});
    expect_same(repeating_engine(50), {.sampling = {.greedy = true}, .max_tokens = 40}, id);
  }
}

TEST(SessionSpeculation, ChecksNoGuessInVain) {
  // After an end token nothing is checked, and not more than may still be said.
  Prompt p;
  append_text(p, {10, 11, 12, 13, 14, 15, 16, 9});
  auto engine = repeating_engine(50);
  Session checked(engine);
  checked.prefill(p);
  GenerateOptions options{.sampling = {.greedy = true}, .max_tokens = 6, .end_ids = {13}, .speculation = fixed(15)};
  auto result = checked.generate(options, [](int32_t) { return true; });
  EXPECT_EQ(result.ids, (std::vector<int32_t>{10, 11, 12, 13}));
  EXPECT_EQ(engine->calls_.decode_rows, std::vector<int64_t>{3});  // 10, and 11 and 12 behind it
  engine->calls_ = {};
  checked.clear();
  checked.prefill(p);
  options.end_ids = {};
  result = checked.generate(options, [](int32_t) { return true; });
  EXPECT_EQ(result.ids.size(), 6U);
  EXPECT_EQ(engine->calls_.decode_rows, std::vector<int64_t>{5});
}

TEST(SessionSpeculation, TheContextEndsTheAnswerAtTheSameToken) {
  const auto prompt = static_cast<int64_t>(mixed_prompt().ids.size());
  for (int64_t room = 1; room < 30; ++room) {
    SCOPED_TRACE(room);
    auto engine = repeating_engine(50);
    engine->config_.text.max_positions = prompt + room;
    const auto said = [&](const Speculation& s) {
      Session session(engine);
      session.prefill(mixed_prompt());
      auto result = session.generate({.sampling = {.greedy = true}, .speculation = s}, [](int32_t) { return true; });
      EXPECT_EQ(result.reason, FinishReason::kLength);
      EXPECT_LT(session.length(), prompt + room);
      return result.ids;
    };
    EXPECT_EQ(said(kOff).size(), static_cast<size_t>(room));
    EXPECT_EQ(said(fixed(15)), said(kOff));
  }
}

TEST(SessionSpeculation, CancellingWhileGuessesAreChecked) {
  auto engine = repeating_engine(50);
  Session session(engine);
  const Prompt p = mixed_prompt();
  std::atomic<bool> cancel = false;
  session.prefill(p);
  engine->calls_ = {};
  int checks = 0;
  engine->on_decode_ = [&] {
    if (engine->calls_.decode_rows.back() > 1 && ++checks == 2) cancel = true;
  };
  const auto result =
      session.generate({.sampling = {.greedy = true}, .max_tokens = 100, .speculation = fixed(4)},
                       [](int32_t) { return true; }, &cancel);
  EXPECT_EQ(result.reason, FinishReason::kCancelled);
  ASSERT_GT(result.ids.size(), 7U);
  EXPECT_EQ(session.length(), static_cast<int64_t>(p.ids.size() + result.ids.size()) - 1);
  for (size_t i = 0; i < result.ids.size(); ++i) EXPECT_EQ(result.ids[i], engine->script_[i]) << i;
  engine->on_decode_ = nullptr;
  cancel = false;
  // Between two accepted guesses: what was said stays, what was only guessed goes.
  session.prefill(p);
  int said = 0;
  const auto between =
      session.generate({.sampling = {.greedy = true}, .max_tokens = 100, .speculation = fixed(6)},
                       [&](int32_t) {
                         cancel = ++said == 11;
                         return true;
                       },
                       &cancel);
  EXPECT_EQ(between.reason, FinishReason::kCancelled);
  EXPECT_EQ(between.ids.size(), 11U);
  EXPECT_LE(session.length(), static_cast<int64_t>(p.ids.size()) + 11);
  cancel = false;
  Prompt next = p;
  append_text(next, between.ids);
  append_text(next, {4});
  engine->script_.clear();
  session.prefill(next);
  EXPECT_EQ(say(session, 5), cold(next, 5));
}

TEST(SessionSpeculation, AnEarlierAnswerIsGuessedUntilTheSessionIsCleared) {
  auto engine = std::make_shared<FakeEngine>();
  for (int32_t i = 0; i < 30; ++i) engine->script_.push_back(24 + i);  // not in the prompt
  Session session(engine);
  const GenerateOptions options{.sampling = {.greedy = true}, .max_tokens = 30, .speculation = fixed(15)};
  const auto steps = [&] {
    session.prefill(mixed_prompt());
    return session.generate(options, [](int32_t) { return true; }).counts.steps;
  };
  EXPECT_EQ(steps(), 29);
  EXPECT_EQ(steps(), 2);
  session.clear();
  EXPECT_EQ(steps(), 29);
}

TEST(SessionSpeculation, IsOffWhereRowsCheckedTogetherWouldChangeAnswers) {
  auto engine = repeating_engine(50);
  engine->rows_are_independent_ = false;
  Session session(engine);
  session.prefill(mixed_prompt());
  GenerateOptions options{.sampling = {.greedy = true}, .max_tokens = 30, .speculation = fixed(4)};
  const auto take = [](int32_t) { return true; };
  try {
    session.generate(options, take);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
  }
  options.speculation = {};
  EXPECT_EQ(session.generate(options, take).counts.steps, 29);
  session.prefill(mixed_prompt());
  options.speculation = fixed(16);
  EXPECT_THROW(session.generate(options, take), Error);
}

}  // namespace
}  // namespace qvl::generate
