// `qvl bench`: how fast a model, or the shape of one, runs here, and which share of the machine's limit that is.

#include <cmath>
#include <fstream>

#include "qvl/apps/bench_report.h"
#include "qvl/apps/bench_stage.h"
#include "qvl/apps/child_process.h"
#include "qvl/apps/cli.h"
#include "qvl/apps/report_text.h"
#include "qvl/apps/shape_package.h"
#include "qvl/apps/work_folder.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/mapped_file.h"
#include "qvl/kernels/table.h"
#include "qvl/model/public_shapes.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct BenchCommandOptions {
  std::string model;
  std::string shape;
  // Engine (native, onnx) and, with --shape, precision (int4, int8, bf16, ...), in any order.
  std::vector<std::string> vision, text;
  std::string picture = "1024x768";
  std::vector<int64_t> prompts, contexts;
  int64_t decode_tokens = 16;
  int repeats = 3;
  int64_t read_buffer_mb = 512;
  std::string work, json, markdown, svg;
  EngineChoice engine;
  std::string stage;  // the hidden mode of the children
};

// "native" and "onnx" go to `engine`, the rest to `precision`.
void take_words(const BenchCommandOptions& o, std::string_view option, const std::vector<std::string>& words,
                std::string& engine, std::string& precision) {
  bool engine_given = false, precision_given = false;
  for (const std::string& word : words) {
    const bool is_engine = word == "native" || word == "onnx";
    bool& given = is_engine ? engine_given : precision_given;
    if (given) throw UsageError(fmt::format("{}: expected one engine and one precision, got a second: {}", option, word));
    given = true;
    if (!is_engine && o.shape.empty()) {
      throw UsageError(fmt::format(
          "{} {}: expected --shape beside it (a model has the precision it is stored in; qvl export makes another)",
          option, word));
    }
    (is_engine ? engine : precision) = word;
  }
}

// The lengths asked for, or the defaults that fit into the model's context.
std::vector<int64_t> lengths(const std::vector<int64_t>& given, std::vector<int64_t> defaults, int64_t most) {
  if (!given.empty()) return given;
  std::erase_if(defaults, [&](int64_t n) { return n > most; });
  if (defaults.empty()) defaults.push_back(std::max<int64_t>(1, most));
  return defaults;
}

std::vector<std::string> engine_arguments(const EngineChoice& e) {
  std::vector<std::string> out = {"--vision",       e.vision,      "--text",         e.text,      "--vision-dtype",
                                  e.vision_dtype,   "--text-dtype", e.text_dtype,     "--ep",      e.provider,
                                  "--vision-graph", e.vision_graph, "--kv",           e.kv};
  if (e.threads > 0) out.insert(out.end(), {"--threads", std::to_string(e.threads)});
  if (!e.onnxruntime.empty()) out.insert(out.end(), {"--onnxruntime", e.onnxruntime});
  for (const std::string& v : e.provider_options) out.insert(out.end(), {"--ep-option", v});
  for (const std::string& v : e.session_config) out.insert(out.end(), {"--ort-config", v});
  return out;
}

std::string joined(const std::vector<int64_t>& values) {
  std::string out;
  for (const int64_t v : values) out += (out.empty() ? "" : ",") + std::to_string(v);
  return out;
}

// How the children tell how far they are: lines "@ DONE TOTAL" on stderr, which is a file.
constexpr std::string_view kProgressMark = "@ ";

class Bencher {
 public:
  Bencher(const BenchCommandOptions& o, const BenchSettings& settings, const fs::path& work, ProgressBar& bar)
      : o_(o), settings_(settings), work_(work), bar_(bar), pool_(resolve_threads(o.engine.threads, "bench")) {}

  BenchReport run() {
    limits();
    const Json vision = child("vision");
    limits();
    const Json text = child("text");
    limits();
    const Json answer = child("answer");
    limits();
    bar_.clear();
    BenchReport out = bench_report(vision, text, answer, o_.picture, limits_);
    out.repeats = o_.repeats;
    out.processor = processor_name();
    out.version = QVL_VERSION;
    return out;
  }

 private:
  void limits() {
    bar_.update("measuring the machine", 0, 1, "");
    if (interrupt_flag()) fail(ErrorCode::kCancelled, "bench", "cancelled");
    limits_.raise_to(kernels::measure_machine_limits(
        kernels::active_table(), pool_, {.buffer_bytes = static_cast<size_t>(o_.read_buffer_mb) << 20}));
  }

