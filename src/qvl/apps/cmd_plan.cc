// `qvl plan`: what a question about pictures will take, and which pictures fit into a budget, before it is asked.

#include "qvl/apps/budget.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/generate/prefill_chunk.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct PlanOptions {
  std::vector<std::string> words;  // [MODEL] [PROMPT]
  EngineChoice engine;
  PixelChoice pixels;
  VisualChoice visuals;
  BudgetChoice budget;
  int64_t answer_tokens = 128;
  int64_t prefill_chunk = generate::kPrefillChunkTokens;
  bool json = false;
};

constexpr const char* kPrompt = "Describe this image.";

struct Asked {
  std::string model;
  std::string prompt = kPrompt;
};

Asked read_words(const std::vector<std::string>& words) {
  Asked out;
  std::error_code ec;
  for (size_t i = 0; i < words.size(); ++i) {
    const bool is_folder = fs::is_directory(words[i], ec);
    if (i == 0 && (words.size() == 2 || is_folder)) {
      refuse_picture_as_model("plan", words[i]);
      out.model = words[i];
    } else {
      out.prompt = words[i];
    }
  }
  if (out.prompt.find_first_not_of(" \t\r\n") == std::string::npos)
    throw UsageError("PROMPT: expected a question, got an empty text");
  return out;
}

Json forecast_json(const generate::Forecast& f, bool memory_known) {
  Json images = Json::array();
  for (const image::ImageSize& s : f.resized) images.push_back({{"width", s.width}, {"height", s.height}});
  return {{"images", images},
          {"patches", f.patches},
          {"image_tokens", f.image_tokens},
          {"prompt_tokens", f.prompt_tokens},
          {"vision_ms", f.vision_seconds * 1e3},
          {"prefill_ms", f.prefill_seconds * 1e3},
          {"ttft_ms", f.first_token_seconds * 1e3},
          {"decode_tokens_per_s", f.tokens_per_second},
          {"answer_ms", f.answer_seconds * 1e3},
          {"kv_cache_bytes", memory_known ? Json(f.kv_bytes) : Json(nullptr)},
          {"peak_rss_mb", memory_known ? Json(static_cast<double>(f.peak_bytes) / (1 << 20)) : Json(nullptr)}};
}

std::string plan_text(const generate::Question& question, const Planned& p, const engine::EngineInfo& info,
                      int64_t answer_tokens, int64_t token_side_px) {
  const generate::Forecast& f = p.plan.chosen;
  std::string out;
  const auto line = [&out](std::string_view name, const std::string& value) {
    out += fmt::format("{:<14} {}\n", name, value);
  };
  line("engine", fmt::format("vision {}, text {}, {}, {} threads", info.vision, info.text, info.isa, info.threads));
  line("calibration", p.profile_source);
  for (size_t i = 0; i < f.resized.size(); ++i) {
    line("picture", fmt::format("{}x{} as {}x{}", question.pictures[i].width, question.pictures[i].height,
                                f.resized[i].width, f.resized[i].height));
  }
  line("prompt", fmt::format("{} tokens, {} of them of pictures ({} patches)", f.prompt_tokens, f.image_tokens, f.patches));
  line("encoding", fmt::format("{:.2f} s", f.vision_seconds));
  line("first token", fmt::format("{:.2f} s", f.first_token_seconds));
  line("then", fmt::format("{:.1f} tokens/s; an answer of {} tokens in {:.1f} s", f.tokens_per_second, answer_tokens,
                           f.answer_seconds));
  line("peak memory",
       p.memory_known ? fmt::format("{:.0f} MiB, {:.0f} of them keys and values ({})",
                                    static_cast<double>(f.peak_bytes) / (1 << 20),
                                    static_cast<double>(f.kv_bytes) / (1 << 20), engine::kv_dtype_name(info.kv_dtype))
                      : std::string("not predicted for ONNX stages"));
  if (p.plan.reduced) {
    for (const std::string& s : given_up(question, p.plan, token_side_px)) line("given up", s);
    line("to get it", fmt::format("--max-pixels {}", p.plan.max_pixels));
  }
  return out;
}

