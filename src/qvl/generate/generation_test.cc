// Answers stepped together say what each says alone: guesses, sampling, constraints, log-probabilities, failures of one
// among others. On an engine whose logits depend on every bit it is given (fake_engine.h).
#include "qvl/generate/generation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <set>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/generate/fake_engine.h"

namespace qvl::generate {
namespace {

using testing::FakeEngine;
using Ids = std::vector<int32_t>;

const Speculation kOff{.mode = Speculation::Mode::kOff};
const auto kTakeAll = [](const SaidToken&) { return true; };

// Repeats itself with a period of seven, on which guesses come true as often as `logit` prevails over the hash.
std::shared_ptr<FakeEngine> repeating_engine(float logit) {
  auto engine = std::make_shared<FakeEngine>();
  for (int32_t i = 0; i < 80; ++i) engine->script_.push_back(10 + i % 7);
  engine->script_logit_ = logit;
  return engine;
}

Prompt prompt_of(int32_t seed, int32_t length) {
  Prompt p;
  for (int32_t i = 0; i < length; ++i) p.ids.push_back((seed * 13 + i * (seed + 3)) % 50);
  return p;
}

GenerateOptions options_of(int32_t seed, int64_t max_tokens, const Speculation& speculation) {
  GenerateOptions o;
  o.seed = static_cast<uint64_t>(seed);
  if (seed % 2 == 0) {
    o.sampling.greedy = true;
  } else {
    o.sampling = {.temperature = 1.0, .top_k = 20, .repetition_penalty = seed % 3 == 0 ? 1.1 : 1.0};
  }
  o.max_tokens = max_tokens;
  o.speculation = speculation;
  return o;
}

// One answer with its session, made to be stepped with others.
struct Answerer {
  std::unique_ptr<Session> session;
  std::unique_ptr<Generation> generation;
  Ids seen;

