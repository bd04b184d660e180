#include "qvl/apps/cli.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <future>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/log.h"
#include "qvl/base/stopwatch.h"
#include "qvl/engine/native/open.h"
#include "qvl/generate/report.h"
#include "qvl/image/decode.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

// The whole of `text` as a number, or nothing.
std::optional<double> parse_real(const std::string& text) {
  char* end = nullptr;
  const double v = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || std::isspace(static_cast<unsigned char>(text[0]))) return std::nullopt;
  return v;
}

CLI::Validator between(std::string range, std::function<bool(const std::string&)> fits) {
  return CLI::Validator(
      [range, fits](std::string& text) {
        return fits(text) ? std::string() : fmt::format("expected {}, got {}", range, text);
      },
      range);
}

}  // namespace

void set_usage(CLI::App& command, std::string usage) {
  class Formatter : public CLI::Formatter {
   public:
    explicit Formatter(std::string line) : line_(std::move(line)) {}
    std::string make_usage(const CLI::App*, std::string) const override { return "Usage: " + line_ + "\n"; }

   private:
    std::string line_;
  };
  auto formatter = std::make_shared<Formatter>(std::move(usage));
  formatter->column_width(34);
  command.formatter(formatter);
}

CLI::Validator real_between(double low, double high) {
  return between(fmt::format("{}..{}", low, high), [low, high](const std::string& text) {
    const std::optional<double> v = parse_real(text);
    return v && *v >= low && *v <= high;
  });
}

CLI::Validator whole_between(int64_t low, int64_t high) {
  const std::string range =
      high == INT64_MAX ? fmt::format("{} or more", low) : fmt::format("{}..{}", low, high);
  return between(range, [low, high](const std::string& text) {
    int64_t v = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
    return error == std::errc() && end == text.data() + text.size() && v >= low && v <= high;
  });
}

void add_engine_options(CLI::App& app, EngineChoice& choice) {
  app.add_option("--threads", choice.threads, "Threads (default: all processors available)")
      ->check(whole_between(1, 1024))
      ->group("Engine");
  app.add_option("--vision", choice.vision, "Engine of the vision stage: native or onnx")
      ->check(CLI::IsMember({"native", "onnx"}))
      ->group("Engine");
  app.add_option("--text", choice.text, "Engine of the text stages: native or onnx")
      ->check(CLI::IsMember({"native", "onnx"}))
      ->group("Engine");
  app.add_option("--vision-dtype", choice.vision_dtype,
                 "Precision of the vision stage: auto (the checkpoint's; integer weights multiply in int8), bf16 or fp32")
      ->check(CLI::IsMember({"auto", "bf16", "fp32"}))
      ->group("Engine");
  app.add_option("--text-dtype", choice.text_dtype,
                 "Precision of the text stages: auto (the checkpoint's; integer weights multiply in int8), bf16 or fp32")
      ->check(CLI::IsMember({"auto", "bf16", "fp32"}))
      ->group("Engine");
  app.add_option("--kv", choice.kv,
                 "Keys and values in memory: auto (as the text's activations, so bf16 for a bf16 model), bf16, or int8 "
                 "(half the bytes; native text stages)")
      ->check(CLI::IsMember({"auto", "bf16", "int8"}))
      ->group("Engine");
  const char* onnx = "ONNX Runtime (stages of a package with --vision onnx, --text onnx)";
  app.add_option("--onnxruntime", choice.onnxruntime,
                 "The library libonnxruntime.so.1, or its folder (default: looked for)")
      ->type_name("PATH")
      ->group(onnx);
  app.add_option("--ep", choice.provider, "Execution provider: cpu, or a name that the library knows")
      ->type_name("NAME")
      ->group(onnx);
  app.add_option("--ep-option", choice.provider_options, "An option of the execution provider; repeatable")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE")
      ->group(onnx);
  app.add_option("--ort-config", choice.session_config,
                 "A session configuration entry of ONNX Runtime; repeatable")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE")
      ->group(onnx);
  app.add_option("--vision-graph", choice.vision_graph,
                 "full (all images at once, positions in the graph), host (positions made here) or auto")
      ->check(CLI::IsMember({"auto", "full", "host"}))
      ->group(onnx);
  app.add_flag("--verbose", choice.verbose, "Decisions, sizes and timings on stderr");
}

