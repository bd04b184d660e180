// `qvl compare`: the ways to run one checkpoint, measured there and then, each in processes of its own.

#include "qvl/apps/child_process.h"
#include "qvl/apps/cli.h"
#include "qvl/apps/compare_report.h"
#include "qvl/apps/compare_stage.h"
#include "qvl/apps/report_text.h"
#include "qvl/apps/work_folder.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/checkpoint/checkpoint.h"
#include "qvl/checkpoint/safetensors.h"
#include "qvl/engine/ort/open.h"
#include "qvl/generate/parity.h"
#include "qvl/kernels/ops.h"

namespace qvl::apps {
namespace {

namespace fs = std::filesystem;

struct CompareOptions {
  std::string checkpoint;
  std::string size = "448x448";
  int64_t tokens = 32;
  std::string markdown;
  std::string svg;
  std::string work;
  std::string onnxruntime;
  int threads = 0;
  bool json = false;
  StageOptions stage;  // the hidden mode of the children
};

enum class Files { kCheckpoint, kFused, kPlain, kStatic };

struct Way {
  const char* name;
  const char* detail;
  Files files;
  const char* vision;
  const char* text;
};

constexpr Way kWays[] = {
    {"full precision native", "the checkpoint's own weights and types, qvl's kernels", Files::kCheckpoint,
     "native", "native"},
    {"native vision + ONNX INT4 text",
     "the hybrid: vision by qvl (bf16), text by ONNX Runtime (INT4, fused operators)", Files::kFused,
     "native", "onnx"},
    {"ONNX dynamic",
     "ONNX Runtime, any sizes, standard operators only (qvl export --plain; vision bf16, text INT4)",
     Files::kPlain, "onnx", "onnx"},
    {"ONNX static",
     "ONNX Runtime, fixed shapes (qvl export --static; vision bf16, text INT4): every call costs a full one",
     Files::kStatic, "onnx", "onnx"},
    {"ONNX optimised", "ONNX Runtime, any sizes, fused operators (qvl export; vision bf16, text INT4)",
     Files::kFused, "onnx", "onnx"},
    {"native INT4", "qvl's kernels on the same package (vision bf16, text INT4)", Files::kFused, "native",
     "native"},
};

// Tokens of one call of the fixed decoder: a decoding step pays for all of them.
constexpr int64_t kStaticSequence = 16;

std::vector<generate::TracedTensor> load_logits(const fs::path& path) {
  const auto file = checkpoint::SafetensorsFile::open(path);
  std::vector<generate::TracedTensor> out;
  for (const char* name : {"logits", "greedy_tokens"}) {
    const checkpoint::TensorView& view = file.get(name);
    Tensor t(view.dtype, view.shape);
    std::copy(view.bytes.begin(), view.bytes.end(), static_cast<std::byte*>(t.data()));
    out.push_back({name, std::move(t)});
  }
  return out;
}

class Comparer {
 public:
  Comparer(const CompareOptions& o, ProgressBar& bar) : o_(o), bar_(bar), work_(o.work, "compare") {}

  Comparison run() {
    // One reference, and for each way four measurements; three exports.
    total_ = 1 + 4 * static_cast<int64_t>(std::size(kWays)) + 3;
    Comparison out;
    // Reports travel: the folder's name, not where it stands.
    std::error_code ec;
    const fs::path folder = fs::weakly_canonical(o_.checkpoint, ec);
    out.checkpoint = ec || folder.filename().empty() ? o_.checkpoint : folder.filename().string();
    out.reference = "the checkpoint in float32 by qvl's own kernels";
    if (const std::string error = logits(o_.checkpoint, "native", "native", "fp32", reference_file());
        !error.empty()) {
      fail(ErrorCode::kUnsupported, o_.checkpoint, "the reference cannot run: " + error);
    }
    for (const Way& way : kWays) out.ways.push_back(measure(way));
    std::string onnx;
    try {
      onnx = "ONNX Runtime " + engine::ort::library_info(o_.onnxruntime).version;
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kUnsupported) throw;
      onnx = "no ONNX Runtime";
    }
    out.machine =
        fmt::format("qvl {}, {}, {} threads, {}", QVL_VERSION, kernels::table_name(kernels::active_table()),
                    o_.threads > 0 ? o_.threads : available_processors(), onnx);
    out.prompt = fmt::format("One picture of {}: {} patches, {} prompt tokens; {} tokens decoded", o_.size,
                             patches_, prompt_tokens_, o_.tokens);
    bar_.clear();
    return out;
  }

 private:
  fs::path reference_file() const { return work_.path() / "reference.safetensors"; }