int plan(const PlanOptions& o) {
  const Asked asked = read_words(o.words);
  const image::PixelOverrides pixels = o.pixels.overrides();
  const std::vector<generate::VisualInput> inputs = o.visuals.resolved();
  for (const generate::VisualInput& v : inputs) {
    if (v.kind == generate::VisualInput::Kind::kFrameFolder)
      throw UsageError("-v: expected pictures (-i), got a video, which is not planned yet");
  }
  log_to_stderr(o.engine.verbose);
  catch_interrupts();
  ProgressBar bar;
  const fs::path folder = resolve_model(asked.model);
  const OpenModel model = open_model(folder, o.engine, bar);
  generate::Pipeline pipeline(model.engine, model.assets,
                              std::make_shared<generate::ImageMemory>(generate::kDefaultImageMemoryBytes),
                              o.prefill_chunk);
  const ResidentMemory before = resident_memory(folder);
  const Clock::time_point start = Clock::now();
  const std::vector<std::shared_ptr<generate::Visual>> visuals = pipeline.load(inputs, pixels);
  const double seconds = seconds_since(start);
  generate::AnswerOptions options;
  options.max_tokens = o.answer_tokens;
  const std::vector<generate::ChatMessage> conversation = {generate::user_message(visuals, asked.prompt)};
  generate::Question question = question_of(pipeline, visuals, conversation, options, seconds);
  question.prefill_chunk = o.prefill_chunk;
  const Planned planned = plan_question(folder, model, question, before, pixels, o.budget, bar);
  const engine::EngineInfo& info = model.engine->info();
  const int64_t token_side_px = model.assets->image.resize_factor_px();
  if (!o.json) {
    write_stdout(plan_text(question, planned, info, o.answer_tokens, token_side_px));
    return kExitOk;
  }
  Json out = {{"engine", {{"vision", info.vision}, {"text", info.text}, {"isa", info.isa}, {"threads", info.threads}}},
              {"answer_tokens", o.answer_tokens},
              {"max_pixels", planned.plan.max_pixels},
              {"reduced", planned.plan.reduced},
              {"forecast", forecast_json(planned.plan.chosen, planned.memory_known)},
              {"without_budget", forecast_json(planned.plan.full, planned.memory_known)},
              {"given_up", given_up(question, planned.plan, token_side_px)},
              {"profile", planned.profile.to_json()}};
  write_stdout(out.dump(2) + "\n");
  return kExitOk;
}

}  // namespace

Registration register_plan(CLI::App& app) {
  auto o = std::make_shared<PlanOptions>();
  o->budget.decoding_now = true;
  CLI::App* command = app.add_subcommand("plan", "Predict time and memory of a question; fit pictures into a budget");
  set_usage(*command, "qvl plan [MODEL] [-i IMAGE]... [\"PROMPT\"] [OPTIONS]");
  command->footer(
      "Predicts encoding, time to the first token, tokens a second and peak memory from some ten seconds of the model's own blocks and "
      "layers\non this machine. They are kept in ~/.cache/qvl (XDG_CACHE_HOME) for this processor, number of threads, kernels, "
      "version and model;\n--calibrate measures anew. Memory changes its speed by the minute, so how fast tokens are decoded is measured "
      "again each time, on the\nfirst layers (up to 256 MB of weights, a third of a second): it is that of the moment. With a budget, pictures are made smaller until it "
      "fits,\nnever below the model's minimum, and what was given up is said. qvl run takes the same budgets.\n"
      "Example: qvl plan ~/Qwen3-VL-4B-int4 -i photo.jpg \"What is this?\" --budget-seconds 10");
  command->add_option("WORDS", o->words, "[MODEL] [\"PROMPT\"]")->expected(0, 2)->type_name("TEXT");
  add_visual_options(*command, o->visuals);
  add_pixel_options(*command, o->pixels);
  add_budget_options(*command, o->budget);
  command->add_flag("--calibrate", o->budget.calibrate, "Measure anew");
  command->add_option("--max-tokens", o->answer_tokens, "Length of the answer (default 128)")
      ->check(whole_between(1, 1 << 24));
  command->add_option("--prefill-chunk", o->prefill_chunk, "Prompt tokens computed at a time")
      ->check(whole_between(1, 1 << 20));
  add_engine_options(*command, o->engine);
  command->add_flag("--json", o->json, "One JSON object on stdout");
  return {command, [o] { return plan(*o); }};
}

}  // namespace qvl::apps