  Answerer(const std::shared_ptr<FakeEngine>& engine, const Prompt& prompt, GenerateOptions options) {
    session = std::make_unique<Session>(engine);
    session->prefill(prompt);
    generation = std::make_unique<Generation>(*session, std::move(options), [this](const SaidToken& t) {
      seen.push_back(t.id);
      return true;
    });
  }
};

GenerateResult alone(const std::shared_ptr<FakeEngine>& engine, const Prompt& prompt, const GenerateOptions& options,
                     Ids* next = nullptr) {
  Session session(engine);
  session.prefill(prompt);
  GenerateResult result = session.generate(options, [](int32_t) { return true; });
  if (next) {
    // What the cache was left with decides what comes after another turn.
    Prompt p = prompt;
    p.ids.insert(p.ids.end(), result.ids.begin(), result.ids.end());
    p.ids.push_back(3);
    session.prefill(p);
    *next = session.generate({.sampling = {.greedy = true}, .max_tokens = 5}, [](int32_t) { return true; }).ids;
  }
  return result;
}

Ids next_of(Session& session, const Prompt& prompt, const Ids& said) {
  Prompt p = prompt;
  p.ids.insert(p.ids.end(), said.begin(), said.end());
  p.ids.push_back(3);
  EXPECT_EQ(session.prefill(p).cached_tokens, static_cast<int64_t>(prompt.ids.size() + said.size()) - 1);
  return session.generate({.sampling = {.greedy = true}, .max_tokens = 5}, [](int32_t) { return true; }).ids;
}

TEST(Generation, SteppedTogetherEachSaysWhatItSaysAlone) {
  using Mode = Speculation::Mode;
  const std::vector<Speculation> ways = {{.mode = Mode::kOff}, {}, {.mode = Mode::kFixed, .draft_tokens = 4}};
  for (float logit : {50.0F, 3.9F, 0.0F}) {
    for (size_t way = 0; way < ways.size(); ++way) {
      SCOPED_TRACE(::testing::Message() << "logit " << logit << " way " << way);
      auto engine = repeating_engine(logit);
      std::vector<std::unique_ptr<Answerer>> all;
      const auto length_of = [](int32_t i) { return 20 + 9 * i; };  // tokens: they end one after the other
      const auto prompt = [](int32_t i) { return prompt_of(i, 5 + 4 * i); };
      // They begin one after the other, too.
      int32_t begun = 0;
      int64_t steps = 0;
      const auto left = [&] {
        std::vector<Generation*> out;
        for (const auto& a : all) {
          if (!a->generation->done()) out.push_back(a->generation.get());
        }
        return out;
      };
      for (;; ++steps) {
        if (begun < 5 && steps >= 3 * begun) {
          all.push_back(std::make_unique<Answerer>(engine, prompt(begun), options_of(begun, length_of(begun), ways[way])));
          ++begun;
        }
        const std::vector<Generation*> now = left();
        if (now.empty() && begun == 5) break;
        if (now.empty()) continue;
        engine->calls_.together.clear();
        const StepResult r = decode_step(*engine, now);
        EXPECT_EQ(engine->calls_.together, std::vector<int64_t>{static_cast<int64_t>(now.size())});
        EXPECT_LE(r.rows, engine::kMaxDecodeRows);
        EXPECT_GE(r.rows, static_cast<int64_t>(now.size()));
        EXPECT_GE(r.tokens, static_cast<int64_t>(now.size()));
        EXPECT_LE(r.tokens, r.rows);
        ASSERT_LT(steps, 1000);
      }
      for (int32_t i = 0; i < 5; ++i) {
        SCOPED_TRACE(i);
        Answerer& a = *all[static_cast<size_t>(i)];
        const GenerateResult said = a.generation->finish();
        Ids next;
        const GenerateResult expected = alone(engine, prompt(i), options_of(i, length_of(i), ways[way]), &next);
        EXPECT_EQ(said.ids, expected.ids);
        EXPECT_EQ(a.seen, expected.ids);
        EXPECT_EQ(said.reason, FinishReason::kLength);
        EXPECT_EQ(said.cause, EndCause::kMaxTokens);
        EXPECT_EQ(next_of(*a.session, prompt(i), said.ids), next);
      }
    }
  }
}

TEST(Generation, GuessesOfAllFitOneStep) {
  auto engine = repeating_engine(50);
  std::vector<std::unique_ptr<Answerer>> all;
  std::vector<Generation*> generations;
  for (int32_t i = 0; i < 5; ++i) {
    all.push_back(std::make_unique<Answerer>(
        engine, prompt_of(0, 9), options_of(0, 70, {.mode = Speculation::Mode::kFixed, .draft_tokens = 15})));
    generations.push_back(all.back()->generation.get());
  }
  while (generations[0]->ids().size() < 15) decode_step(*engine, generations);
  // Now everything is guessed: 16 rows in equal parts, 3 or 4 for each.
  engine->calls_.decode_rows.clear();
  const StepResult r = decode_step(*engine, generations);
  EXPECT_EQ(r.rows, 16);
  EXPECT_EQ(r.tokens, 16);
  for (int64_t rows : engine->calls_.decode_rows) {
    EXPECT_GE(rows, 3);
    EXPECT_LE(rows, 4);
  }
  // A bound of the caller's stands, others get what is left.
  EXPECT_EQ(generations[0]->next_rows(1), 1);
  EXPECT_EQ(generations[1]->next_rows(2), 2);
  EXPECT_EQ(generations[1]->next_rows(9), 9);
  engine->calls_.decode_rows.clear();
  decode_step(*engine, generations);
  EXPECT_EQ(engine->calls_.decode_rows, (std::vector<int64_t>{1, 9, 2, 2, 2}));
  // Bounds that do not fit together are drawn up anew.
  for (Generation* g : generations) EXPECT_EQ(g->next_rows(16), 16);
  EXPECT_EQ(decode_step(*engine, generations).rows, 16);
  EXPECT_THROW(generations[0]->next_rows(0), Error);
}

TEST(Generation, OneThatFailsOrIsCancelledDoesNotDisturbTheOthers) {
  const auto engine = std::make_shared<FakeEngine>();
  Answerer good(engine, prompt_of(2, 6), options_of(2, 12, kOff));
  Session bad_session(engine), stopped_session(engine), left_session(engine);
  for (Session* s : {&bad_session, &stopped_session, &left_session}) s->prefill(prompt_of(4, 8));
  int told = 0;
  Generation bad(bad_session, options_of(4, 50, kOff), [&](const SaidToken&) -> bool {
    if (++told == 3) throw std::runtime_error("the client went away");
    return true;
  });
  std::atomic<bool> cancel = false;
  Generation stopped(stopped_session, options_of(4, 50, kOff), kTakeAll, &cancel);
  Generation left(left_session, options_of(4, 50, kOff), kTakeAll);
  int steps = 0;
  while (!good.generation->done()) {
    std::vector<Generation*> now;
    for (Generation* g : {good.generation.get(), &bad, &stopped, &left}) {
      if (!g->done()) now.push_back(g);
    }
    ++steps;
    if (steps == 4) cancel = true;
    if (steps == 6) {
      left.cancel();
      now.pop_back();
    }
    decode_step(*engine, now);
  }
  EXPECT_EQ(good.generation->finish().ids, alone(engine, prompt_of(2, 6), options_of(2, 12, kOff)).ids);
  EXPECT_TRUE(bad.done());
  try {
    bad.finish();
    FAIL() << "the exception was lost";
  } catch (const std::runtime_error& e) {
    EXPECT_STREQ(e.what(), "the client went away");
  }
  const Ids whole = alone(engine, prompt_of(4, 8), options_of(4, 50, kOff)).ids;
  for (auto& [generation, session, count] :
       std::vector<std::tuple<Generation*, Session*, size_t>>{{&stopped, &stopped_session, 4}, {&left, &left_session, 6}}) {
    // The one was cancelled after a step, the other before.
    const bool last_is_in = generation == &stopped;
    const GenerateResult r = generation->finish();
    EXPECT_EQ(r.reason, FinishReason::kCancelled);
    EXPECT_EQ(r.cause, EndCause::kCancelled);
    EXPECT_EQ(r.ids, Ids(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(count)));
    EXPECT_EQ(session->length(), static_cast<int64_t>(8 + count) - !last_is_in);
    EXPECT_THROW(generation->finish(), Error);  // taken
  }
  // All sessions can be used again.
  for (Session* s : {&bad_session, &stopped_session, &left_session}) {
    s->prefill(prompt_of(4, 8));
    EXPECT_EQ(s->generate(options_of(4, 50, kOff), [](int32_t) { return true; }).ids, whole);
  }
}

TEST(Generation, AStepThatTheDecoderRefusesCanBeTakenAgain) {
  const auto engine = std::make_shared<FakeEngine>();
  Answerer a(engine, prompt_of(2, 6), options_of(2, 9, kOff)), b(engine, prompt_of(3, 7), options_of(3, 9, kOff));
  Generation* const both[] = {a.generation.get(), b.generation.get()};
  engine::StageHooks hooks;
  int64_t calls = 0;
  hooks.progress = [&](int64_t, int64_t) { return ++calls % 4 != 0; };
  int refused = 0;
  while (!a.generation->done()) {
    const Ids before = b.generation->ids();
    try {
      decode_step(*engine, both, hooks);
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ErrorCode::kCancelled);
      EXPECT_EQ(b.generation->ids(), before);
      EXPECT_EQ(a.session->length(), static_cast<int64_t>(6 + before.size()) - 1);
      ++refused;
    }
  }
  EXPECT_GT(refused, 1);
  EXPECT_EQ(a.generation->finish().ids, alone(engine, prompt_of(2, 6), options_of(2, 9, kOff)).ids);
  EXPECT_EQ(b.generation->finish().ids, alone(engine, prompt_of(3, 7), options_of(3, 9, kOff)).ids);
}

TEST(Generation, WhatDoesNotGoTogetherIsRefused) {
  const auto engine = std::make_shared<FakeEngine>(), other = std::make_shared<FakeEngine>();
  Answerer a(engine, prompt_of(2, 6), options_of(2, 9, {})), b(engine, prompt_of(2, 6), options_of(2, 1, {}));
  Answerer c(other, prompt_of(2, 6), options_of(2, 9, {}));
  EXPECT_TRUE(b.generation->done());
  EXPECT_EQ(b.generation->next_rows(), 0);
  const auto refuse = [&](std::vector<Generation*> generations) {
    try {
      decode_step(*engine, generations);
      ADD_FAILURE() << "was not refused";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    }
  };
  refuse({});
  refuse({a.generation.get(), a.generation.get()});
  refuse({a.generation.get(), b.generation.get()});
  refuse({a.generation.get(), c.generation.get()});
  refuse({a.generation.get(), nullptr});
  refuse(std::vector<Generation*>(17, a.generation.get()));
  Session session(engine);
  EXPECT_THROW(Generation(session, {}, kTakeAll), Error);  // no prefill
  session.prefill(prompt_of(1, 4));
  EXPECT_THROW(Generation(session, {.max_tokens = 0}, kTakeAll), Error);
  EXPECT_THROW(Generation(session, {.top_logprobs = 21}, kTakeAll), Error);
  EXPECT_THROW(Generation(session, {.top_logprobs = -1}, kTakeAll), Error);
  EXPECT_THROW(Generation(session, {.logit_bias = {{64, 1.0F}}}, kTakeAll), Error);
  EXPECT_THROW(Generation(session, {.logit_bias = {{3, INFINITY}}}, kTakeAll), Error);
  EXPECT_NO_THROW(Generation(session, {.max_tokens = 1}, kTakeAll));  // the prefill is still there
  const GenerateOptions greedy{.sampling = {.greedy = true}, .max_tokens = 1};
  session.prefill(prompt_of(1, 4), {}, needed_logits(*engine, greedy));
  EXPECT_THROW(Generation(session, {.max_tokens = 1}, kTakeAll), Error);  // samples from all logits
  EXPECT_NO_THROW(Generation(session, greedy, kTakeAll));
}

TEST(Generation, FewLogitsSayWhatAllOfThemSay) {
  // The engine spoils what was not asked for.
  for (const GenerateOptions& options :
       {GenerateOptions{.sampling = {.greedy = true}, .max_tokens = 12},
        GenerateOptions{.sampling = {.temperature = 1.3, .top_k = 7, .top_p = 0.95}, .seed = 5, .max_tokens = 12}}) {
    const auto engine = std::make_shared<FakeEngine>();
    GenerateOptions all = options;
    all.top_logprobs = 0;
    const Ids want = alone(engine, prompt_of(2, 6), all).ids;
    EXPECT_EQ(alone(engine, prompt_of(2, 6), options).ids, want);
    Session session(engine);
    session.prefill(prompt_of(2, 6), {}, needed_logits(*engine, options));
    EXPECT_EQ(session.generate(options, [](int32_t) { return true; }).ids, want);
  }
}

// ---- steps of other answers inside a prefill

TEST(Generation, AStepInsideAnotherPrefillChangesNeither) {
  const auto engine = std::make_shared<FakeEngine>();
  Answerer a(engine, prompt_of(2, 6), options_of(2, 30, {}));
  Generation* const one[] = {a.generation.get()};
  Session session(engine, 8);
  int64_t calls = 0;
  session.prefill(prompt_of(5, 60), [&](int64_t, int64_t) {
    if (++calls % 5 == 0 && !a.generation->done()) decode_step(*engine, one);
    return true;
  });
  EXPECT_GT(a.generation->ids().size(), 5U);
  EXPECT_EQ(session.generate(options_of(5, 9, {}), [](int32_t) { return true; }).ids,
            alone(engine, prompt_of(5, 60), options_of(5, 9, {})).ids);
  run_alone(*engine, *a.generation, nullptr);
  EXPECT_EQ(a.generation->finish().ids, alone(engine, prompt_of(2, 6), options_of(2, 30, {})).ids);
}

// ---- constraints

// Lets the words of a list through, one after the other token by token, then nothing but `end`.
class OneOf final : public TokenConstraint {
 public:
  OneOf(std::vector<Ids> words, int32_t end) : words_(std::move(words)), end_(end) {}
  void apply(std::span<float> logits) override {
    ++applied_;
    std::set<int32_t> next;
    for (const Ids& w : words_) {
      if (w.size() < said_.size() || !std::equal(said_.begin(), said_.end(), w.begin())) continue;
      next.insert(w.size() == said_.size() ? end_ : w[said_.size()]);
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!next.contains(static_cast<int32_t>(i))) logits[i] = -INFINITY;
    }
  }
  void accept(int32_t id) override {
    EXPECT_EQ(applied_, accepted_ + 1);  // each token was asked for
    ++accepted_;
    said_.push_back(id);
  }
  bool finished() const override { return stop_at_ >= 0 && static_cast<int64_t>(said_.size()) >= stop_at_; }

