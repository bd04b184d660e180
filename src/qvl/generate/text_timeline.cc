#include "qvl/generate/text_timeline.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace qvl::generate {

int32_t likeliest(const Tensor& logits) {
  const auto v = logits.as<float>();
  return static_cast<int32_t>(std::max_element(v.begin(), v.end()) - v.begin());
}

TextTimeline::TextTimeline(const engine::EmbedStage& embed, const engine::DecoderStage& decoder)
    : embed_(embed), decoder_(decoder), cache_(decoder.new_cache()) {}

Tensor TextTimeline::prefill(std::span<const int32_t> ids, int64_t chunk, const engine::StageHooks& hooks) {
  Tensor logits;
  for (size_t begin = 0; begin < ids.size();) {
    const size_t n = std::min(static_cast<size_t>(chunk), ids.size() - begin);
    const bool last = begin + n == ids.size();
    logits = forward(ids.subspan(begin, n), false, last ? engine::LogitsMode::kLast : engine::LogitsMode::kNone, hooks);
    begin += n;
  }
  return logits;
}

Tensor TextTimeline::decode(int32_t id, engine::TopLogits top, const engine::StageHooks& hooks) {
  return forward({&id, 1}, true, engine::LogitsMode::kLast, hooks, top);
}

Tensor TextTimeline::forward(std::span<const int32_t> ids, bool decode, engine::LogitsMode mode,
                             const engine::StageHooks& hooks, engine::TopLogits top) {
  const Tensor rows = embed_.embed(ids);
  std::vector<int64_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), cache_->length());
  engine::DecoderInput input;
  input.embeds = &rows;
  for (auto& axis : input.positions) axis = positions;
  input.decode = decode;
  input.top = top;
  return decoder_.forward(input, *cache_, mode, hooks);
}

}  // namespace qvl::generate