  Json child(const std::string& what) {
    if (interrupt_flag()) fail(ErrorCode::kCancelled, "bench", "cancelled");
    std::vector<std::string> arguments = {"bench",     settings_.model.string(),
                                          "--stage",   what,
                                          "--picture", o_.picture,
                                          "--prompts", joined(settings_.text.prompt_tokens),
                                          "--contexts", joined(settings_.text.contexts),
                                          "--decode-tokens", std::to_string(o_.decode_tokens),
                                          "--repeats", std::to_string(o_.repeats)};
    const std::vector<std::string> engine = engine_arguments(settings_.engine);
    arguments.insert(arguments.end(), engine.begin(), engine.end());
    const ChildResult result = run_self(arguments, work_, [&] { show_progress(what); });
    if (interrupt_flag() || result.exit_code == kExitInterrupted) fail(ErrorCode::kCancelled, "bench", "cancelled");
    if (result.exit_code != kExitOk) fail(ErrorCode::kMismatch, "bench", fmt::format("{}: {}", what, child_error(result)));
    return parse_json(result.out, "measurement");
  }

  void show_progress(const std::string& what) {
    if (!stderr_is_terminal()) return;
    std::ifstream file(work_ / "child.err");
    int64_t done = 0, total = 1;
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with(kProgressMark)) std::sscanf(line.c_str() + kProgressMark.size(), "%ld %ld", &done, &total);
    }
    bar_.update("measuring " + what, done, total, "runs");
  }

  const BenchCommandOptions& o_;
  const BenchSettings& settings_;
  fs::path work_;
  ProgressBar& bar_;
  ThreadPool pool_;
  kernels::MachineLimits limits_;
};

int run_stage(const BenchCommandOptions& o, const BenchSettings& settings) {
  end_with_parent();
  const Json found = measure_bench_stage(o.stage, settings, [](int64_t done, int64_t total) {
    fmt::print(stderr, "{}{} {}\n", kProgressMark, done, total);
    return true;
  });
  write_stdout(found.dump() + "\n");
  return kExitOk;
}

int bench(const BenchCommandOptions& o) {
  BenchSettings settings;
  settings.engine = o.engine;
  ShapeOptions shape{.shape = CLI::detail::to_lower(o.shape), .threads = o.engine.threads};
  take_words(o, "--vision", o.vision, settings.engine.vision, shape.vision);
  take_words(o, "--text", o.text, settings.engine.text, shape.text);
  if (!o.shape.empty() && !o.model.empty()) {
    throw UsageError(fmt::format("--shape {}: expected no model beside it, got {}", o.shape, o.model));
  }
  refuse_picture_as_model("bench", o.model);
  try {
    settings.picture = generate::parse_picture_size(o.picture, "--picture");
  } catch (const Error& e) {
    throw UsageError(e.what());
  }
  settings.text.repeats = o.repeats;
  settings.text.decode_tokens = o.decode_tokens;
  log_to_stderr(o.engine.verbose);
  if (o.stage.empty()) catch_interrupts();

  const WorkFolder work(o.stage.empty() ? o.work : "", "bench");
  ProgressBar bar;
  if (o.shape.empty()) {
    settings.model = resolve_model(o.model);
  } else {
    fmt::print(stderr, "qvl: a package of shape {} ({} text, {} vision) in {}{}\n", shape.shape, shape.text,
               shape.vision, work.path().string(), work.kept() ? "" : ", removed at the end (--work FOLDER keeps it)");
    settings.model = shape_package(shape, work.path(), [&bar](std::string_view phase, int64_t done, int64_t total) {
      bar.update(phase, done, total, "");
      return !interrupt_flag();
    });
    bar.clear();
  }
  const int64_t most = model::ModelConfig::load(settings.model).text.max_positions;
  settings.text.prompt_tokens = lengths(o.prompts, settings.text.prompt_tokens, most);
  settings.text.contexts = lengths(o.contexts, settings.text.contexts, most - o.decode_tokens);
  if (!o.stage.empty()) return run_stage(o, settings);

  const WorkFolder scratch("", "bench");  // what the children say stays out of the user's folder
  BenchReport report = Bencher(o, settings, scratch.path(), bar).run();
  // Reports travel: the folder's name, not where it stands.
  std::error_code ec;
  const fs::path folder = fs::weakly_canonical(settings.model, ec);
  report.model = o.shape.empty() ? (ec || folder.filename().empty() ? settings.model.string() : folder.filename().string())
                                 : fmt::format("shape {} with random weights, text {}, vision {}", shape.shape,
                                               shape.text, shape.vision);
  if (!o.markdown.empty()) write_text_file(o.markdown, report.to_markdown());
  if (!o.svg.empty()) write_text_file(o.svg, report.to_svg());
  const std::string json = o.json.empty() ? "" : report.to_json().dump(2) + "\n";
  if (!o.json.empty() && o.json != "-") write_text_file(o.json, json);
  write_stdout(o.json == "-" ? json : report.to_text());
  return kExitOk;
}

}  // namespace

