#include "qvl/apps/compare_stage.h"

#include <memory>

#include "qvl/apps/child_process.h"
#include "qvl/base/error.h"
#include "qvl/checkpoint/safetensors_writer.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/native/open.h"
#include "qvl/engine/ort/open.h"
#include "qvl/generate/measure.h"
#include "qvl/package/package.h"

namespace qvl::apps {
namespace {

// The stages that are asked for, and no more where the engine can do so.
struct Opened {
  model::ModelConfig config;
  std::shared_ptr<const engine::VisionStage> vision;
  std::shared_ptr<const engine::EmbedStage> embed;
  std::shared_ptr<const engine::DecoderStage> decoder;
  std::shared_ptr<const engine::Engine> engine;  // with both stages
  std::shared_ptr<ThreadPool> pool;
  std::string isa;
};

engine::EngineOptions native_options(const StageOptions& o) {
  engine::EngineOptions options;
  options.threads = o.threads;
  options.vision_precision = options.text_precision = engine::parse_precision(o.dtype);
  return options;
}

Opened open_checkpoint(const StageOptions& o) {
  Opened out;
  out.engine = engine::native::open_checkpoint(o.model, native_options(o));
  out.config = out.engine->config();
  // The engine keeps its stages alive.
  out.vision = {out.engine, &out.engine->vision()};
  out.embed = {out.engine, &out.engine->embed()};
  out.decoder = {out.engine, &out.engine->decoder()};
  out.isa = out.engine->info().isa;
  return out;
}

Opened open_stages(const StageOptions& o, bool vision, bool text) {
  if (!package::is_package_folder(o.model)) return open_checkpoint(o);
  const auto package = std::make_shared<const package::Package>(package::Package::open(o.model));
  const engine::EngineOptions native = native_options(o);
  engine::ort::OrtOptions onnx;
  onnx.library = o.onnxruntime;
  onnx.threads = o.threads;
  Opened out;
  out.config = package->config();
  out.pool = std::make_shared<ThreadPool>(engine::thread_count(native));
  const auto open = [&](const std::string& engine, const engine::StageSelection& stages) {
    return engine == "onnx" ? engine::ort::open_package(package, onnx, stages)
                            : engine::native::open_package(package, native, stages, out.pool);
  };
  engine::OpenedStages seeing, saying;
  if (vision)
    seeing = open(o.vision, {.vision = true, .text = false}), out.vision = seeing.vision,
    out.isa = seeing.isa;
  if (text) {
    saying = open(o.text, {.vision = false, .text = true});
    out.embed = saying.embed, out.decoder = saying.decoder, out.isa = saying.isa;
  }
  if (vision && text) {
    out.engine = engine::compose(out.config, seeing, saying, package->manifest().source.parameters, out.pool);
  }
  return out;
}

void write_logits(const Opened& opened, const generate::ParityCase& prompt, const std::string& path) {
  const auto trace =
      generate::trace_prefill(*opened.engine, prompt.input, {.greedy_tokens = prompt.greedy_tokens, .stages_only = true});
  std::vector<checkpoint::NamedTensor> tensors;
  for (const generate::TracedTensor& t : trace) {
    if (t.name == "logits" || t.name == "greedy_tokens") tensors.push_back({t.name, &t.value});
  }
  checkpoint::write_safetensors(path, tensors, {{"producer", "qvl " QVL_VERSION}});
}

}  // namespace

Json measure_stage(const StageOptions& o) {
  const bool logits = o.what == "logits", vision = o.what != "text", text = o.what != "vision";
  const Opened opened = open_stages(o, vision, text);
  generate::ParityCaseOptions cases;
  cases.sizes = {o.size};
  cases.greedy_tokens = o.tokens;
  cases.texts = 0;
  cases.several.clear();
  cases.video = false;
  ThreadPool single(1);
  const generate::ParityCase prompt = std::move(generate::standard_parity_cases(
      o.model, opened.config, cases, opened.pool ? opened.pool.get() : &single)[0]);

  Json out;
  out["isa"] = opened.isa;
  if (logits) {
    write_logits(opened, prompt, o.out);
  } else {
    if (vision) {
      const generate::VisionSpeed speed = generate::measure_vision(*opened.vision, prompt.input);
      out["patches"] = speed.patches;
      out["vision_patches_per_s"] = speed.patches_per_s();
    }
    if (text) {
      const generate::TextSpeed speed =
          generate::measure_text(*opened.embed, *opened.decoder, opened.config, prompt.input, o.tokens);
      out["prompt_tokens"] = speed.prompt_tokens;
      out["prefill_tokens_per_s"] = speed.prefill_tokens_per_s();
      out["decode_tokens_per_s"] = speed.decode_tokens_per_s();
    }
  }
  out["peak_bytes"] = peak_memory_bytes();
  return out;
}

}  // namespace qvl::apps
