// `qvl export`: a checkpoint becomes a package of ONNX graphs.

#include <regex>
#include <set>

#include "qvl/apps/cli.h"
#include "qvl/apps/verification.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/engine/native/open.h"
#include "qvl/export/exporter.h"
#include "qvl/generate/calibrate.h"
#include "qvl/generate/vision_gate.h"
#include "qvl/kernels/ops.h"

namespace qvl::apps {
namespace {

struct ExportCommandOptions {
  std::string checkpoint;
  std::string out;
  std::string vision = "auto";
  std::string text = "int4";
  std::string head;
  std::string embedding;
  int64_t block = 32;
  bool zero_points = false;
  std::string recipe = "balanced";
  std::string layout = "qvl";
  bool plain = false;
  std::string static_size;
  int64_t static_sequence = 128;
  int64_t static_context = 2048;
  int64_t opset = 21;
  int accuracy_level = 4;
  std::string shortlist = "auto";
  bool replace = false;
  std::string calibrate;
  int64_t calibrate_tokens = 32;
  std::string verify = "native";
  int threads = 0;
};

exporting::StaticImage parse_static_size(const std::string& text) {
  std::smatch match;
  if (!std::regex_match(text, match, std::regex(R"((\d{1,6})[xX](\d{1,6}))"))) {
    throw UsageError(fmt::format("--static: expected WIDTHxHEIGHT in pixels such as 1024x768, got {}", text));
  }
  return {std::stoll(match[1]), std::stoll(match[2])};
}

exporting::ExportOptions export_options(const ExportCommandOptions& o) {
  exporting::ExportOptions options;
  options.checkpoint = o.checkpoint;
  options.out = o.out;
  options.replace = o.replace;
  options.precision.vision = exporting::parse_stage_precision(o.vision == "auto" ? "bf16" : o.vision, "--vision");
  options.precision.text = exporting::parse_stage_precision(o.text, "--text");
  if (!o.head.empty()) options.precision.head = exporting::parse_stage_precision(o.head, "--head");
  if (!o.embedding.empty())
    options.precision.embedding = exporting::parse_stage_precision(o.embedding, "--embedding");
  options.precision.block = o.block;
  options.precision.zero_points = o.zero_points;
  options.recipe = quant::parse_recipe(o.recipe);
  options.layout = o.layout == "genai" ? exporting::Layout::kGenai : exporting::Layout::kQvl;
  options.plain = o.plain;
  options.opset = o.opset;
  options.accuracy_level = o.accuracy_level;
  if (o.shortlist != "auto") options.head_shortlist = o.shortlist == "on";
  if (!o.static_size.empty()) {
    options.static_image = parse_static_size(o.static_size);
    options.static_sequence = o.static_sequence;
    options.static_context = o.static_context;
  }
  options.threads = o.threads;
  options.version = QVL_VERSION;
  return options;
}

exporting::Importance calibrated(const ExportCommandOptions& o, ProgressBar& bar) {
  const std::vector<generate::EvalQuestion> samples = generate::calibration_samples(o.calibrate);
  EngineChoice choice;
  choice.threads = o.threads;
  const OpenModel model = open_model(o.checkpoint, choice, bar);
  return generate::calibrate(
      model.engine, model.assets, samples, o.calibrate_tokens,
      [&bar](int64_t done, int64_t total) {
        bar.update("calibrating", done, total, "samples");
        return !interrupt_flag();
      },
      &interrupt_flag());
}

// Other runtimes unpack 8-bit weights rather than multiply them: there is nothing to win.
bool decides_vision(const ExportCommandOptions& o) {
  return o.vision == "auto" && !o.plain && o.layout == "qvl";
}

// What features are compared on: pictures of the samples if there are any, else drawn ones.
std::vector<image::RgbImage> gate_pictures(const ExportCommandOptions& o) {
  constexpr size_t kMostPictures = 8;
  std::vector<image::RgbImage> pictures;
  if (!o.calibrate.empty()) {
    std::set<std::filesystem::path> seen;
    for (const generate::EvalQuestion& sample : generate::calibration_samples(o.calibrate)) {
      for (const std::filesystem::path& path : sample.images) {
        if (pictures.size() < kMostPictures && seen.insert(path).second) pictures.push_back(image::load_image(path));
      }
    }
  }
  return pictures.empty() ? generate::vision_gate_pictures() : pictures;
}

// How an 8-bit vision stage may compute.
struct VisionArithmetic {
  int activation_bits;
  bool int8_attention;
};

std::vector<generate::VisionGate> vision_gates(const ExportCommandOptions& o, const std::filesystem::path& folder,
                                               std::span<const VisionArithmetic> ways, ProgressBar& bar) {
  const auto package = std::make_shared<const package::Package>(package::Package::open(folder));
  const auto source = std::make_shared<const source::Source>(source::Source::open(o.checkpoint));
  const auto pool = std::make_shared<ThreadPool>(resolve_threads(o.threads, "export"));
  engine::EngineOptions options;
  options.threads = o.threads;
  std::vector<engine::OpenedStages> opened;
  std::vector<const engine::VisionStage*> candidates;
  for (const VisionArithmetic& way : ways) {
    options.vision_activation_bits = way.activation_bits;
    options.vision_int8_attention = way.int8_attention;
    opened.push_back(engine::native::open_package(package, options, {.vision = true, .text = false}, pool));
    candidates.push_back(opened.back().vision.get());
  }
  options.vision_precision = engine::Precision::kF32;
  const std::shared_ptr<const engine::Engine> reference = engine::native::open_checkpoint(source, options);
  return generate::measure_vision_gates(
      reference->vision(), candidates, image::ImageProcessorConfig::load(folder), gate_pictures(o), pool.get(),
      [&](int64_t done, int64_t total) {
        package->drop_all();
        source->checkpoint.drop_all();
        bar.update("comparing 8-bit vision", done, total, "pictures");
        return !interrupt_flag();
      });
}

// The fewest bits of activations with which the 8-bit vision stage of the folder passes the gate, in `manifest` and, with
// the figures, in its verdict; 8 where none does. The same for attention in 8 bits, if this processor has kernels for it.
void decide_arithmetic(const ExportCommandOptions& o, const std::filesystem::path& folder, package::Manifest& manifest,
                       ProgressBar& bar) {
  std::vector<VisionArithmetic> ways = {{7, false}, {8, false}};
  if (kernels::has_int8_attention(kernels::active_table())) ways.insert(ways.end(), {{7, true}, {8, true}});
  const std::vector<generate::VisionGate> gates = vision_gates(o, folder, ways, bar);
  Json plain = Json::object(), attention = Json::object();
  for (size_t i = ways.size(); i-- > 0;) {
    const auto [bits, int8_attention] = ways[i];
    (int8_attention ? attention : plain)[std::to_string(bits)] = gates[i].cosine;
    if (int8_attention) {
      if (gates[i].passed()) manifest.vision.int8_attention = bits;
    } else if (gates[i].passed() || bits == 8) {
      manifest.vision.activation_bits = bits;
      manifest.vision.verdict = gates[i].to_json();
    }
  }
  manifest.vision.verdict["cosines_by_activation_bits"] = plain;
  if (!attention.empty()) manifest.vision.verdict["cosines_with_int8_attention"] = attention;
}

// Ends an export whose 8-bit vision stage is not good enough.
struct VisionRefused {};

// The report of the finished folder; throws kMismatch when the package is not what it should be.
Json verified(const ExportCommandOptions& o, const std::filesystem::path& folder, ProgressBar& bar) {
  const bool full = o.verify == "full";
  VerificationOptions options;
  options.package = folder;
  options.checkpoint = o.checkpoint;
  options.hashes = full;
  options.native = o.verify != "weights";
  options.onnx = full;
  options.threads = o.threads;
  if (!full) options.cases = quick_cases();
  options.give_back_pages = true;
  options.progress = [&bar](std::string_view label, int64_t done, int64_t total, std::string_view unit) {
    bar.update(label, done, total, unit);
    return !interrupt_flag();
  };
  Verification verification(std::move(options));
  verification.run();
  if (!verification.passed()) {
    fail(ErrorCode::kMismatch, o.out,
         fmt::format("the package does not compute what the checkpoint computes, nothing was written: {} "
                     "(other precisions or --recipe best may; --verify none writes it all the same)",
                     verification.fault()));
  }
  return verification.to_json(false);
}

void print_result(const ExportCommandOptions& o, const exporting::ExportResult& result, double seconds,
                  double verify_seconds) {
  const double read = static_cast<double>(result.checkpoint_bytes),
               written = static_cast<double>(result.package_bytes);
  fmt::print(stderr, "qvl: {:.2f} GB became {:.2f} GB in {:.1f} s: {}\n", read * 1e-9, written * 1e-9,
             seconds, result.folder.string());
  const package::StageEntry& vision = result.manifest.vision;
  fmt::print(stderr, "qvl: vision {}", vision.precision);
  if (!vision.verdict.is_null()) {
    fmt::print(stderr, " (8-bit features have a cosine of {:.5f}{}{}, {} is the limit)", vision.verdict["cosine"].get<double>(),
               vision.activation_bits == 7 ? " with activations in 7 bits" : "",
               vision.int8_attention == 0
                   ? std::string()
                   : fmt::format(", {:.5f} with attention in 8 bits too",
                                 vision.verdict["cosines_with_int8_attention"][std::to_string(vision.int8_attention)].get<double>()),
               generate::kVisionGateCosine);
  }
  fmt::print(stderr, ", text {}", result.manifest.text.precision);
  if (!result.manifest.quantisation.is_null()) {
    const Json& all = result.manifest.quantisation["all"];
    fmt::print(stderr, " ({} recipe, {:.2f} bits a quantised weight, relative error {:.4f})", o.recipe,
               all["bits_per_weight"].get<double>(), all["relative_rms"].get<double>());
  }
  if (!result.manifest.parity.is_null()) {
    fmt::print(stderr, "\nqvl: verified against the checkpoint in {:.1f} s ({})", verify_seconds,
               o.verify == "weights"  ? "weights"
               : o.verify == "native" ? "weights and the native engine on a few prompts"
                                      : "hashes, weights, all engines");
  }
  fmt::print(stderr, "\nqvl: try it: qvl run {} -i PICTURE \"What is this?\"   what is inside: qvl info {}\n",
             result.folder.string(), result.folder.string());
}

// With 8-bit vision where nobody asked for another one and its features are good enough.
exporting::ExportResult exported(const ExportCommandOptions& o, exporting::ExportOptions options) {
  if (decides_vision(o)) {
    const exporting::StagePrecision otherwise = options.precision.vision;
    options.precision.vision = exporting::StagePrecision::kInt8;
    try {
      return exporting::export_package(options);
    } catch (const VisionRefused&) {
      options.precision.vision = otherwise;
    }
  }
  return exporting::export_package(options);
}

int run_export(const ExportCommandOptions& o) {
  log_to_stderr(false);
  exporting::ExportOptions options = export_options(o);
  const bool rounds_text = o.text == "int4" || o.text == "int8";
  if (!o.calibrate.empty() && (o.recipe == "plain" || !rounds_text)) {
    throw UsageError(fmt::format(
        "--calibrate: expected --recipe balanced or best and --text int4 or int8 beside it, got {} "
        "and {} (nothing there looks at samples)",
        o.recipe, o.text));
  }
  exporting::check_output(options.out, options.replace);  // before minutes of calibration

  catch_interrupts();
  ProgressBar bar;
  options.progress = [&bar](std::string_view phase, int64_t done, int64_t total) {
    bar.update(phase, done, total, "");
    return !interrupt_flag();
  };
  double verify_seconds = 0;
  Json verdict;
  options.verify = [&](const std::filesystem::path& folder, package::Manifest& manifest) {
    const auto start = Clock::now();
    if (decides_vision(o) && verdict.is_null()) {
      decide_arithmetic(o, folder, manifest, bar);
      verdict = manifest.vision.verdict;
      if (!verdict["passed"].get<bool>()) throw VisionRefused();
      manifest.save(folder);  // what is verified computes with these bits
    }
    manifest.vision.verdict = verdict;
    if (o.verify != "none") manifest.parity = verified(o, folder, bar);
    verify_seconds = seconds_since(start);
  };
  try {
    if (!o.calibrate.empty()) options.importance = calibrated(o, bar);
    const auto start = Clock::now();
    const exporting::ExportResult result = exported(o, options);
    bar.clear();
    print_result(o, result, seconds_since(start) - verify_seconds, verify_seconds);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kCancelled || !interrupt_flag()) throw;
    bar.clear();
    fmt::print(stderr, "qvl: [{}] interrupted; {}\n", o.out,
               o.replace ? "nothing was changed" : "nothing was written");
    return kExitInterrupted;
  }
  return kExitOk;
}

}  // namespace

