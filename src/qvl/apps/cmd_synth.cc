// `qvl synth`: a checkpoint of a released size with seeded random weights, for work on speed.

#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/model/public_shapes.h"
#include "qvl/synth/synth.h"

namespace qvl::apps {
namespace {

struct SynthCommandOptions {
  std::string shape;
  std::string out;
  std::string tokenizer;
  uint64_t seed = 0;
  int threads = 0;
  double shard_gb = 5;
};

std::string shape_names() {
  std::string names;
  for (std::string_view name : model::public_shape_names())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  return names;
}

int synth(const SynthCommandOptions& o) {
  log_to_stderr(false);
  catch_interrupts();
  ProgressBar bar;
  synth::SynthOptions options;
  options.shape = o.shape;
  options.out_folder = o.out;
  options.seed = o.seed;
  options.threads = o.threads;
  options.max_shard_bytes = static_cast<uint64_t>(o.shard_gb * 1e9);
  if (!o.tokenizer.empty()) options.tokenizer_folder = o.tokenizer;
  options.progress = [&bar](uint64_t done, uint64_t total) {
    bar.update("writing", static_cast<int64_t>(done), static_cast<int64_t>(total), "");
    return !interrupt_flag();
  };
  const synth::SynthResult result = synth::write_synthetic_checkpoint(options);
  bar.clear();
  fmt::print(
      stderr, "qvl: {} tensors, {:.2f} GB in {} file(s) written to {}{}\n", result.tensors,
      static_cast<double>(result.weight_bytes) * 1e-9, result.shards, o.out,
      result.has_tokenizer ? "" : "; no tokenizer: token ids work, text prompts do not (--tokenizer FOLDER)");
  return kExitOk;
}

}  // namespace

Registration register_synth(CLI::App& app) {
  auto options = std::make_shared<SynthCommandOptions>();
  CLI::App* command =
      app.add_subcommand("synth", "Write a checkpoint of a public size with seeded random weights");
  set_usage(*command, "qvl synth SHAPE OUT [OPTIONS]");
  command->add_option("SHAPE", options->shape, shape_names())
      ->required()
      ->type_name("SHAPE")
      ->check(CLI::Validator(
          [](std::string& name) {
            for (std::string_view known : model::public_shape_names()) {
              if (CLI::detail::to_lower(name) == known) return std::string();
            }
            return fmt::format("expected one of {}, got {}", shape_names(), name);
          },
          ""));
  command->add_option("OUT", options->out, "Folder to create")->required()->type_name("FOLDER");
  command->add_option("--seed", options->seed, "Same seed, same bytes")->check(whole_between(0, INT64_MAX));
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "Copy tokenizer and chat template from this model folder")
      ->type_name("FOLDER");
  command->add_option("--shard-gb", options->shard_gb, "Largest weight file in GB")
      ->check(real_between(0.001, 1000));
  command->add_option("--threads", options->threads, "Threads (default: all processors available)")
      ->check(whole_between(1, 1024));
  return {command, [options] { return synth(*options); }};
}

}  // namespace qvl::apps
