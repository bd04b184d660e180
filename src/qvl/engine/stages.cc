#include "qvl/engine/stages.h"

#include <algorithm>
#include <cstring>

#include "qvl/base/error.h"
#include "qvl/engine/stage_input.h"

namespace qvl::engine {

uint64_t KvCache::saved_bytes(int64_t) const { return 0; }

void KvCache::save(int64_t, const ByteSink&) const {
  fail(ErrorCode::kUnsupported, "kv cache", "a cache of this engine cannot be saved");
}

void KvCache::load(int64_t, const SavedCache&) {
  fail(ErrorCode::kUnsupported, "kv cache", "a cache of this engine cannot be loaded");
}

bool KvCache::share_prefix(const KvCache&, int64_t) { return false; }

Tensor DecoderStage::decode_together(const DecoderInput& input, std::span<const DecodeShare> shares,
                                     const StageHooks& hooks) const {
  check_decode_shares(input, shares);
  if (shares.size() == 1) return forward(input, *shares[0].cache, LogitsMode::kAll, hooks);
  const int64_t rows = input.embeds->dim(0), width = input.embeds->dim(1);
  std::vector<int64_t> lengths;
  for (const DecodeShare& s : shares) lengths.push_back(s.cache->length());
  Tensor result;
  int64_t first = 0;
  try {
    for (const DecodeShare& s : shares) {
      Tensor embeds(input.embeds->dtype(), {s.rows, width});
      const size_t row_bytes = static_cast<size_t>(width) * dtype_size_bytes(embeds.dtype());
      std::memcpy(embeds.data(), static_cast<const std::byte*>(input.embeds->data()) + static_cast<size_t>(first) * row_bytes,
                  embeds.size_bytes());
      DecoderInput part;
      part.embeds = &embeds;
      for (int a = 0; a < 3; ++a)
        part.positions[a] = input.positions[a].subspan(static_cast<size_t>(first), static_cast<size_t>(s.rows));
      part.decode = true;
      StageHooks part_hooks = hooks;
      if (hooks.progress) {
        part_hooks.progress = [&](int64_t done, int64_t units) {
          return hooks.progress(first + (units > 0 ? s.rows * done / units : 0), rows);
        };
      }
      const Tensor logits = forward(part, *s.cache, LogitsMode::kAll, part_hooks);
      if (result.empty()) result = Tensor(DType::kF32, {rows, logits.dim(1)});
      std::ranges::copy(logits.as<float>(), result.as<float>().begin() + first * logits.dim(1));
      first += s.rows;
    }
  } catch (...) {
    for (size_t i = 0; i < shares.size(); ++i) shares[i].cache->truncate(lengths[i]);
    throw;
  }
  return result;
}

}  // namespace qvl::engine
