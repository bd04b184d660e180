// `qvl eval`: scores a model on a folder of pictures with questions and answers.

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/generate/eval.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct EvalOptions {
  std::vector<std::string> words;  // questions, or MODEL and questions
  EngineChoice engine;
  PixelChoice pixels;
  int64_t max_tokens = 256;
  int64_t limit = 0;
  std::string speculate = "auto";
  bool json = false;
  bool show_wrong = false;
};

int eval(const EvalOptions& o) {
  const image::PixelOverrides overrides = o.pixels.overrides();
  log_to_stderr(o.engine.verbose);
  catch_interrupts();
  const fs::path file = generate::find_questions(o.words.back());
  std::vector<generate::EvalQuestion> questions = generate::read_questions(file);
  if (o.limit > 0 && static_cast<int64_t>(questions.size()) > o.limit)
    questions.resize(static_cast<size_t>(o.limit));

  ProgressBar bar;
  const fs::path folder = resolve_model(o.words.size() == 2 ? o.words.front() : "");
  const OpenModel model = open_model(folder, o.engine, bar);
  // Questions about one picture follow each other, so its features are worth remembering.
  generate::Pipeline pipeline(model.engine, model.assets,
                              std::make_shared<generate::ImageMemory>(generate::kDefaultImageMemoryBytes));
  generate::AnswerOptions options;
  options.sampling.greedy = true;
  options.max_tokens = o.max_tokens;
  options.speculation = parse_speculation(o.speculate);

  generate::EvalTable table;
  int64_t done = 0;
  for (const generate::EvalQuestion& q : questions) {
    bar.update("eval", done++, static_cast<int64_t>(questions.size()), "questions");
    const generate::ChatMessage message = generate::question_message(pipeline, q, overrides);
    std::string size;
    if (!message.visuals.empty()) {
      const generate::VisualInfo& first = message.visuals.front()->info();
      size = fmt::format("{}x{}", first.width, first.height);
    }
    const generate::Answer answer =
        pipeline.answer({message}, options, {.on_text = {}, .progress = {}, .cancel = &interrupt_flag()});
    if (answer.reason == generate::FinishReason::kCancelled) {
      bar.clear();
      return kExitInterrupted;
    }
    const double score = generate::score_answer(q.task, answer.text, q.answer);
    table.add(q.task, size, score);
    table.add_decode(q.task, answer);
    if (o.show_wrong && score < 0.5) {
      bar.clear();
      const std::string picture = q.images.empty() ? "" : q.images.front().filename().string() + " ";
      fmt::print(stderr, "{}{}: expected {}, got {}\n", picture, q.question, q.answer, answer.text);
    }
  }
  bar.clear();
  write_stdout(o.json ? table.to_json().dump(2) + "\n" : table.to_text());
  return kExitOk;
}

}  // namespace

Registration register_eval(CLI::App& app) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Score a model on pictures with questions and answers");
  set_usage(*command, "qvl eval [MODEL] FOLDER|FILE.jsonl [OPTIONS]");
  command->footer(
      "One JSON object per line: {\"images\": [\"a.png\"], \"question\": \"...\", \"answer\": \"...\", "
      "\"task\": \"colour\"}; names are\n"
      "relative to the file. Answers are greedy. Score: exact match of the whole answer; task box: IoU of "
      "the first bbox_2d.");
  command->add_option("QUESTIONS", options->words, "[MODEL] and FILE.jsonl, or a folder with questions.jsonl")
      ->required()
      ->expected(1, 2)
      ->type_name("PATH");
  command->add_option("--max-tokens", options->max_tokens, "Longest answer")
      ->check(whole_between(1, INT64_MAX));
  command->add_option("--limit", options->limit, "Only the first N questions (0: all)")
      ->check(whole_between(0, INT64_MAX));
  command->add_flag("--json", options->json, "One JSON object instead of tables");
  command->add_flag("--show-wrong", options->show_wrong, "Answers that scored below 0.5, on stderr");
  add_speculate_option(*command, options->speculate);
  add_pixel_options(*command, options->pixels);
  add_engine_options(*command, options->engine);
  return {command, [options] { return eval(*options); }};
}

}  // namespace qvl::apps
