// What guessing tokens (generate/speculation.h) is worth on a model whose own answers cannot be had: given answers are
// replayed through it. Every token is computed, guessed and checked as in any answer, only what is said is laid down, so
// steps and their times are those of a model that gives these answers.
//
//   replay_bench MODEL QUESTIONS [TASK,TASK,... [LIMIT [ROUNDS [THREADS]]]] [--json]
//
// MODEL: a checkpoint or a package, in the native engine. QUESTIONS: as `qvl eval` takes them; their answers are said.
// Pictures are left out: nothing is guessed from them. Each question is answered without and with guesses, in turn, by two
// conversations that remember what they said (as one process of `qvl eval` or `qvl serve` does); each round begins anew.
//
// --json: one object instead of the table: {"model", "isa", "threads", "questions", "rounds", "tasks": {TASK: SUM}, "all": SUM},
// SUM = {"answers", "prompt_tokens" (mean), "tokens" (after the first of each answer), "off": RUN, "auto": RUN}, RUN = {"ms",
// "tokens_per_s", "steps", "drafted_tokens", "accepted_tokens"}. A kind of answers that are one token long has no "tokens_per_s".
#include <map>
#include <span>

#include "native_bench.h"
#include "qvl/base/json.h"
#include "qvl/engine/engine_with_decoder.h"
#include "qvl/generate/eval.h"
#include "qvl/generate/pipeline.h"

namespace {

using namespace qvl;
using namespace qvl::bench;
using namespace qvl::generate;

// The decoder of another engine, whose likeliest tokens are those of an answer.
class ReplayDecoder : public engine::DecoderStage {
 public:
  explicit ReplayDecoder(const engine::DecoderStage& decoder) : decoder_(decoder) {}
  // Of the answer to the prompt that is read next.
  void say(std::vector<int32_t> ids) { ids_ = std::move(ids); }

  std::unique_ptr<engine::KvCache> new_cache() const override { return decoder_.new_cache(); }
  bool decode_rows_are_independent() const override { return decoder_.decode_rows_are_independent(); }
  Tensor forward(const engine::DecoderInput& input, engine::KvCache& cache, engine::LogitsMode mode,
                 const engine::StageHooks& hooks) const override {
    Tensor logits = decoder_.forward(input, cache, mode, hooks);
    prompt_ = cache.length();
    return lay_down(std::move(logits), cache);
  }
  Tensor decode_together(const engine::DecoderInput& input, std::span<const engine::DecodeShare> shares,
                         const engine::StageHooks& hooks) const override {
    return lay_down(decoder_.decode_together(input, shares, hooks), *shares.front().cache);
  }

 private:
  // The rows are those of the last positions. Behind a wrong guess, and behind the answer, nobody looks at them.
  Tensor lay_down(Tensor logits, const engine::KvCache& cache) const {
    for (int64_t r = 0; r < logits.dim(0); ++r) {
      const int64_t said = cache.length() - logits.dim(0) + r + 1 - prompt_;
      if (said < static_cast<int64_t>(ids_.size()))
        logits.as<float>()[static_cast<size_t>(r * logits.dim(1) + ids_[static_cast<size_t>(said)])] = 1e6F;
    }
    return logits;
  }

  const engine::DecoderStage& decoder_;
  std::vector<int32_t> ids_;
  mutable int64_t prompt_ = 0;  // tokens
};

class ReplayEngine : public engine::EngineWithDecoder {
 public:
  explicit ReplayEngine(std::shared_ptr<const engine::Engine> engine) : EngineWithDecoder(std::move(engine)), decoder_(inner().decoder()) {}
  const engine::DecoderStage& decoder() const override { return decoder_; }
  void say(std::vector<int32_t> ids) { decoder_.say(std::move(ids)); }

