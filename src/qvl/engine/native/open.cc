#include "qvl/engine/native/open.h"

#include <string>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/engine/native/decoder.h"
#include "qvl/engine/native/tensor_source.h"
#include "qvl/engine/native/vision.h"
#include "qvl/engine/native/weights.h"

namespace qvl::engine::native {
namespace {

DType activation_type(Precision precision, DType stored) {
  switch (precision) {
    case Precision::kF32:
      return DType::kF32;
    case Precision::kBF16:
      return DType::kBF16;
    case Precision::kAuto:
      break;
  }
  return stored == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

DType cache_type(KvType kv, DType activation, int64_t head_dim) {
  switch (kv) {
    case KvType::kInt8:
      if (head_dim > kernels::kMaxInt8HeadDim) {
        fail(ErrorCode::kUnsupported, "load", "head_dim with an int8 KV cache",
             cat("at most ", kernels::kMaxInt8HeadDim), cat(head_dim));
      }
      return DType::kI8;
    case KvType::kBF16:
      if (activation != DType::kBF16) {
        fail(ErrorCode::kUnsupported, "load", "KV cache", "auto or int8 with fp32 activations", "bf16",
             "with bf16 activations, --text-dtype bf16, the cache is bf16 too");
      }
      return DType::kBF16;
    case KvType::kAuto:
      break;
  }
  return activation;
}

std::string stage_name(DType activation, const WeightBinder& binder, int activation_bits, bool int8_attention = false) {
  if (!binder.multiplies_int8()) return activation == DType::kBF16 ? "native bf16" : "native fp32";
  if (int8_attention) return activation_bits == 7 ? "native int8 (7-bit activations, int8 attention)" : "native int8 (int8 attention)";
  return activation_bits == 7 ? "native int8 (7-bit activations)" : "native int8";
}

// What a vision stage stands on.
struct VisionModel {
  std::shared_ptr<const TensorSource> source;
  std::shared_ptr<ThreadPool> pool;
  std::vector<Tensor> owned;
  std::unique_ptr<NativeVision> stage;
};

// What embedding and decoder stand on.
struct TextModel {
  std::shared_ptr<const TensorSource> source;
  std::shared_ptr<ThreadPool> pool;
  std::vector<Tensor> owned;
  DecoderWeights weights;
  std::unique_ptr<NativeEmbed> embed;
  std::unique_ptr<NativeDecoder> decoder;
};

void drop_stage(const TensorSource& source, bool vision) {
  for (const model::TensorSpec& spec : model::tensor_table(source.config())) {
    if (model::is_vision_role(spec.role) != vision) continue;
    if (spec.role == model::TensorRole::kLmHead && source.tied_head()) continue;
    source.drop(spec.role, spec.layer);
  }
  if (!vision) source.drop_head_shortlist();
}

OpenedStages open_stages(std::shared_ptr<const TensorSource> source, const EngineOptions& options,
                         const StageSelection& selection, std::shared_ptr<ThreadPool> pool) {
  const kernels::Context context{pool.get(), options.kernels.empty()
                                                 ? &kernels::active_table()
                                                 : &kernels::table_by_name(options.kernels)};
  const model::ModelConfig& config = source->config();
  // Bits of the codes that activations become before integer weights; 0: they stay as they are.
  const auto code_bits = [&](bool vision) {
    if ((vision ? options.vision_precision : options.text_precision) != Precision::kAuto) return 0;
    return vision && options.vision_activation_bits ? *options.vision_activation_bits : source->activation_bits(vision);
  };
  int64_t done = 0, total = 0;
  if (selection.vision) total += source->stage_bytes(true);
  if (selection.text) total += source->stage_bytes(false);
  if (const auto shortlist = source->head_shortlist(); shortlist && selection.text && code_bits(false) != 0)
    total += static_cast<int64_t>(shortlist->parts.bytes());
  const auto on_bytes = [&](int64_t n) {
    done += n;
    if (options.progress && !options.progress(done, total)) fail(ErrorCode::kCancelled, "load", "cancelled");
  };

  const std::string weights = source->identity();
  const auto identity = [&](const std::string& name, DType activation) {
    return cat(name, ", ", dtype_name(activation), " activations, ", kernels::table_name(*context.table), ", ",
               weights);
  };

  OpenedStages stages;
  stages.isa = std::string(kernels::table_name(*context.table));
  stages.weight_bytes = total;
  if (selection.vision) {
    const DType type = activation_type(options.vision_precision, source->stage_type(true));
    auto model = std::make_shared<VisionModel>();
    model->source = source;
    model->pool = pool;
    const int measured = source->int8_attention();
    const bool wanted = options.vision_int8_attention.value_or(measured != 0) && type == DType::kBF16 &&
                        options.vision_precision == Precision::kAuto && kernels::has_int8_attention(*context.table);
    const int bits = wanted && measured != 0 && !options.vision_activation_bits ? measured : code_bits(true);
    WeightBinder binder(*source, type, bits, *pool, on_bytes);
    VisionWeights bound = bind_vision(binder, config.vision);
    const bool int8_attention = wanted && binder.multiplies_int8();
    model->stage = std::make_unique<NativeVision>(
        config.vision, std::move(bound), type,
        int8_attention ? kernels::AttentionProducts::kInt8 : kernels::AttentionProducts::kActivations, context,
        [source] { drop_stage(*source, true); });
    stages.weight_bytes += binder.owned_bytes();
    model->owned = binder.take_owned();
    stages.vision = {model, model->stage.get()};
    stages.vision_name = stage_name(type, binder, bits, int8_attention);
    stages.vision_identity = identity(stages.vision_name, type);
  }
  if (selection.text) {
    const DType type = activation_type(options.text_precision, source->stage_type(false));
    auto model = std::make_shared<TextModel>();
    model->source = source;
    model->pool = pool;
    const int bits = code_bits(false);
    WeightBinder binder(*source, type, bits, *pool, on_bytes);
    model->weights = bind_decoder(binder, config.text, source->tied_head());
    stages.weight_bytes += binder.owned_bytes();
    model->owned = binder.take_owned();
    model->embed = std::make_unique<NativeEmbed>(model->weights, type);
    stages.kv_dtype = cache_type(options.kv, type, config.text.head_dim);
    model->decoder = std::make_unique<NativeDecoder>(config.text, model->weights, type, stages.kv_dtype, context,
                                                     [source] { drop_stage(*source, false); });
    stages.embed = {model, model->embed.get()};
    stages.decoder = {model, model->decoder.get()};
    stages.text_name = stage_name(type, binder, bits);
    stages.text_identity =
        identity(cat(stages.text_name, ", ", kv_dtype_name(stages.kv_dtype), " keys and values"), type);
  }
  return stages;
}

}  // namespace

std::shared_ptr<const Engine> open_checkpoint(const std::filesystem::path& dir,
                                              const EngineOptions& options) {
  return open_checkpoint(std::make_shared<const source::Source>(source::Source::open(dir)), options);
}

std::shared_ptr<const Engine> open_checkpoint(std::shared_ptr<const source::Source> opened,
                                              const EngineOptions& options) {
  auto pool = std::make_shared<ThreadPool>(thread_count(options));
  const auto source = checkpoint_source(std::move(opened));
  const OpenedStages stages = open_stages(source, options, {}, pool);
  return compose(source->config(), stages, stages, source->parameters(), std::move(pool));
}

OpenedStages open_package(std::shared_ptr<const package::Package> package, const EngineOptions& options,
                          const StageSelection& selection, std::shared_ptr<ThreadPool> pool) {
  return open_stages(package_source(std::move(package)), options, selection, std::move(pool));
}

}  // namespace qvl::engine::native