  ChildResult child(const std::vector<std::string>& arguments) {
    bar_.update("comparing", done_, total_, "runs");
    if (interrupt_flag()) fail(ErrorCode::kCancelled, "compare", "cancelled");
    ChildResult result = run_self(arguments, work_.path());
    ++done_;
    if (interrupt_flag() || result.exit_code == kExitInterrupted)
      fail(ErrorCode::kCancelled, "compare", "cancelled");
    return result;
  }

  std::vector<std::string> stage_arguments(const std::string& what, const std::string& model,
                                           const std::string& vision, const std::string& text,
                                           const std::string& dtype) const {
    std::vector<std::string> out = {"compare",      model,
                                    "--stage",      what,
                                    "--vision",     vision,
                                    "--text",       text,
                                    "--dtype",      dtype,
                                    "--shape-size", o_.size,
                                    "--max-tokens", std::to_string(o_.tokens)};
    if (o_.threads > 0) out.insert(out.end(), {"--threads", std::to_string(o_.threads)});
    if (!o_.onnxruntime.empty()) out.insert(out.end(), {"--onnxruntime", o_.onnxruntime});
    return out;
  }

  // Returns the error, empty when it worked.
  std::string logits(const std::string& model, const std::string& vision, const std::string& text,
                     const std::string& dtype, const fs::path& file) {
    std::vector<std::string> arguments = stage_arguments("logits", model, vision, text, dtype);
    arguments.insert(arguments.end(), {"--stage-out", file.string()});
    const ChildResult result = child(arguments);
    return result.exit_code == kExitOk ? "" : child_error(result);
  }

  // The folder of a package, exported at its first use; `error` says why there is none.
  fs::path package(Files files, std::string& error) {
    const char* const names[] = {"", "fused", "plain", "static"};
    const fs::path folder = work_.path() / names[static_cast<int>(files)];
    if (const auto known = exported_.find(files); known != exported_.end()) {
      error = known->second;
      return folder;
    }
    std::vector<std::string> arguments = {"export",   o_.checkpoint, folder.string(), "--replace",
                                          "--verify", "none"};  // its logits are measured here
    if (files == Files::kPlain) arguments.push_back("--plain");
    if (files == Files::kStatic) {
      // Room for the prompt and the answer, in whole calls.
      const int64_t context = (prompt_tokens_ + o_.tokens + 2 * kStaticSequence + 255) / 256 * 256;
      arguments.insert(arguments.end(),
                       {"--static", o_.size, "--static-sequence", std::to_string(kStaticSequence),
                        "--static-context", std::to_string(context)});
    }
    if (o_.threads > 0) arguments.insert(arguments.end(), {"--threads", std::to_string(o_.threads)});
    const ChildResult result = child(arguments);
    error = exported_[files] = result.exit_code == kExitOk ? "" : child_error(result);
    return folder;
  }

  ComparedWay measure(const Way& way) {
    ComparedWay out{.name = way.name, .detail = way.detail};
    fs::path model = o_.checkpoint;
    if (way.files != Files::kCheckpoint) model = package(way.files, out.error);
    if (!out.error.empty()) {
      done_ += 4;
      return out;
    }
    const fs::path file = work_.path() / "logits.safetensors";
    out.error = logits(model.string(), way.vision, way.text, "auto", file);
    if (out.error.empty()) compare_logits(file, out);
    for (const char* what : {"vision", "text", "both"}) {
      const ChildResult result = child(stage_arguments(what, model.string(), way.vision, way.text, "auto"));
      if (result.exit_code != kExitOk) {
        if (out.error.empty()) out.error = child_error(result);
        continue;
      }
      take(what, parse_json(result.out, "measurement"), out);
    }
    return out;
  }

  void take(const std::string& what, const Json& found, ComparedWay& out) {
    const double peak_mb = found["peak_bytes"].get<double>() * 1e-6;
    if (what == "vision") {
      out.vision_mb = peak_mb;
      out.vision_patches_per_s = found["vision_patches_per_s"].get<double>();
      patches_ = found["patches"].get<int64_t>();
    } else if (what == "text") {
      out.text_mb = peak_mb;
      out.prefill_tokens_per_s = found["prefill_tokens_per_s"].get<double>();
      out.decode_tokens_per_s = found["decode_tokens_per_s"].get<double>();
      prompt_tokens_ = found["prompt_tokens"].get<int64_t>();
    } else {
      out.total_mb = peak_mb;
    }
  }