 private:
  ReplayDecoder decoder_;
};

struct Sum {
  int64_t answers = 0, prompt_tokens = 0;
  int64_t tokens = 0, steps = 0, drafted = 0, accepted = 0;  // tokens: after the first of each answer
  double ms = 0;
  void add(const Answer& a) {
    ++answers;
    prompt_tokens += a.prompt_tokens;
    tokens += static_cast<int64_t>(a.token_ids.size()) - 1;
    steps += a.decode.steps;
    drafted += a.decode.drafted_tokens;
    accepted += a.decode.accepted_tokens;
    ms += a.decode_ms;
  }
};

// Of one kind of questions, or of all.
struct Pair {
  Sum off, guessed;
};

void print(const std::string& task, const Pair& p) {
  const auto a_token = [](const Sum& s) { return s.ms / static_cast<double>(s.tokens); };
  const double tokens = static_cast<double>(p.guessed.tokens);
  std::printf("%-10s %7lld %10.2f %8lld %8lld %9.1f %9.1f %8.2f\n", task.c_str(), static_cast<long long>(p.guessed.tokens),
              static_cast<double>(p.guessed.steps) / tokens, static_cast<long long>(p.guessed.drafted),
              static_cast<long long>(p.guessed.accepted), a_token(p.off), a_token(p.guessed),
              a_token(p.off) / a_token(p.guessed));
}

Json to_json(const Pair& p) {
  const auto run = [](const Sum& s) {
    Json out = {{"ms", s.ms}, {"steps", s.steps}, {"drafted_tokens", s.drafted}, {"accepted_tokens", s.accepted}};
    if (s.ms > 0) out["tokens_per_s"] = static_cast<double>(s.tokens) / s.ms * 1e3;
    return out;
  };
  return {{"answers", p.off.answers},
          {"prompt_tokens", static_cast<double>(p.off.prompt_tokens) / static_cast<double>(std::max<int64_t>(1, p.off.answers))},
          {"tokens", p.off.tokens},
          {"off", run(p.off)},
          {"auto", run(p.guessed)}};
}

int run(const std::filesystem::path& folder, const std::filesystem::path& questions_at, const std::string& tasks,
        size_t limit, int rounds, int threads, bool json) {
  std::vector<EvalQuestion> questions = read_questions(find_questions(questions_at));
  if (!tasks.empty()) {
    const std::string list = "," + tasks + ",";
    std::erase_if(questions, [&](const EvalQuestion& q) { return list.find("," + q.task + ",") == list.npos; });
  }
  if (questions.size() > limit) questions.resize(limit);
  if (questions.empty()) fail(ErrorCode::kNotFound, "replay_bench", cat("no questions of ", tasks, " in ", questions_at.string()));
  const auto engine = std::make_shared<ReplayEngine>(open_native(folder, threads));
  const auto assets = std::make_shared<const Assets>(Assets::load(folder, engine->config()));
  std::map<std::string, Pair> by_task;
  Pair all;
  for (int round = 0; round < rounds; ++round) {
    Pipeline plain(engine, assets, nullptr), guessing(engine, assets, nullptr);
    for (size_t i = 0; i < questions.size(); ++i) {
      const EvalQuestion& q = questions[i];
      std::vector<int32_t> ids = assets->tokenizer.encode_text(q.answer);
      ids.push_back(assets->end_ids.at(0));
      for (int turn = 0; turn < 2; ++turn) {
        const bool guesses = (static_cast<size_t>(turn) + i) % 2 == 1;
        AnswerOptions options;
        options.sampling.greedy = true;
        options.speculation.mode = guesses ? Speculation::Mode::kAuto : Speculation::Mode::kOff;
        engine->say(ids);
        const Answer answer = (guesses ? guessing : plain).answer({text_message(text::Role::kUser, q.question)}, options);
        if (answer.token_ids != ids)
          fail(ErrorCode::kMismatch, "replay_bench", "an answer", "'" + q.answer + "'", "'" + answer.text + "'");
        Pair& kind = by_task[q.task];
        (guesses ? kind.guessed : kind.off).add(answer);
        (guesses ? all.guessed : all.off).add(answer);
      }
    }
  }
  if (json) {
    Json tasks_json = Json::object();
    for (const auto& [task, pair] : by_task) tasks_json[task] = to_json(pair);
    const Json out = {{"model", folder.string()}, {"isa", engine->info().isa}, {"threads", threads},
                      {"questions", questions.size()}, {"rounds", rounds}, {"tasks", tasks_json}, {"all", to_json(all)}};
    std::printf("%s\n", out.dump().c_str());
    return 0;
  }
  std::printf("%s, %zu questions, %d round(s)\n"
              "task        tokens steps/token  guessed    right    ms off   ms auto   off/auto\n",
              folder.c_str(), questions.size(), rounds);
  for (const auto& [task, pair] : by_task) print(task, pair);
  print("all", all);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return bench_main(argc, argv, "replay_bench MODEL QUESTIONS [TASK,TASK,... [LIMIT [ROUNDS [THREADS]]]] [--json]", 2, 6, {"--json"},
                    [](const Arguments& a) {
                      return run(a.text(0), a.text(1), a.text(2), static_cast<size_t>(a.number(3, 1 << 30)), a.number(4, 1),
                                 a.threads(5), a.has("--json"));
                    });
}