  int64_t stop_at_ = -1;
  int64_t applied_ = 0, accepted_ = 0;
  Ids said_;

 private:
  std::vector<Ids> words_;
  int32_t end_;
};

TEST(Generation, LogitsAreAskedForAsFarAsSomebodyLooksAtThem) {
  const FakeEngine engine;
  const auto count = [&](const GenerateOptions& o) { return needed_logits(engine, o).count; };
  EXPECT_EQ(count({.sampling = {.greedy = true}}), 1);
  EXPECT_EQ(count({.sampling = {.temperature = 0, .top_k = 50}}), 1);
  EXPECT_EQ(count({.sampling = {.top_k = 50, .top_p = 0.9, .min_p = 0.1}}), 50);
  EXPECT_EQ(needed_logits(engine, {.sampling = {.greedy = true}, .id_limit = 40}).ids, 40);
  EXPECT_EQ(count({}), 0);
  EXPECT_EQ(count({.sampling = {.greedy = true, .repetition_penalty = 1.1}}), 0);
  EXPECT_EQ(count({.sampling = {.greedy = true, .presence_penalty = 0.5}}), 0);
  EXPECT_EQ(count({.sampling = {.greedy = true, .frequency_penalty = -0.5}}), 0);
  EXPECT_EQ(count({.sampling = {.greedy = true}, .logit_bias = {{3, 1.0F}}}), 0);
  EXPECT_EQ(count({.sampling = {.greedy = true}, .top_logprobs = 0}), 0);
  EXPECT_EQ(count({.sampling = {.greedy = true}, .constraint = std::make_shared<OneOf>(std::vector<Ids>{{1}}, 2)}), 0);
}