Registration register_bench(CLI::App& app) {
  auto o = std::make_shared<BenchCommandOptions>();
  CLI::App* command = app.add_subcommand("bench", "Validate, then measure speed, memory and the share of the machine's limits");
  set_usage(*command, "qvl bench [MODEL | --shape 2b|4b|8b|32b] [OPTIONS]");
  command->footer(
      "Vision, prefill and decode are validated (a prompt in chunks equals the whole, a decoded token equals the prompt's) and timed "
      "in\nprocesses of their own, whose peak memory is theirs. The machine's limits are measured before, between and after: reading memory, "
      "the best\nof several patterns, and multiplying in int8, bf16 and fp32 with the instructions of the kernels in use. Decoding is compared "
      "with reading\nweights where they lie before and after each run, since memory is not equally fast everywhere and always. A failed "
      "validation ends\nwith exit code 1 and no figures.\n"
      "--shape writes a package of seeded random weights, without a checkpoint: 3.5 GB for 4b with int4 text. --work keeps it and "
      "uses it again.\n"
      "Examples: qvl bench      qvl bench ~/Qwen3-VL-4B-int4 --contexts 800      qvl bench --shape 4b --text int4 --vision int8");
  command->add_option("MODEL", o->model, "Checkpoint or package (default: the small model that ships with qvl)")
      ->type_name("FOLDER");
  command
      ->add_option("--shape", o->shape, "Measure seeded random weights of a released size: 2b, 4b, 8b, 32b")
      ->type_name("SHAPE")
      ->check(CLI::Validator(
          [](std::string& name) {
            for (std::string_view known : model::public_shape_names()) {
              if (CLI::detail::to_lower(name) == known) return std::string();
            }
            return fmt::format("expected 2b, 4b, 8b or 32b, got {}", name);
          },
          ""));
  command->add_option("--picture", o->picture, "The picture (default 1024x768: 3,072 patches)")->type_name("WxH");
  const auto list = [&](const char* name, std::vector<int64_t>& values, const char* help) {
    command->add_option(name, values, help)
        ->delimiter(',')
        ->allow_extra_args(false)
        ->take_all()
        ->check(whole_between(1, 1 << 20))
        ->type_name("N,N,...");
  };
  list("--prompts", o->prompts, "Prompt lengths for prefill (default 512,1024)");
  list("--contexts", o->contexts, "Tokens before those that are decoded (default 16,800,4000)");
  command->add_option("--decode-tokens", o->decode_tokens, "Tokens to decode in one run (default 16)")
      ->check(whole_between(1, 4096));
  command->add_option("--repeats", o->repeats, "Timed runs of everything (default 3)")->check(whole_between(1, 1000));
  command
      ->add_option("--read-buffer-mb", o->read_buffer_mb,
                   "Memory that is read to find the read limit: several times the last cache (default 512 MiB)")
      ->check(whole_between(8, 1 << 16));
  command->add_option("--json", o->json, "Also a JSON object; -: on stdout, instead of the table")->type_name("FILE");
  command->add_option("--md", o->markdown, "Also a Markdown table")->type_name("FILE");
  command->add_option("--svg", o->svg, "Also a chart")->type_name("FILE");
  command->add_option("--work", o->work, "Folder for the package of --shape, kept and used again (default: a temporary one)")
      ->type_name("FOLDER");
  add_engine_options(*command, o->engine);
  // Here the two say the precision of a shape as well.
  const auto words = [&](const char* name, std::vector<std::string>& values, std::vector<std::string> known,
                         const std::string& help) {
    command->remove_option(command->get_option(name));
    command->add_option(name, values, help)
        ->delimiter(',')
        ->allow_extra_args(false)
        ->take_all()
        ->check(CLI::IsMember(std::move(known)))
        ->type_name("WORD")
        ->group("Engine");
  };
  words("--vision", o->vision, {"native", "onnx", "int8", "bf16", "fp16", "fp32"},
        "Engine of the vision stage, native or onnx; with --shape also its weights: int8, bf16 (default), fp16, fp32");
  words("--text", o->text, {"native", "onnx", "int4", "int8", "bf16", "fp16", "fp32"},
        "Engine of the text stages, native or onnx; with --shape also their weights: int4 (default), int8, bf16, "
        "fp16, fp32");
  command->add_option("--stage", o->stage)->check(CLI::IsMember({"vision", "text", "answer"}))->group("");
  return {command, [o] { return bench(*o); }};
}

}  // namespace qvl::apps