void add_pixel_options(CLI::App& app, PixelChoice& choice) {
  app.add_option("--min-pixels", choice.min_pixels,
                 "Enlarge images below this many pixels (width times height)")
      ->check(whole_between(1, INT64_MAX))
      ->group("Images");
  app.add_option("--max-pixels", choice.max_pixels,
                 "Shrink images above this many pixels; videos: all frames together")
      ->check(whole_between(1, INT64_MAX))
      ->group("Images");
}

image::PixelOverrides PixelChoice::overrides() const {
  if (min_pixels && max_pixels && *min_pixels > *max_pixels) {
    throw UsageError(
        fmt::format("--min-pixels: expected at most --max-pixels {}, got {}", *max_pixels, *min_pixels));
  }
  return {.min_pixels = min_pixels, .max_pixels = max_pixels};
}

void add_visual_options(CLI::App& app, VisualChoice& choice) {
  auto add = [&choice](generate::VisualInput::Kind kind) {
    return
        [&choice, kind](const std::string& path) { choice.inputs.push_back({.kind = kind, .path = path}); };
  };
  // trigger_on_parse: pictures and videos come in the order in which they are written.
  app.add_option_function<std::string>(
         "-i,--image", add(generate::VisualInput::Kind::kImageFile),
         "Image file (JPEG, PNG, WebP, GIF, BMP); repeatable, shown in the given order before the prompt")
      ->trigger_on_parse()
      ->type_name("IMAGE")
      ->group("Images");
  app.add_option_function<std::string>("-v,--video", add(generate::VisualInput::Kind::kFrameFolder),
                                       "Video as a folder of frame images in natural order; repeatable")
      ->trigger_on_parse()
      ->type_name("FOLDER")
      ->group("Images");
  app.add_option("--fps", choice.fps,
                 "Frames per second at which the frames of -v were recorded (default 24)")
      ->check(real_between(0.001, 1000))
      ->group("Images");
}

std::vector<generate::VisualInput> VisualChoice::resolved() const {
  std::vector<generate::VisualInput> out = inputs;
  bool any_video = false;
  for (generate::VisualInput& input : out) {
    if (input.kind != generate::VisualInput::Kind::kFrameFolder) continue;
    any_video = true;
    input.native_fps = fps;
  }
  if (fps && !any_video) throw UsageError("--fps: expected a video (-v FOLDER) beside it, got none");
  return out;
}

void add_generation_options(CLI::App& app, GenerationChoice& choice) {
  const char* group = "Generation (defaults: the checkpoint's generation_config.json)";
  generate::SamplingOverrides& s = choice.sampling;
  app.add_option("--max-tokens", choice.max_tokens,
                 fmt::format("Longest answer (default: the checkpoint's max_new_tokens, else {})",
                             generate::kDefaultMaxTokens))
      ->check(whole_between(1, INT64_MAX))
      ->group(group);
  CLI::Option* greedy = app.add_flag("--greedy", s.greedy, "Always the likeliest token")->group(group);
  app.add_option("--temperature", s.temperature, "0: greedy")
      ->check(real_between(0, 100))
      ->excludes(greedy)
      ->group(group);
  app.add_option("--top-k", s.top_k, "Draw from the K likeliest tokens (0: off)")
      ->check(whole_between(0, INT64_MAX))
      ->excludes(greedy)
      ->group(group);
  app.add_option("--top-p", s.top_p, "Draw from the likeliest tokens that sum to P (1: off)")
      ->check(real_between(0, 1))
      ->excludes(greedy)
      ->group(group);
  app.add_option("--min-p", s.min_p, "Drop tokens below P times the likeliest one (0: off)")
      ->check(real_between(0, 1))
      ->excludes(greedy)
      ->group(group);
  app.add_option("--seed", choice.seed, "Same seed, same answer (default: a new one every time)")
      ->check(whole_between(0, INT64_MAX))
      ->group(group);
  app.add_option("--repetition-penalty", s.repetition_penalty,
                 "Divides the logits of tokens seen in prompt or answer (1: off)")
      ->check(real_between(0.01, 100))
      ->group(group);
  app.add_option("--presence-penalty", s.presence_penalty,
                 "Subtracted from tokens already in the answer (0: off)")
      ->check(real_between(-100, 100))
      ->group(group);
  app.add_option("--frequency-penalty", s.frequency_penalty,
                 "Subtracted for each time a token is in the answer (0: off)")
      ->check(real_between(-100, 100))
      ->group(group);
  app.add_option("--stop", choice.stop, "End the answer before this text; repeatable")
      ->allow_extra_args(false)
      ->check([](const std::string& text) {
        return text.empty() ? std::string("expected at least one character, got none") : std::string();
      })
      ->type_name("TEXT")
      ->group(group);
  app.add_flag("--ignore-eos", choice.ignore_eos, "Go on after end tokens until --max-tokens")->group(group);
  app.add_option("--system", choice.system, "System message")->type_name("TEXT")->group(group);
  app.add_option("--prefill-chunk", choice.prefill_chunk,
                 "Prompt tokens computed at a time; the answer does not depend on it")
      ->check(whole_between(1, 1 << 20))
      ->group(group);
  add_speculate_option(app, choice.speculate)->group(group);
}