TEST(GenerationConstraint, OnlyWhatItLetsThroughIsSaidWithGuessesToo) {
  const std::vector<Ids> words = {{7, 8, 9, 10, 7, 8, 9, 10, 7, 8, 9, 10, 7, 8}, {7, 9, 9}, {12}};
  for (int32_t seed = 0; seed < 12; ++seed) {
    for (const Speculation& way : {Speculation{.mode = Speculation::Mode::kOff},
                                   Speculation{.mode = Speculation::Mode::kFixed, .draft_tokens = 15}}) {
      const auto engine = std::make_shared<FakeEngine>();
      GenerateOptions o = options_of(seed, 30, way);
      o.end_ids = {40};
      auto constraint = std::make_shared<OneOf>(words, 40);
      o.constraint = constraint;
      const GenerateResult r = alone(engine, prompt_of(seed, 9), o);
      Ids said = r.ids;
      ASSERT_EQ(said.back(), 40);
      EXPECT_EQ(r.cause, EndCause::kEndToken);
      EXPECT_EQ(constraint->said_, said);  // the end token too
      said.pop_back();
      EXPECT_TRUE(std::ranges::find(words, said) != words.end());
      // Guesses change nothing.
      o.constraint = std::make_shared<OneOf>(words, 40);
      o.speculation = {.mode = Speculation::Mode::kOff};
      EXPECT_EQ(alone(engine, prompt_of(seed, 9), o).ids, r.ids);
    }
  }
}

