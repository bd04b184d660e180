// What guessing tokens (generate/speculation.h) is worth on a model whose own answers cannot be had: given answers are
// replayed through it. Every token is computed, guessed and checked as in any answer, only what is said is laid down, so
// steps and their times are those of a model that gives these answers.
//
//   replay_bench MODEL QUESTIONS [TASK,TASK,... [LIMIT [ROUNDS [THREADS]]]]
//
// MODEL: a checkpoint or a package, in the native engine. QUESTIONS: as `qvl eval` takes them; their answers are said.
// Pictures are left out: nothing is guessed from them. Each question is answered without and with guesses, in turn, by two
// conversations that remember what they said (as one process of `qvl eval` or `qvl serve` does); each round begins anew.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "open_native.h"
#include "qvl/base/error.h"
#include "qvl/base/thread_pool.h"
#include "qvl/generate/eval.h"
#include "qvl/generate/pipeline.h"

namespace {

using namespace qvl;
using namespace qvl::generate;

class Replay : public TokenConstraint {
 public:
  explicit Replay(std::vector<int32_t> ids) : ids_(std::move(ids)) {}
  void apply(std::span<float> logits) override {
    std::ranges::fill(logits, -std::numeric_limits<float>::infinity());
    logits[static_cast<size_t>(ids_[said_])] = 0;
  }
  void accept(int32_t) override { ++said_; }
  bool finished() const override { return said_ == ids_.size(); }

 private:
  std::vector<int32_t> ids_;
  size_t said_ = 0;
};

struct Sum {
  int64_t tokens = 0, steps = 0, drafted = 0, accepted = 0;  // tokens: after the first of each answer
  double ms = 0;
  void add(const Answer& a) {
    tokens += static_cast<int64_t>(a.token_ids.size()) - 1;
    steps += a.decode.steps;
    drafted += a.decode.drafted_tokens;
    accepted += a.decode.accepted_tokens;
    ms += a.decode_ms;
  }
};

void print(const std::string& task, const Sum& off, const Sum& guessed) {
  const auto a_token = [](const Sum& s) { return s.ms / static_cast<double>(s.tokens); };
  const double tokens = static_cast<double>(guessed.tokens);
  std::printf("%-10s %7lld %10.2f %8lld %8lld %9.1f %9.1f %8.2f\n", task.c_str(), static_cast<long long>(guessed.tokens),
              static_cast<double>(guessed.steps) / tokens, static_cast<long long>(guessed.drafted),
              static_cast<long long>(guessed.accepted), a_token(off), a_token(guessed), a_token(off) / a_token(guessed));
}

int run(const std::filesystem::path& folder, const std::filesystem::path& questions_at, const std::string& tasks,
        size_t limit, int rounds, int threads) {
  std::vector<EvalQuestion> questions = read_questions(find_questions(questions_at));
  if (!tasks.empty()) {
    const std::string list = "," + tasks + ",";
    std::erase_if(questions, [&](const EvalQuestion& q) { return list.find("," + q.task + ",") == list.npos; });
  }
  if (questions.size() > limit) questions.resize(limit);
  const auto engine = open_native(folder, threads);
  const auto assets = std::make_shared<const Assets>(Assets::load(folder, engine->config()));
  std::printf("%s, %zu questions, %d round(s)\n"
              "task        tokens steps/token  guessed    right    ms off   ms auto   off/auto\n",
              folder.c_str(), questions.size(), rounds);
  std::map<std::string, Sum> off_by_task, guessed_by_task;
  Sum off_all, guessed_all;
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
        options.constraint = std::make_shared<Replay>(ids);
        const Answer answer = (guesses ? guessing : plain).answer({text_message(text::Role::kUser, q.question)}, options);
        if (answer.token_ids != ids) {
          std::fprintf(stderr, "another answer than '%s': '%s'\n", q.answer.c_str(), answer.text.c_str());
          return 1;
        }
        (guesses ? guessed_by_task : off_by_task)[q.task].add(answer);
        (guesses ? guessed_all : off_all).add(answer);
      }
    }
  }
  for (const auto& [task, guessed] : guessed_by_task) print(task, off_by_task[task], guessed);
  print("all", off_all, guessed_all);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 7) {
    std::fprintf(stderr, "replay_bench MODEL QUESTIONS [TASK,TASK,... [LIMIT [ROUNDS [THREADS]]]]\n");
    return 2;
  }
  const auto number = [&](int i, int otherwise) { return argc > i ? std::max(1, std::atoi(argv[i])) : otherwise; };
  try {
    return run(argv[1], argv[2], argc > 3 ? argv[3] : "", static_cast<size_t>(number(4, 1 << 30)), number(5, 1),
               number(6, available_processors()));
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