  void compare_logits(const fs::path& file, ComparedWay& out) const {
    const generate::Fidelities any{generate::Fidelity::kInt4, generate::Fidelity::kInt4,
                                   generate::Fidelity::kInt4};
    const generate::CaseParity parity =
        generate::compare_traces("logits", load_logits(reference_file()), load_logits(file), any);
    for (const generate::TensorParity& t : parity.tensors) {
      out.logits_error = t.max_error;
      out.logits_relative_error = t.relative_error;
    }
    if (parity.logits.positions == 0) return;
    out.mean_kl_nats = parity.logits.mean_kl_nats;
    out.top1 = static_cast<double>(parity.logits.top1_equal) / static_cast<double>(parity.logits.positions);
  }

  const CompareOptions& o_;
  ProgressBar& bar_;
  WorkFolder work_;
  std::map<Files, std::string> exported_;
  int64_t done_ = 0, total_ = 0;
  int64_t patches_ = 0, prompt_tokens_ = 0;
};

int run_stage(const CompareOptions& o) {
  end_with_parent();
  StageOptions stage = o.stage;
  stage.model = o.checkpoint;
  stage.size = generate::parse_picture_size(o.size, "--shape-size");
  stage.tokens = o.tokens;
  stage.threads = o.threads;
  stage.onnxruntime = o.onnxruntime;
  write_stdout(measure_stage(stage).dump() + "\n");
  return kExitOk;
}

int compare(const CompareOptions& o) {
  try {
    generate::parse_picture_size(o.size, "--shape-size");
  } catch (const Error& e) {
    throw UsageError(e.what());
  }
  log_to_stderr(false);
  if (!o.stage.what.empty()) return run_stage(o);
  catch_interrupts();
  std::error_code ec;
  if (!checkpoint::is_checkpoint_folder(o.checkpoint)) {
    fail(fs::exists(o.checkpoint, ec) ? ErrorCode::kInvalidArgument : ErrorCode::kNotFound, o.checkpoint,
         "model", "a checkpoint folder", fs::exists(o.checkpoint, ec) ? "something else" : "nothing there");
  }
  ProgressBar bar;
  const Comparison comparison = Comparer(o, bar).run();
  if (!o.markdown.empty()) write_text_file(o.markdown, comparison.to_markdown());
  if (!o.svg.empty()) write_text_file(o.svg, comparison.to_svg());
  write_stdout(o.json ? comparison.to_json().dump(2) + "\n" : comparison.to_text());
  return kExitOk;
}

}  // namespace

Registration register_compare(CLI::App& app) {
  auto o = std::make_shared<CompareOptions>();
  CLI::App* command =
      app.add_subcommand("compare", "Measure the ways to run a checkpoint: native, ONNX, mixes, INT4");
  set_usage(*command, "qvl compare CHECKPOINT [OPTIONS]");
  command->footer(
      "Exports what it needs into a temporary folder (--work names one; a 4B model needs about 13 GB there), "
      "then measures each\n"
      "way in processes of its own: full precision native; native vision with ONNX INT4 text; ONNX with "
      "standard operators, with\n"
      "fixed shapes, with fused operators; native INT4. Speeds, peak memory of vision, of text and of both, "
      "and the largest error of\n"
      "the logits against the checkpoint in float32. A way that does not work says why.");
  command->add_option("CHECKPOINT", o->checkpoint, "Hugging Face checkpoint folder")
      ->required()
      ->type_name("FOLDER");
  command->add_option("--shape-size", o->size, "The picture (default 448x448)")->type_name("WxH");
  command->add_option("--max-tokens", o->tokens, "Tokens to decode (default 32)")
      ->check(whole_between(2, 4096));
  command->add_option("--md", o->markdown, "Also a Markdown table")->type_name("FILE");
  command->add_option("--svg", o->svg, "Also a chart")->type_name("FILE");
  command
      ->add_option("--work", o->work, "Folder for the packages, kept afterwards (default: a temporary one)")
      ->type_name("FOLDER");
  command
      ->add_option("--onnxruntime", o->onnxruntime,
                   "The library libonnxruntime.so.1, or its folder (default: looked for)")
      ->type_name("PATH");
  command->add_option("--threads", o->threads, "Threads (default: all processors available)")
      ->check(whole_between(1, 1024));
  command->add_flag("--json", o->json, "One JSON object");
  // What the children are told; not for users.
  command->add_option("--stage", o->stage.what)
      ->check(CLI::IsMember({"vision", "text", "both", "logits"}))
      ->group("");
  command->add_option("--vision", o->stage.vision)->check(CLI::IsMember({"native", "onnx"}))->group("");
  command->add_option("--text", o->stage.text)->check(CLI::IsMember({"native", "onnx"}))->group("");
  command->add_option("--dtype", o->stage.dtype)->check(CLI::IsMember({"auto", "fp32", "bf16"}))->group("");
  command->add_option("--stage-out", o->stage.out)->group("");
  return {command, [o] { return compare(*o); }};
}

}  // namespace qvl::apps