TEST(GenerationConstraint, EndsTheAnswerWhenNothingMayCome) {
  const auto engine = std::make_shared<FakeEngine>();
  GenerateOptions o = options_of(2, 30, {});
  // It says so itself.
  auto constraint = std::make_shared<OneOf>(std::vector<Ids>{{7, 8, 9}}, 40);
  constraint->stop_at_ = 3;
  o.constraint = constraint;
  GenerateResult r = alone(engine, prompt_of(2, 9), o);
  EXPECT_EQ(r.ids, (Ids{7, 8, 9}));
  EXPECT_EQ(r.reason, FinishReason::kStop);
  EXPECT_EQ(r.cause, EndCause::kConstraint);
  // It lets nothing through: id 64 is not in the vocabulary.
  o.constraint = std::make_shared<OneOf>(std::vector<Ids>{{7, 8, 64}}, 40);
  r = alone(engine, prompt_of(2, 9), o);
  EXPECT_EQ(r.ids, (Ids{7, 8}));
  EXPECT_EQ(r.cause, EndCause::kConstraint);
  // From the beginning on.
  constraint = std::make_shared<OneOf>(std::vector<Ids>{{7}}, 40);
  constraint->stop_at_ = 0;
  o.constraint = constraint;
  r = alone(engine, prompt_of(2, 9), o);
  EXPECT_TRUE(r.ids.empty());
  EXPECT_EQ(r.cause, EndCause::kConstraint);
  EXPECT_EQ(constraint->applied_, 0);
  // Together with another answer.
  Answerer plain(engine, prompt_of(4, 9), options_of(4, 10, {}));
  o.constraint = std::make_shared<OneOf>(std::vector<Ids>{{7, 8, 9, 10}}, 40);
  o.end_ids = {40};
  Answerer bound(engine, prompt_of(2, 9), o);
  while (!plain.generation->done()) {
    std::vector<Generation*> now = {plain.generation.get()};
    if (!bound.generation->done()) now.push_back(bound.generation.get());
    decode_step(*engine, now);
  }
  EXPECT_EQ(bound.generation->finish().ids, (Ids{7, 8, 9, 10, 40}));
  EXPECT_EQ(plain.generation->finish().ids, alone(engine, prompt_of(4, 9), options_of(4, 10, {})).ids);
}

