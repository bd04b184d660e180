// `qvl verify`: does a package compute what the checkpoint computes? The report goes into the package.

#include <sstream>

#include "qvl/apps/cli.h"
#include "qvl/apps/verification.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"

namespace qvl::apps {
namespace {

struct VerifyOptions {
  std::string package;
  std::string checkpoint;
  std::string sizes;
  std::string engines;
  std::string onnxruntime;
  std::string provider = "cpu";
  int64_t max_tokens = 16;
  int threads = 0;
  bool no_store = false;
  bool json = false;
  bool verbose = false;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  std::stringstream in(list);
  for (std::string part; std::getline(in, part, ',');) out.push_back(part);
  return out;
}

generate::ParityCaseOptions case_options(const VerifyOptions& o) {
  generate::ParityCaseOptions out;
  out.greedy_tokens = o.max_tokens;
  if (o.sizes.empty()) return out;
  out.sizes.clear();
  for (const std::string& size : split(o.sizes)) {
    try {
      out.sizes.push_back(generate::parse_picture_size(size, "--sizes"));
    } catch (const Error& e) {
      throw UsageError(e.what());
    }
  }
  if (package::is_package_folder(o.package) && package::Manifest::load(o.package).static_sizes)
    throw UsageError("--sizes: expected none for a package of fixed shapes (--static), got some");
  return out;
}

VerificationOptions verification_options(const VerifyOptions& o, ProgressBar& bar) {
  VerificationOptions out;
  out.package = o.package;
  out.checkpoint = o.checkpoint;
  if (!o.engines.empty()) {
    out.native = out.onnx = false;
    for (const std::string& name : split(o.engines)) {
      if (name != "native" && name != "onnx")
        throw UsageError(fmt::format("--engines: expected native, onnx or both, got {}", name));
      (name == "native" ? out.native : out.onnx) = true;
    }
  }
  out.onnx_may_be_absent = o.engines.empty() && o.onnxruntime.empty();
  out.onnxruntime = o.onnxruntime;
  out.provider = o.provider;
  out.threads = o.threads;
  out.cases = case_options(o);
  out.progress = [&bar](std::string_view label, int64_t done, int64_t total, std::string_view unit) {
    bar.update(label, done, total, unit);
    return !interrupt_flag();
  };
  return out;
}

int verify(const VerifyOptions& o) {
  log_to_stderr(o.verbose);
  ProgressBar bar;
  VerificationOptions options = verification_options(o, bar);
  catch_interrupts();
  Verification verification(std::move(options));
  verification.run();
  bar.clear();
  write_stdout(o.json ? verification.to_json(true).dump(2) + "\n" : verification.to_text());
  if (!o.no_store) verification.store();
  if (verification.passed()) return kExitOk;
  fmt::print(stderr, "qvl: [{}] parity: {}\n", o.package, verification.fault());
  return kExitFailed;
}

}  // namespace

Registration register_verify(CLI::App& app) {
  auto o = std::make_shared<VerifyOptions>();
  CLI::App* command =
      app.add_subcommand("verify", "Prove that a package computes what its checkpoint computes");
  set_usage(*command, "qvl verify PACKAGE --against CHECKPOINT [OPTIONS]");
  command->footer(
      "Hashes of all files, every stored weight against the checkpoint's, then text, pictures and a video "
      "through the native engine\n"
      "in float32 on the checkpoint (the reference) and through each engine on the package: every tensor "
      "that both name, the\n"
      "distributions of all logits, step by step after the prompt too, and the greedy tokens. Limits follow from the stored precision: weights "
      "that are stored exactly\n"
      "must agree to 3e-5 (features) and 1e-4 (logits) of the largest value; coarser ones by cosine, KL "
      "divergence and first\n"
      "choices. The report is stored in the package (qvl info shows it). Exit code 1 when anything differs.");
  command->add_option("PACKAGE", o->package, "Folder that qvl export made")->required()->type_name("FOLDER");
  command->add_option("--against", o->checkpoint, "The checkpoint it was made from")
      ->required()
      ->type_name("CHECKPOINT");
  command->add_option("--sizes", o->sizes, "Pictures to compare with (default 64x64,256x192,320x480)")
      ->type_name("WxH,WxH,...");
  command
      ->add_option("--engines", o->engines,
                   "native, onnx or both (default: both, onnx if ONNX Runtime is there)")
      ->type_name("LIST");
  command->add_option("--max-tokens", o->max_tokens, "Greedy tokens after each prompt (default 16)")
      ->check(whole_between(0, 4096));
  command
      ->add_option("--onnxruntime", o->onnxruntime,
                   "The library libonnxruntime.so.1, or its folder (default: looked for)")
      ->type_name("PATH");
  command->add_option("--ep", o->provider, "Execution provider of ONNX Runtime (default cpu)")
      ->type_name("NAME");
  command->add_option("--threads", o->threads, "Threads (default: all processors available)")
      ->check(whole_between(1, 1024));
  command->add_flag("--no-store", o->no_store, "Leave the package as it is");
  command->add_flag("--json", o->json, "The whole report as one JSON object");
  command->add_flag("--verbose", o->verbose, "Decisions on stderr");
  return {command, [o] { return verify(*o); }};
}

}  // namespace qvl::apps
