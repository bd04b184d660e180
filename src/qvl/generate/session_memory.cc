// Beginnings of prompts that outlive a session: taken from and given to the memory on disk.

#include <algorithm>

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
    cache_ = std::move(cache);
    ids_.assign(prompt.ids.begin(), prompt.ids.begin() + prefix.length);
    visual_of_.assign(where.visual.begin(), where.visual.begin() + prefix.length);
    visuals_ = prompt.visuals;
    for (PromptVisual& v : visuals_) v.features.reset();
    prefilled_ = prefix.length;
    return prefix.length;
  }
  return have;
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
