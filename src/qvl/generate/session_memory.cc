// Beginnings of prompts that a session does not compute itself: taken from and given to the memory on disk, or taken over
// from another session.

#include <algorithm>

#include "qvl/base/error.h"
#include "qvl/generate/disk_memory.h"
#include "qvl/generate/session.h"

namespace qvl::generate {

std::vector<Session::VisualPrefix> Session::visual_prefixes(const Prompt& prompt, const Layout& where) const {
  std::vector<VisualPrefix> out;
  std::vector<const PromptVisual*> shown;
  std::vector<int64_t> rows(prompt.visuals.size(), 0);
  const int64_t merge = engine_->config().vision.spatial_merge_size;
  size_t open = 0;  // visuals with tokens on both sides
  for (size_t i = 0; i < where.visual.size(); ++i) {
    if (where.visual[i] < 0) continue;
    const auto v = static_cast<size_t>(where.visual[i]);
    if (rows[v]++ == 0) {
      shown.push_back(&prompt.visuals[v]);
      ++open;
    }
    if (rows[v] < prompt.visuals[v].grid.merged_tokens(merge) || --open > 0) continue;
    size_t end = i + 1;
    if (end < prompt.ids.size() && prompt.ids[end] == engine_->config().vision_end_token_id) ++end;
    if (end < prompt.ids.size()) out.push_back({static_cast<int64_t>(end), shown});
  }
  std::reverse(out.begin(), out.end());
  return out;
}

int64_t Session::restore(const Prompt& prompt, DiskMemory& memory) {
  const Layout where = layout(prompt);
  const int64_t have = common_prefix(prompt, where);
  for (const VisualPrefix& prefix : visual_prefixes(prompt, where)) {
    if (prefix.length <= have) break;
    const auto length = static_cast<size_t>(prefix.length);
    // Beside the present one: what it holds stays should there be nothing.
    std::unique_ptr<engine::KvCache> cache = engine_->decoder().new_cache();
    const std::string name = memory.prefix_name(std::span(prompt.ids).first(length), prefix.visuals);
    if (!memory.load_prefix(name, prefix.length, *cache)) continue;
    clear();
    adopt(std::move(cache), prompt, where, prefix.length);
    return prefix.length;
  }
  return have;
}

int64_t Session::share(const Prompt& prompt, const Session& donor) {
  if (donor.engine_ != engine_)
    fail(ErrorCode::kInvalidArgument, "session", "the session to share with belongs to another engine");
  const Layout where = layout(prompt);
  const int64_t have = common_prefix(prompt, where);
  // What the donor generated has other last bits than the same tokens in a prompt.
  const int64_t theirs = std::min(donor.prefilled_, donor.common_prefix(prompt, where));
  if (&donor == this || theirs <= have) return have;
  std::unique_ptr<engine::KvCache> cache = engine_->decoder().new_cache();
  if (!cache->share_prefix(*donor.cache_, theirs)) return have;
  adopt(std::move(cache), prompt, where, theirs);
  return theirs;
}

void Session::adopt(std::unique_ptr<engine::KvCache> cache, const Prompt& prompt, const Layout& where, int64_t length) {
  cache_ = std::move(cache);
  ids_.assign(prompt.ids.begin(), prompt.ids.begin() + length);
  visual_of_.assign(where.visual.begin(), where.visual.begin() + length);
  visuals_ = prompt.visuals;
  for (PromptVisual& v : visuals_) v.features.reset();
  prefilled_ = length;
  delta_ = 0;  // known once the prompt is filled in
  logits_ = Tensor();
}

void Session::keep(const Prompt& prompt, DiskMemory& memory) const {
  const Layout where = layout(prompt);
  const int64_t exact = std::min(prefilled_, common_prefix(prompt, where));
  for (const VisualPrefix& prefix : visual_prefixes(prompt, where)) {
    if (prefix.length > exact) continue;
    const auto ids = std::span(prompt.ids).first(static_cast<size_t>(prefix.length));
    memory.keep_prefix(memory.prefix_name(ids, prefix.visuals), prefix.length, *cache_);
    return;
  }
}

}  // namespace qvl::generate