TEST(GenerationConstraint, BiasCannotSayWhatMayNotCome) {
  const auto engine = std::make_shared<FakeEngine>();
  GenerateOptions o = options_of(2, 8, {});
  o.logit_bias = {{11, 100.0F}};
  EXPECT_EQ(alone(engine, prompt_of(2, 9), o).ids, Ids(8, 11));
  o.constraint = std::make_shared<OneOf>(std::vector<Ids>{{7, 8, 11}, {11, 12}}, 40);
  o.end_ids = {40};
  EXPECT_EQ(alone(engine, prompt_of(2, 9), o).ids, (Ids{11, 12, 40}));
}

// ---- log-probabilities

TEST(GenerationLogprobs, EveryTokenHasItsOwnWhateverChoseIt) {
  for (const Speculation& way : {Speculation{.mode = Speculation::Mode::kOff},
                                 Speculation{.mode = Speculation::Mode::kFixed, .draft_tokens = 5}}) {
    const auto engine = repeating_engine(3.9F);
    GenerateOptions o = options_of(3, 25, way);
    o.top_logprobs = 4;
    o.id_limit = 60;
    Session session(engine);
    session.prefill(prompt_of(3, 9));
    std::vector<TokenLogprobs> streamed;
    Generation g(session, o, [&](const SaidToken& t) {
      EXPECT_NE(t.logprobs, nullptr);
      EXPECT_EQ(t.logprobs->said.id, t.id);
      streamed.push_back(*t.logprobs);
      return true;
    });
    run_alone(*engine, g, nullptr);
    const GenerateResult r = g.finish();
    ASSERT_EQ(r.logprobs.size(), r.ids.size());
    ASSERT_EQ(streamed.size(), r.ids.size());
    // Against logits computed token by token.
    const auto cache = engine->decoder().new_cache();
    Ids ids = prompt_of(3, 9).ids;
    for (size_t i = 0; i < r.ids.size(); ++i) {
      const Tensor embeds = engine->embed().embed(ids);
      std::vector<int64_t> positions;
      for (size_t k = 0; k < ids.size(); ++k) positions.push_back(cache->length() + static_cast<int64_t>(k));
      engine::DecoderInput input;
      input.embeds = &embeds;
      for (auto& axis : input.positions) axis = positions;
      input.decode = i > 0;
      const Tensor logits = engine->decoder().forward(input, *cache, engine::LogitsMode::kLast);
      const TokenLogprobs expected = token_logprobs(logits.as<float>(), r.ids[i], 4, 60);
      EXPECT_EQ(r.logprobs[i].said.id, r.ids[i]);
      EXPECT_EQ(r.logprobs[i].said.logprob, expected.said.logprob);
      EXPECT_EQ(streamed[i].said.logprob, expected.said.logprob);
      ASSERT_EQ(r.logprobs[i].top.size(), 4U);
      for (size_t k = 0; k < 4; ++k) {
        EXPECT_EQ(r.logprobs[i].top[k].id, expected.top[k].id);
        EXPECT_EQ(r.logprobs[i].top[k].logprob, expected.top[k].logprob);
      }
      ids = {r.ids[i]};
    }
  }
  // None unless asked for; the end token has one too.
  const auto engine = std::make_shared<FakeEngine>();
  engine->script_ = {10, 11, 12};
  GenerateOptions o = options_of(2, 9, {});
  o.end_ids = {12};
  EXPECT_TRUE(alone(engine, prompt_of(2, 9), o).logprobs.empty());
  o.top_logprobs = 0;
  const GenerateResult r = alone(engine, prompt_of(2, 9), o);
  ASSERT_EQ(r.logprobs.size(), 3U);
  EXPECT_EQ(r.logprobs[2].said.id, 12);
  EXPECT_TRUE(r.logprobs[2].top.empty());
}

}  // namespace
}  // namespace qvl::generate