Registration register_export(CLI::App& app) {
  auto o = std::make_shared<ExportCommandOptions>();
  CLI::App* command = app.add_subcommand("export", "Turn a checkpoint into a package of ONNX graphs");
  set_usage(*command, "qvl export CHECKPOINT OUT [OPTIONS]");
  command->add_option("CHECKPOINT", o->checkpoint, "Hugging Face checkpoint folder")
      ->required()
      ->type_name("FOLDER");
  command->add_option("OUT", o->out, "Folder to create")->required()->type_name("FOLDER");
  command
      ->add_option("--vision", o->vision,
                   "Vision weights: fp32, fp16, bf16, int8, or auto (default): int8, the fastest, if its features of "
                   "pictures (those of --calibrate, else drawn ones) keep a cosine of 0.999 with float32's, else bf16; "
                   "bf16 with --plain and --layout genai. With auto, activations are rounded to 7 bits, which is faster on "
                   "AVX2, if that passes too, else to 8. The verdict is stored in the package")
      ->check(CLI::IsMember({"auto", "fp32", "fp16", "bf16", "int8"}))
      ->type_name("PRECISION");
  command->add_option("--text", o->text, "Decoder weights: fp32, fp16, bf16, int8 or int4 (default int4)")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16", "int8", "int4"}))
      ->type_name("PRECISION");
  command->add_option("--head", o->head, "Output head (default: int8 with int4 text, else as the text)")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16", "int8", "int4"}))
      ->type_name("PRECISION");
  command->add_option("--shortlist", o->shortlist,
                      "A copy of an 8-bit head in 2 + 2 bits, 7 % of a 4B package, that qvl's own engine reads to find the few rows of the "
                      "head that a token needs: answers stay the same and come 10 % faster. auto (default: with large vocabularies), "
                      "on, off")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->type_name("WHEN");
  command->add_option("--embedding", o->embedding, "Token embedding (default: as the head)")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16", "int8", "int4"}))
      ->type_name("PRECISION");
  command->add_option("--block", o->block, "Weights that share a scale (default 32)")
      ->check(CLI::IsMember({16, 32, 64, 128, 256}))
      ->type_name("N");
  command->add_flag("--zero-points", o->zero_points, "Asymmetric blocks");
  command
      ->add_option(
          "--recipe", o->recipe,
          "plain: round everything; balanced (default): search scales, keep sensitive matrices at 8 bits; "
          "best: more of them")
      ->check(CLI::IsMember({"plain", "balanced", "best"}))
      ->type_name("RECIPE");
  command->add_option("--layout", o->layout, "qvl (default), or genai: a folder that onnxruntime-genai loads")
      ->check(CLI::IsMember({"qvl", "genai"}))
      ->type_name("LAYOUT");
  command->add_flag("--plain", o->plain, "Standard ONNX operators only, for other runtimes");
  command
      ->add_option("--static", o->static_size, "Fixed shapes everywhere, for pictures of WIDTHxHEIGHT pixels")
      ->type_name("WxH");
  command
      ->add_option("--static-sequence", o->static_sequence,
                   "With --static: tokens of one decoder call (default 128)")
      ->check(whole_between(1, 1 << 20));
  command
      ->add_option("--static-context", o->static_context, "With --static: length of the cache (default 2048)")
      ->check(whole_between(1, 1 << 24));
  command->add_option("--opset", o->opset, "Version of the standard operators (default 21)")
      ->check(whole_between(17, 24));
  command
      ->add_option("--accuracy-level", o->accuracy_level,
                   "Of MatMulNBits: 4 (default) takes activations in int8, 0 or 1 in float32")
      ->check(CLI::IsMember({0, 1, 4}));
  command
      ->add_option("--calibrate", o->calibrate,
                   "Folder of sample pictures, or of pictures and questions as for qvl eval: weights that "
                   "matter there are "
                   "rounded with more care")
      ->type_name("FOLDER");
  command->add_option("--calibrate-tokens", o->calibrate_tokens, "Longest answer to a sample (default 32)")
      ->check(whole_between(1, 1 << 16));
  command
      ->add_option("--verify", o->verify,
                   "What is proved before the package gets its name: native (default): every stored weight "
                   "against the checkpoint's, then a text, a picture and two pictures through the native "
                   "engine on both; weights: only these; full: all that qvl verify does (needs the memory of "
                   "its engines); none. The report is stored in the package; a package that fails is not "
                   "written")
      ->check(CLI::IsMember({"none", "weights", "native", "full"}))
      ->type_name("LEVEL");
  command->add_flag("--replace", o->replace, "Replace the package at OUT, in one step at the end");
  command->add_option("--threads", o->threads, "Threads (default: all processors available)")
      ->check(whole_between(1, 1024));
  return {command, [o] { return run_export(*o); }};
}

}  // namespace qvl::apps
