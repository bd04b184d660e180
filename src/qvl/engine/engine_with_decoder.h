// An engine that is another one but for its decoder, which a derived class gives.
#pragma once

#include <memory>
#include <utility>

#include "qvl/engine/engine.h"

namespace qvl::engine {

class EngineWithDecoder : public Engine {
 public:
  const model::ModelConfig& config() const override { return inner_->config(); }
  const EngineInfo& info() const override { return inner_->info(); }
  const VisionStage& vision() const override { return inner_->vision(); }
  const EmbedStage& embed() const override { return inner_->embed(); }
  ThreadPool& pool() const override { return inner_->pool(); }

 protected:
  explicit EngineWithDecoder(std::shared_ptr<const Engine> inner) : inner_(std::move(inner)) {}
  const Engine& inner() const { return *inner_; }

 private:
  std::shared_ptr<const Engine> inner_;
};

}  // namespace qvl::engine
