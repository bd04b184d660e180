// An opened model: configuration plus the three stages. Immutable and shared; sessions hold a shared_ptr to
// it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "qvl/base/thread_pool.h"
#include "qvl/engine/stages.h"
#include "qvl/model/config.h"

namespace qvl::engine {

// kAuto: the checkpoint's own (f16 checkpoints compute in f32), products with integer weights in int8. The others:
// activations and products in that type, whatever the weights are stored in.
enum class Precision { kAuto, kF32, kBF16 };

// Throws kInvalidArgument for anything but auto, f32/fp32 and bf16.
Precision parse_precision(std::string_view name);
std::string_view precision_name(Precision precision);

// Keys and values in memory. kAuto: in the activations' type. kBF16: the same, and an error where activations are
// float32. kInt8: codes with a scale for each head of a position, about half of bf16's bytes (kernels/ops.h).
enum class KvType { kAuto, kBF16, kInt8 };

// Throws kInvalidArgument for anything but auto, bf16 and int8.
KvType parse_kv_type(std::string_view name);

// "bf16", "fp32", "int8": the type of a cache's elements as options and reports spell it.
std::string_view kv_dtype_name(DType cache);

struct EngineOptions {
  int threads = 0;  // 0: all processors available to the process
  Precision vision_precision = Precision::kAuto;
  Precision text_precision = Precision::kAuto;
  // Of the codes that the native vision stage rounds activations to before integer weights, 8 or 7 (kernels/ops.h); absent:
  // what the package says.
  std::optional<int> vision_activation_bits;
  // Whether that stage's attention multiplies 8-bit codes where its kernels can, beside integer weights; absent: what the package
  // says.
  std::optional<bool> vision_int8_attention;
  KvType kv = KvType::kAuto;  // native decoder only
  // Kernel table of the native stages ("scalar", "avx2", ...); empty: QVL_KERNELS, else the best one of this
  // processor.
  std::string kernels;
  // Called while weights are checked, converted or read ahead: bytes done, bytes in all.
  ProgressFn progress;
};

struct EngineInfo {
  // "native bf16", "native int8" (products with integer weights), "native int8 (7-bit activations, int8 attention)"
  std::string vision;
  std::string text;    // "native f32"
  std::string isa;     // kernel table, "avx512bf16"
  int threads = 0;
  DType kv_dtype = DType::kF32;  // of the elements of a KV cache
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // mapped and owned
  // Name what the bits of a stage's results depend on besides its input and the program: weights, precision, kernels.
  // Equal only when results are. Empty: unknown, so results must not be kept beyond this engine.
  std::string vision_identity;
  std::string text_identity;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const model::ModelConfig& config() const = 0;
  virtual const EngineInfo& info() const = 0;
  virtual const VisionStage& vision() const = 0;
  virtual const EmbedStage& embed() const = 0;
  virtual const DecoderStage& decoder() const = 0;
  // The pool that the stages compute on, for preprocessing in between. Never call it while a stage runs.
  virtual ThreadPool& pool() const = 0;
};

}  // namespace qvl::engine