CLI::Option* add_speculate_option(CLI::App& app, std::string& choice) {
  const std::string range = fmt::format("auto, off or 1..{}", generate::kMaxDraftTokens);
  const auto fits = [](const std::string& text) {
    return text == "auto" || text == "off" || whole_between(1, generate::kMaxDraftTokens)(text).empty();
  };
  return app
      .add_option("--speculate", choice,
                  "Guess tokens from what was read and said and check them together: auto (where it pays), off, or "
                  "always up to N; the answer does not depend on it")
      ->check(between(range, fits).description(""))
      ->type_name("auto|off|N");
}

generate::Speculation parse_speculation(const std::string& choice) {
  using Mode = generate::Speculation::Mode;
  if (choice == "auto") return {.mode = Mode::kAuto};
  if (choice == "off") return {.mode = Mode::kOff};
  return {.mode = Mode::kFixed, .draft_tokens = std::stoll(choice)};
}

generate::AnswerOptions GenerationChoice::options(const generate::Assets& assets) const {
  generate::AnswerOptions out;
  out.sampling = generate::resolve_sampling(assets.generation, sampling);
  out.seed = seed;
  out.max_tokens =
      max_tokens.value_or(assets.generation.max_new_tokens.value_or(generate::kDefaultMaxTokens));
  out.stop = stop;
  out.ignore_eos = ignore_eos;
  out.speculation = parse_speculation(speculate);
  return out;
}

fs::path resolve_model(const std::string& given) {
  if (!given.empty()) return given;
  if (const char* set = std::getenv("QVL_SMALL_MODEL"); set && *set) return set;
  const fs::path here = executable_folder();
  const std::vector<fs::path> places = {here / "../share/qvl/models/small", here / "../../models/small",
                                        fs::path(QVL_SOURCE_DIR) / "models/small"};
  std::string tried;
  for (const fs::path& place : places) {
    std::error_code ec;
    if (fs::exists(place / "config.json", ec)) return place.lexically_normal();
    tried += (tried.empty() ? "" : ", ") + place.lexically_normal().string();
  }
  fail(
      ErrorCode::kNotFound, "model",
      fmt::format("the small model was not found in {} (name a model folder or set QVL_SMALL_MODEL)", tried));
}

void refuse_picture_as_model(const std::string& command, const std::string& model) {
  std::error_code ec;
  if (!image::has_picture_extension(model) || fs::is_directory(model, ec)) return;
  throw UsageError(
      fmt::format("MODEL: expected a model folder, got the picture {0} (did you mean: qvl {1} -i {0} ...)",
                  model, command));
}

