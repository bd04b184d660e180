// Text alone on one cache of the stages, without sampling: what measurements run (spec 6).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "qvl/engine/stages.h"

namespace qvl::generate {

// The first of the largest of logits [1, V].
int32_t likeliest(const Tensor& logits);

class TextTimeline {
 public:
  // The stages outlive it.
  TextTimeline(const engine::EmbedStage& embed, const engine::DecoderStage& decoder);

  // Logits of the last position, [1, V]; `ids` in pieces of `chunk` tokens. Throws what the stages throw.
  Tensor prefill(std::span<const int32_t> ids, int64_t chunk, const engine::StageHooks& hooks = {});
  // Logits of one token more, [1, V].
  Tensor decode(int32_t id, engine::TopLogits top = {}, const engine::StageHooks& hooks = {});
  int64_t length() const { return cache_->length(); }
  void truncate(int64_t length) { cache_->truncate(length); }

 private:
  Tensor forward(std::span<const int32_t> ids, bool decode, engine::LogitsMode mode, const engine::StageHooks& hooks,
                 engine::TopLogits top = {});

  const engine::EmbedStage& embed_;
  const engine::DecoderStage& decoder_;
  std::unique_ptr<engine::KvCache> cache_;
};

}  // namespace qvl::generate
