// An engine put together from stages of any kind: native vision with ONNX text, or any other mix. The
// implementations hand out their stages as shared pointers that keep what the stage stands on alive.
#pragma once

#include <memory>
#include <string>

#include "qvl/base/thread_pool.h"
#include "qvl/engine/engine.h"
#include "qvl/engine/stages.h"
#include "qvl/model/config.h"

namespace qvl::engine {

// Which stages to open: what is not asked for costs nothing.
struct StageSelection {
  bool vision = true;
  bool text = true;  // embedding and decoder, which share a table
};

// The stages that one implementation opened. `vision` is null, or `embed` and `decoder` are, where they were
// not selected.
struct OpenedStages {
  std::shared_ptr<const VisionStage> vision;
  std::shared_ptr<const EmbedStage> embed;
  std::shared_ptr<const DecoderStage> decoder;
  std::string vision_name;  // "native bf16", "onnx int8"
  std::string text_name;
  std::string isa;  // "avx512bf16", "onnxruntime 1.32.0"
  DType kv_dtype = DType::kF32;  // as in EngineInfo, of `decoder`
  int64_t weight_bytes = 0;
  std::string vision_identity;  // as in EngineInfo
  std::string text_identity;
};

// Vision from the first, embedding and decoder from the second. `pool` computes between the stages (and
// inside native ones). Throws kInvalidArgument when a stage is missing.
std::shared_ptr<const Engine> compose(model::ModelConfig config, const OpenedStages& vision,
                                      const OpenedStages& text, int64_t parameters,
                                      std::shared_ptr<ThreadPool> pool);

// The number of threads that options ask for: all processors for 0. Throws kInvalidArgument below 0.
int thread_count(const EngineOptions& options);

}  // namespace qvl::engine