OpenModel open_model(const fs::path& folder, const EngineChoice& choice, ProgressBar& bar, bool with_assets,
                     bool text_soon) {
  std::error_code ec;
  if (!fs::exists(folder, ec)) fail(ErrorCode::kNotFound, folder.string(), "no such model folder");
  if (!fs::is_directory(folder, ec)) {
    fail(ErrorCode::kInvalidArgument, folder.string(), "model", "a checkpoint or package folder", "a file");
  }
  const Clock::time_point start = Clock::now();
  const engine::ProgressFn progress = [&bar](int64_t done, int64_t total) {
    bar.update("loading", done, total, "");
    return !interrupt_flag();
  };
  // The tokenizer takes longer than the rest: it is read beside it. Should the engine not open, its error is the one that counts.
  std::future<text::Tokenizer> tokenizer;
  if (with_assets) {
    const std::launch beside = choice.threads == 1 ? std::launch::deferred : std::launch::async | std::launch::deferred;
    tokenizer = std::async(beside, [folder] { return text::Tokenizer::load(folder); });
  }
  OpenModel out;
  if (package::is_package_folder(folder)) {
    out.engine = open_package(std::make_shared<const package::Package>(package::Package::open(folder)),
                              choice, progress);
  } else {
    refuse_onnx_of_checkpoint(folder, choice);
    out.engine = engine::native::open_checkpoint(folder, native_options(choice, progress));
  }
  if (text_soon) out.engine->decoder().expect();
  if (with_assets) {
    out.assets = std::make_shared<const generate::Assets>(
        generate::Assets::load(folder, out.engine->config(), [&tokenizer] { return tokenizer.get(); }));
  }
  out.load_ms = ms_since(start);
  bar.clear();
  return out;
}

void log_to_stderr(bool verbose) {
  set_log_sink([verbose](LogLevel level, std::string_view message) {
    if (level == LogLevel::kWarning) fmt::print(stderr, "qvl: warning: {}\n", message);
    if (level == LogLevel::kInfo && verbose) fmt::print(stderr, "qvl: {}\n", message);
  });
}

std::function<void(generate::Phase, int64_t, int64_t)> phase_progress(ProgressBar& bar) {
  return [&bar](generate::Phase phase, int64_t done, int64_t total) {
    if (phase == generate::Phase::kVision) {
      bar.update("vision", done, total, "patches");
    } else {
      bar.update("prefill", done, total, "tokens");
    }
  };
}

void print_statistics(const generate::Answer& a, const engine::EngineInfo& engine, double load_ms) {
  std::string out;
  auto line = [&out](std::string_view text) { out += fmt::format("qvl: {}\n", text); };
  line(fmt::format("engine: vision {}, text {}, {}, {} threads; loaded in {:.0f} ms", engine.vision,
                   engine.text, engine.isa, engine.threads, load_ms));
  for (const generate::VisualReport& v : a.visuals) {
    const generate::VisualInfo& i = v.info;
    line(fmt::format("{}: {}x{} -> {}x{}, grid {}x{}x{}, {} tokens, {}", i.is_video ? "video" : "image",
                     i.width, i.height, i.resized_width, i.resized_height, i.grid.t, i.grid.h, i.grid.w,
                     v.tokens,
                     v.cached ? std::string("cached") : fmt::format("encoded in {:.0f} ms", v.encode_ms)));
  }
  if (a.vision_patches > 0) {
    line(fmt::format("vision: {} patches in {:.0f} ms, {:.0f} patches/s", a.vision_patches, a.vision_ms,
                     generate::per_second(static_cast<double>(a.vision_patches), a.vision_ms)));
  }
  const int64_t computed = a.prompt_tokens - a.cached_tokens;
  line(fmt::format("prompt: {} tokens ({} visual), {} cached; prefill {:.0f} ms, {:.0f} tokens/s",
                   a.prompt_tokens, a.image_tokens, a.cached_tokens, a.prefill_ms,
                   generate::per_second(static_cast<double>(computed), a.prefill_ms)));
  line(fmt::format("keys and values: {}, {:.1f} MB", engine::kv_dtype_name(engine.kv_dtype),
                   static_cast<double>(a.kv_bytes) * 1e-6));
  const double decoded = a.token_ids.empty() ? 0.0 : static_cast<double>(a.token_ids.size() - 1);
  line(fmt::format(
      "answer: {} tokens ({}), first after {:.0f} ms, {:.1f} tokens/s; seed {}; peak memory {:.0f} MB",
      a.token_ids.size(), generate::finish_reason_name(a.reason), a.ttft_ms,
      generate::per_second(decoded, a.decode_ms), a.seed, peak_rss_mb()));
  line(fmt::format("decode: {} steps for {} tokens after the first; {} guessed, {} of them right", a.decode.steps,
                   a.token_ids.empty() ? 0 : a.token_ids.size() - 1, a.decode.drafted_tokens,
                   a.decode.accepted_tokens));
  fmt::print(stderr, "{}", out);
}

}  // namespace qvl::apps
