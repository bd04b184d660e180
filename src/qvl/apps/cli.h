// Options and steps that several commands share: which model, which engine, how to generate.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "qvl/apps/terminal.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/engine.h"
#include "qvl/generate/assets.h"
#include "qvl/generate/pipeline.h"
#include "qvl/generate/prefill_chunk.h"
#include "qvl/package/package.h"

namespace qvl::apps {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// The command line cannot be meant: one line on stderr, exit 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A command registers itself under `app`; what it returns is the exit code.
using Command = std::function<int()>;
struct Registration {
  CLI::App* app;
  Command run;
};
Registration register_run(CLI::App& app);
Registration register_chat(CLI::App& app);
Registration register_info(CLI::App& app);
Registration register_trace(CLI::App& app);
Registration register_eval(CLI::App& app);
Registration register_synth(CLI::App& app);
Registration register_export(CLI::App& app);
Registration register_verify(CLI::App& app);
Registration register_compare(CLI::App& app);
Registration register_bench(CLI::App& app);
Registration register_plan(CLI::App& app);
Registration register_serve(CLI::App& app);

// The usage line that help shows instead of CLI11's own.
void set_usage(CLI::App& command, std::string usage);

// "500M", "2G": bytes with a power of 1024 behind them, or nothing.
std::optional<uint64_t> parse_size(std::string_view text);
// ~/.cache/qvl or what XDG_CACHE_HOME makes of it; empty when the user has no home.
std::filesystem::path default_cache_folder();

// Validators that name the allowed range and refuse NaN.
CLI::Validator real_between(double low, double high);
CLI::Validator whole_between(int64_t low, int64_t high);

struct EngineChoice {
  int threads = 0;
  std::string vision = "native";
  std::string text = "native";
  std::string vision_dtype = "auto";
  std::string text_dtype = "auto";
  std::string kv = "auto";
  // ONNX Runtime, for stages that run there.
  std::string onnxruntime;  // library or its folder; empty: looked for
  std::string provider = "cpu";
  std::vector<std::string> provider_options;  // KEY=VALUE
  std::vector<std::string> session_config;    // KEY=VALUE
  std::string vision_graph = "auto";
  bool verbose = false;
};
void add_engine_options(CLI::App& app, EngineChoice& choice);

struct PixelChoice {
  std::optional<int64_t> min_pixels;
  std::optional<int64_t> max_pixels;
  // Throws UsageError when the minimum is above the maximum.
  image::PixelOverrides overrides() const;
};
void add_pixel_options(CLI::App& app, PixelChoice& choice);

// -i and -v in the order of the command line.
struct VisualChoice {
  std::vector<generate::VisualInput> inputs;
  std::optional<double> fps;
  // With fps filled in; throws UsageError for --fps without -v.
  std::vector<generate::VisualInput> resolved() const;
};
void add_visual_options(CLI::App& app, VisualChoice& choice);

// Where what is known about pictures is kept beyond this process.
struct MemoryChoice {
  std::string place;  // a folder, "off", or empty: QVL_IMAGE_MEMORY, else the user's cache folder
  uint64_t max_bytes = generate::kDefaultDiskMemoryBytes;
};
void add_memory_options(CLI::App& app, MemoryChoice& choice);

struct GenerationChoice {
  generate::SamplingOverrides sampling;
  std::optional<uint64_t> seed;
  std::optional<int64_t> max_tokens;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::string system;
  int64_t prefill_chunk = generate::kPrefillChunkTokens;
  std::string speculate = "auto";
  generate::AnswerOptions options(const generate::Assets& assets) const;
};
void add_generation_options(CLI::App& app, GenerationChoice& choice);
// --speculate auto|off|N, and what it means.
CLI::Option* add_speculate_option(CLI::App& app, std::string& choice);
generate::Speculation parse_speculation(const std::string& choice);

// The folder to open: `given`, or the small model that ships with qvl when it is empty. Throws kNotFound
// naming the places that were tried.
std::filesystem::path resolve_model(const std::string& given);
// Throws UsageError when `model` is the name of a picture: "-i" was forgotten.
void refuse_picture_as_model(const std::string& command, const std::string& model);

struct OpenModel {
  std::shared_ptr<const engine::Engine> engine;
  std::shared_ptr<const generate::Assets> assets;  // null unless asked for
  double load_ms = 0;
};
// `folder` is a checkpoint or a package. `text_soon`: the decoder is told to expect a call as soon as it is there, before the assets
// are read. Throws kUnsupported for ONNX stages of a checkpoint or without ONNX Runtime, kCancelled after Ctrl-C.
OpenModel open_model(const std::filesystem::path& folder, const EngineChoice& choice, ProgressBar& bar,
                     bool with_assets = true, bool text_soon = false);

// Null when it is off, or when there is neither a choice nor a home folder. Call it once the model is open: what is
// kept is filed under the libraries that are loaded by then.
std::shared_ptr<generate::DiskMemory> open_disk_memory(const MemoryChoice& choice, const OpenModel& model);
// Whether there is one by that choice that holds anything.
bool memory_is_filled(const MemoryChoice& choice);

// What `choice` says about native stages.
engine::EngineOptions native_options(const EngineChoice& choice, const engine::ProgressFn& progress);

// The stages of a package as `choice` says, in one engine. Throws UsageError for a --vision-dtype, --text-dtype or --kv
// of an ONNX stage, and what the engines throw.
std::shared_ptr<const engine::Engine> open_package(std::shared_ptr<const package::Package> package,
                                                   const EngineChoice& choice,
                                                   const engine::ProgressFn& progress);

// Stages opened without an engine around them, so that what is not asked for costs nothing.
struct OpenStages {
  model::ModelConfig config;
  std::shared_ptr<const engine::VisionStage> vision;  // null unless asked for; embed and decoder likewise
  std::shared_ptr<const engine::EmbedStage> embed;
  std::shared_ptr<const engine::DecoderStage> decoder;
  std::shared_ptr<const engine::Engine> engine;  // when both were asked for
  std::string vision_name, text_name;            // "native bf16"
  std::string isa;
  DType kv_dtype = DType::kF32;  // of the elements of a KV cache
  std::shared_ptr<ThreadPool> pool;
};
// The selected stages of a checkpoint or package. Throws what open_model() and open_package() throw.
OpenStages open_stages(const std::filesystem::path& folder, const EngineChoice& choice,
                       const engine::StageSelection& selection);
// Throws kUnsupported when the choice has an ONNX stage: `folder` is a checkpoint.
void refuse_onnx_of_checkpoint(const std::filesystem::path& folder, const EngineChoice& choice);

// Routes the library's warnings (and with `verbose` its decisions) to stderr.
void log_to_stderr(bool verbose);

// A bar for the phases of an answer.
std::function<void(generate::Phase, int64_t, int64_t)> phase_progress(ProgressBar& bar);

// What --verbose tells after an answer.
void print_statistics(const generate::Answer& answer, const engine::EngineInfo& engine, double load_ms);

}  // namespace qvl::apps
