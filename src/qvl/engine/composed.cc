#include "qvl/engine/composed.h"

#include <utility>

#include "qvl/base/error.h"

namespace qvl::engine {
namespace {

class ComposedEngine : public Engine {
 public:
  ComposedEngine(model::ModelConfig config, const OpenedStages& vision, const OpenedStages& text,
                 int64_t parameters, std::shared_ptr<ThreadPool> pool)
      : config_(std::move(config)),
        pool_(std::move(pool)),
        vision_(vision.vision),
        embed_(text.embed),
        decoder_(text.decoder) {
    info_.vision = vision.vision_name;
    info_.text = text.text_name;
    info_.isa = vision.isa == text.isa ? vision.isa : vision.isa + " + " + text.isa;
    info_.threads = pool_->threads();
    info_.kv_dtype = text.kv_dtype;
    info_.vision_identity = vision.vision_identity;
    info_.text_identity = text.text_identity;
    info_.parameters = parameters;
    info_.weight_bytes = vision.weight_bytes + (&vision == &text ? 0 : text.weight_bytes);
  }

  const model::ModelConfig& config() const override { return config_; }
  const EngineInfo& info() const override { return info_; }
  const VisionStage& vision() const override { return *vision_; }
  const EmbedStage& embed() const override { return *embed_; }
  const DecoderStage& decoder() const override { return *decoder_; }
  ThreadPool& pool() const override { return *pool_; }

 private:
  model::ModelConfig config_;
  EngineInfo info_;
  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<const VisionStage> vision_;
  std::shared_ptr<const EmbedStage> embed_;
  std::shared_ptr<const DecoderStage> decoder_;
};

}  // namespace

std::shared_ptr<const Engine> compose(model::ModelConfig config, const OpenedStages& vision,
                                      const OpenedStages& text, int64_t parameters,
                                      std::shared_ptr<ThreadPool> pool) {
  if (!vision.vision) fail(ErrorCode::kInvalidArgument, "load", "no vision stage was opened");
  if (!text.embed || !text.decoder) fail(ErrorCode::kInvalidArgument, "load", "no text stages were opened");
  return std::make_shared<ComposedEngine>(std::move(config), vision, text, parameters, std::move(pool));
}

int thread_count(const EngineOptions& options) {
  return resolve_threads(options.threads, "load");
}

}  // namespace qvl::engine
