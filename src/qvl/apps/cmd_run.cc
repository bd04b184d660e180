// `qvl run`: one question about pictures, one answer on stdout.
#include <algorithm>
#include <iostream>
#include <iterator>

#include "qvl/apps/budget.h"
#include "qvl/apps/cli.h"
#include "qvl/apps/drawing.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/report.h"
#include "qvl/image/decode.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct RunOptions {
  std::vector<std::string> words;  // PROMPT, or MODEL and PROMPT
  EngineChoice engine;
  GenerationChoice generation;
  VisualChoice visuals;
  PixelChoice pixels;
  BudgetChoice budget;
  MemoryChoice memory;
  std::optional<std::string> draw;  // file name
  bool json = false;
};

struct Question {
  std::string model;
  std::string prompt;
};

Question read_question(const std::vector<std::string>& words) {
  std::error_code ec;
  Question q;
  if (words.size() == 2) {
    q.model = words[0];
    if (q.model.empty()) throw UsageError("MODEL: expected a model folder, got an empty name");
    refuse_picture_as_model("run", q.model);
  }
  q.prompt = words.back();
  if (words.size() == 1) {
    if (image::has_picture_extension(q.prompt) && fs::exists(q.prompt, ec)) {
      throw UsageError(fmt::format(
          "PROMPT: expected a question, got the picture {0} (did you mean: qvl run -i {0} \"PROMPT\")",
          q.prompt));
    }
    if (fs::exists(fs::path(q.prompt) / "config.json", ec)) {
      throw UsageError(
          fmt::format("PROMPT: expected a question after the model folder {}, got none", q.prompt));
    }
  }
  if (q.prompt == "-") {
    q.prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
    while (!q.prompt.empty() && (q.prompt.back() == '\n' || q.prompt.back() == '\r')) q.prompt.pop_back();
  }
  if (q.prompt.find_first_not_of(" \t\r\n") == std::string::npos) {
    throw UsageError("PROMPT: expected a question, got an empty text");
  }
  return q;
}

std::vector<generate::ChatMessage> conversation(const RunOptions& o,
                                                const std::vector<std::shared_ptr<generate::Visual>>& visuals,
                                                const std::string& prompt) {
  std::vector<generate::ChatMessage> out;
  if (!o.generation.system.empty()) out.push_back(generate::text_message(text::Role::kSystem, o.generation.system));
  out.push_back(generate::user_message(visuals, prompt));
  return out;
}

// Loads the pictures again, smaller, where the question as it stands is predicted not to fit.
void fit_budget(const RunOptions& o, const fs::path& folder, const OpenModel& model, generate::Pipeline& pipeline,
                const std::string& prompt, const generate::AnswerOptions& options, double preprocess_seconds, const ResidentMemory& before,
                const std::vector<generate::VisualInput>& inputs, image::PixelOverrides pixels,
                std::vector<std::shared_ptr<generate::Visual>>& visuals, ProgressBar& bar) {
  generate::Question asked =
      question_of(pipeline, visuals, conversation(o, visuals, prompt), options, preprocess_seconds);
  asked.prefill_chunk = o.generation.prefill_chunk;
  const Planned planned = plan_question(folder, model, asked, before, pixels, o.budget, bar);
  if (!planned.plan.reduced) return;
  for (const std::string& line : given_up(asked, planned.plan, model.assets->image.resize_factor_px())) fmt::print(stderr, "qvl: for the budget, {}\n", line);
  pixels.max_pixels = planned.plan.max_pixels;
  visuals = pipeline.load(inputs, pixels);
}

