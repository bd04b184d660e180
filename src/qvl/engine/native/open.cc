#include "qvl/engine/native/open.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/base/log.h"
#include "qvl/checkpoint/checkpoint.h"
#include "qvl/engine/native/decoder.h"
#include "qvl/engine/native/vision.h"
#include "qvl/engine/native/weights.h"
#include "qvl/model/tensor_table.h"

namespace qvl::engine::native {
namespace {

// The element type that most bytes of the checkpoint have: what its publisher calls its precision.
DType dominant_dtype(const checkpoint::Checkpoint& checkpoint) {
  size_t bytes[3] = {0, 0, 0};
  for (const checkpoint::CheckpointTensor& t : checkpoint.tensors()) {
    if (t.view->dtype == DType::kBF16) bytes[0] += t.view->bytes.size();
    if (t.view->dtype == DType::kF16) bytes[1] += t.view->bytes.size();
    if (t.view->dtype == DType::kF32) bytes[2] += t.view->bytes.size();
  }
  if (bytes[0] >= bytes[1] && bytes[0] >= bytes[2]) return DType::kBF16;
  return bytes[1] >= bytes[2] ? DType::kF16 : DType::kF32;
}

DType activation_type(Precision precision, DType stored) {
  switch (precision) {
    case Precision::kF32: return DType::kF32;
    case Precision::kBF16: return DType::kBF16;
    case Precision::kAuto: break;
  }
  return stored == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

std::string stage_name(DType activation) { return activation == DType::kBF16 ? "native bf16" : "native fp32"; }

class NativeEngine : public Engine {
 public:
  NativeEngine(checkpoint::Checkpoint checkpoint, model::ModelConfig config, bool tied_head, int64_t parameters,
               const EngineOptions& options)
      : checkpoint_(std::move(checkpoint)),
        config_(std::move(config)),
        pool_(options.threads > 0 ? options.threads : available_processors()),
        context_{&pool_, options.kernels.empty() ? &kernels::active_table() : &kernels::table_by_name(options.kernels)} {
    const DType stored = dominant_dtype(checkpoint_);
    const DType vision_type = activation_type(options.vision_precision, stored);
    const DType text_type = activation_type(options.text_precision, stored);

    int64_t done = 0;
    const int64_t total = static_cast<int64_t>(checkpoint_.total_bytes());
    const auto on_bytes = [&](int64_t n) {
      done += n;
      if (options.progress && !options.progress(done, total)) fail(ErrorCode::kCancelled, "load", "cancelled");
    };
    WeightBinder vision_binder(checkpoint_, config_, vision_type, on_bytes);
    vision_ = std::make_unique<NativeVision>(config_.vision, bind_vision(vision_binder, config_.vision), vision_type,
                                             context_);
    WeightBinder text_binder(checkpoint_, config_, text_type, on_bytes);
    decoder_weights_ = bind_decoder(text_binder, config_.text, tied_head);
    embed_ = std::make_unique<NativeEmbed>(decoder_weights_, text_type);
    decoder_ = std::make_unique<NativeDecoder>(config_.text, decoder_weights_, text_type, context_);

    info_.vision = stage_name(vision_type);
    info_.text = stage_name(text_type);
    info_.isa = std::string(kernels::table_name(*context_.table));
    info_.threads = pool_.threads();
    info_.parameters = parameters;
    info_.weight_bytes = total + vision_binder.owned_bytes() + text_binder.owned_bytes();
    owned_vision_ = vision_binder.take_owned();
    owned_text_ = text_binder.take_owned();
  }

  const model::ModelConfig& config() const override { return config_; }
  const EngineInfo& info() const override { return info_; }
  const VisionStage& vision() const override { return *vision_; }
  const EmbedStage& embed() const override { return *embed_; }
  const DecoderStage& decoder() const override { return *decoder_; }
  ThreadPool& pool() const override { return pool_; }

 private:
  checkpoint::Checkpoint checkpoint_;
  model::ModelConfig config_;
  mutable ThreadPool pool_;
  kernels::Context context_;
  EngineInfo info_;
  std::vector<Tensor> owned_vision_, owned_text_;
  DecoderWeights decoder_weights_;
  std::unique_ptr<NativeVision> vision_;
  std::unique_ptr<NativeEmbed> embed_;
  std::unique_ptr<NativeDecoder> decoder_;
};

}  // namespace

std::shared_ptr<const Engine> open_checkpoint(const std::filesystem::path& dir, const EngineOptions& options) {
  if (options.threads < 0) {
    fail(ErrorCode::kInvalidArgument, "load", "threads", "0 (all processors) or more", std::to_string(options.threads));
  }
  checkpoint::Checkpoint checkpoint = checkpoint::Checkpoint::open(dir);
  model::ModelConfig config = model::ModelConfig::from_json(checkpoint.config_json(), (dir / "config.json").string());
  std::vector<model::FoundTensor> found;
  for (const checkpoint::CheckpointTensor& t : checkpoint.tensors()) {
    found.push_back({t.name, t.view->dtype, t.view->shape, t.view->file, t.view->name});
  }
  const model::CheckpointMatch match = model::check_checkpoint(config, found, dir.string());
  if (match.redundant_head) {
    const auto* head = checkpoint.find(model::tensor_name(model::TensorRole::kLmHead));
    const auto* embedding = checkpoint.find(model::tensor_name(model::TensorRole::kTokenEmbedding));
    if (head->dtype != embedding->dtype || !std::ranges::equal(head->bytes, embedding->bytes)) {
      model::fail_different_head(dir.string(), head->file);
    }
  }
  return std::make_shared<NativeEngine>(std::move(checkpoint), std::move(config), match.tied_head, match.parameters,
                                        options);
}

}  // namespace qvl::engine::native
