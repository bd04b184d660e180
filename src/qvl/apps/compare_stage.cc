#include "qvl/apps/compare_stage.h"

#include <memory>

#include "qvl/apps/child_process.h"
#include "qvl/apps/cli.h"
#include "qvl/base/error.h"
#include "qvl/checkpoint/safetensors_writer.h"
#include "qvl/generate/measure.h"

namespace qvl::apps {
namespace {

OpenStages open_stages(const StageOptions& o, bool vision, bool text) {
  EngineChoice choice;
  choice.threads = o.threads;
  choice.vision = o.vision, choice.text = o.text;
  choice.vision_dtype = choice.text_dtype = o.dtype;
  choice.onnxruntime = o.onnxruntime;
  return open_stages(o.model, choice, {.vision = vision, .text = text});
}

void write_logits(const OpenStages& opened, const generate::ParityCase& prompt, const std::string& path) {
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
  const OpenStages opened = open_stages(o, vision, text);
  const generate::ParityCase prompt =
      generate::picture_case(o.model, opened.config, o.size, o.tokens, opened.pool.get());

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