int run(const RunOptions& o) {
  const Question question = read_question(o.words);
  const image::PixelOverrides pixels = o.pixels.overrides();
  std::vector<generate::VisualInput> inputs = o.visuals.resolved();
  for (const generate::VisualInput& v : inputs) {
    if (o.budget.asked() && v.kind == generate::VisualInput::Kind::kFrameFolder)
      throw UsageError("-v: expected pictures (-i) with a budget, got a video, which is not planned yet");
  }
  const Drawing drawing = o.draw ? Drawing(*o.draw, inputs) : Drawing();
  log_to_stderr(o.engine.verbose);
  catch_interrupts();

  ProgressBar bar;
  const fs::path folder = resolve_model(question.model);
  // Pictures that were asked about before need no encoding: then, too, the text stage is next. A budget measures first.
  const bool text_soon = !o.budget.asked() && (inputs.empty() || memory_is_filled(o.memory));
  const OpenModel model = open_model(folder, o.engine, bar, true, text_soon);
  const generate::AnswerOptions options = o.generation.options(*model.assets);
  generate::Pipeline pipeline(model.engine, model.assets,
                              std::make_shared<generate::ImageMemory>(generate::kDefaultImageMemoryBytes),
                              o.generation.prefill_chunk, open_disk_memory(o.memory, model));
  const ResidentMemory before = o.budget.asked() ? resident_memory(folder) : ResidentMemory{};
  const Clock::time_point loading = Clock::now();
  std::vector<std::shared_ptr<generate::Visual>> visuals = pipeline.load(inputs, pixels);
  // What is mapped counts as this process's memory, which encoding needs.
  const auto to_encode = [](const auto& visual) { return visual->is_preprocessed(); };
  if (text_soon && std::ranges::any_of(visuals, to_encode)) model.engine->decoder().give_back();
  if (o.budget.asked()) {
    fit_budget(o, folder, model, pipeline, question.prompt, options, seconds_since(loading), before, inputs, pixels, visuals, bar);
  }

  generate::AnswerCallbacks callbacks;
  callbacks.progress = phase_progress(bar);
  callbacks.cancel = &interrupt_flag();
  callbacks.on_text = [&](std::string_view piece) {
    bar.clear();
    if (!o.json) write_stdout(piece);
  };
  const generate::Answer answer = pipeline.answer(conversation(o, visuals, question.prompt), options, callbacks);
  bar.clear();
  if (o.json) {
    const generate::RunFacts facts{.load_ms = model.load_ms, .peak_rss_mb = peak_rss_mb()};
    write_stdout(generate::answer_json(answer, model.engine->info(), facts).dump() + "\n");
  } else if (answer.reason != generate::FinishReason::kCancelled || !answer.text.empty()) {
    write_stdout("\n");
  }
  if (answer.reason != generate::FinishReason::kCancelled || !answer.text.empty()) drawing.write(generate::grounding_of(answer), o.engine.verbose);
  if (o.engine.verbose) print_statistics(answer, model.engine->info(), model.load_ms);
  return answer.reason == generate::FinishReason::kCancelled ? kExitInterrupted : kExitOk;
}

}  // namespace

Registration register_run(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command =
      app.add_subcommand("run", "Answer one question; the answer on stdout, everything else on stderr");
  set_usage(*command, "qvl run [MODEL] [-i IMAGE]... [-v VIDEO]... \"PROMPT\" [OPTIONS]");
  command->footer(
      "Examples: qvl run -i photo.jpg \"What is this?\"      qvl run ~/Qwen3-VL-4B-Instruct -i a.png -i "
      "b.png \"What differs?\"\n"
      "--json prints one object: text, token_ids (the end token included), finish_reason (stop, length, or "
      "cancelled after\n"
      "Ctrl-C), usage, images, timings, decode (steps, drafted_tokens, accepted_tokens), kv_cache (dtype, bytes), peak_rss_mb, engine,\n"
      "grounding (items: kind, label, relative 0..1000 as the model wrote it, pixels of the original, image, problems).\n"
      "--draw writes the picture, in its own size, with the answer's boxes and points on it, numbered in their order;\n"
      "unchanged when there are none. With several pictures OUT.png means OUT-1.png, OUT-2.png, ... in the order of -i.\n"
      "Ctrl-C ends the answer where it is (exit code 130); a second one ends the program.");
  command->add_option("PROMPT", options->words, "[MODEL] \"PROMPT\"; the prompt - reads standard input")
      ->required()
      ->expected(1, 2)
      ->type_name("TEXT");
  add_visual_options(*command, options->visuals);
  add_pixel_options(*command, options->pixels);
  command
      ->add_option("--draw", options->draw, "Draw the boxes and points of the answer on the picture; replaces the file")
      ->type_name("OUT.png")
      ->group("Images");
  add_budget_options(*command, options->budget);
  add_memory_options(*command, options->memory);
  add_generation_options(*command, options->generation);
  add_engine_options(*command, options->engine);
  command->add_flag("--json", options->json, "One JSON object on stdout instead of the text");
  return {command, [options] { return run(*options); }};
}

}  // namespace qvl::apps
