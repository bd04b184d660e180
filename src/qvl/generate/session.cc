#include "qvl/generate/session.h"

#include <algorithm>
#include <cstring>

#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/stopwatch.h"
#include "qvl/engine/visual_features.h"
#include "qvl/generate/generation.h"
#include "qvl/model/positions.h"

namespace qvl::generate {
namespace {

// Rows of one kind (images or videos) that a chunk shows, gathered from the features of the visuals they
// belong to.
class FeatureRows {
 public:
  void add(const engine::VisionFeatures& features, int64_t row) { rows_.push_back({&features, row}); }

  // Null when there are none.
  const engine::VisionFeatures* gather() {
    if (rows_.empty()) return nullptr;
    const engine::VisionFeatures& first = *rows_.front().features;
    result_.merged =
        gather_level(first.merged, [](const engine::VisionFeatures& f) -> const Tensor& { return f.merged; });
    for (size_t level = 0; level < first.deepstack.size(); ++level) {
      result_.deepstack.push_back(gather_level(
          first.deepstack[level],
          [level](const engine::VisionFeatures& f) -> const Tensor& { return f.deepstack.at(level); }));
    }
    return &result_;
  }

 private:
  struct Row {
    const engine::VisionFeatures* features;
    int64_t row;
  };

  template <typename Select>
  Tensor gather_level(const Tensor& like, Select select) const {
    const int64_t width = like.dim(1);
    Tensor out(like.dtype(), {static_cast<int64_t>(rows_.size()), width});
    const size_t row_bytes = static_cast<size_t>(width) * dtype_size_bytes(like.dtype());
    for (size_t i = 0; i < rows_.size(); ++i) {
      const Tensor& from = select(*rows_[i].features);
      if (from.dtype() != like.dtype() || from.dim(1) != width) {
        fail(ErrorCode::kMismatch, "session", "visual features",
             cat(width, " wide ", dtype_name(like.dtype())),
             cat(from.dim(1), " wide ", dtype_name(from.dtype())));
      }
      std::memcpy(static_cast<std::byte*>(out.data()) + i * row_bytes,
                  static_cast<const std::byte*>(from.data()) + static_cast<size_t>(rows_[i].row) * row_bytes,
                  row_bytes);
    }
    return out;
  }

  std::vector<Row> rows_;
  engine::VisionFeatures result_;
};

bool same_visual(const PromptVisual& a, const PromptVisual& b) {
  return a.is_video == b.is_video && a.grid == b.grid && a.key == b.key;
}

// What stands for pictures, and around them.
std::vector<int32_t> walls(const model::ModelConfig& config) {
  return {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id};
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

Session::Session(std::shared_ptr<const engine::Engine> engine, int64_t prefill_chunk_tokens)
    : engine_(std::move(engine)), prefill_chunk_tokens_(prefill_chunk_tokens), drafter_(walls(engine_->config())) {
  if (prefill_chunk_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "session", "prefill chunk", "1 token or more",
         cat(prefill_chunk_tokens));
  }
}

Session::Layout Session::layout(const Prompt& prompt) const {
  const model::ModelConfig& config = engine_->config();
  const int64_t merge = config.vision.spatial_merge_size;
  Layout out;
  out.visual.assign(prompt.ids.size(), -1);
  out.row.assign(prompt.ids.size(), 0);
  // For images (0) and videos (1): the visual being filled, and its next row.
  size_t current[2] = {0, 0};
  int64_t row[2] = {0, 0};
  auto advance = [&](int kind) {
    while (current[kind] < prompt.visuals.size() &&
           (prompt.visuals[current[kind]].is_video != (kind == 1) ||
            row[kind] >= prompt.visuals[current[kind]].grid.merged_tokens(merge))) {
      if (prompt.visuals[current[kind]].is_video == (kind == 1)) row[kind] = 0;
      ++current[kind];
    }
  };
  int64_t placed[2] = {0, 0};
  for (size_t i = 0; i < prompt.ids.size(); ++i) {
    const int kind = prompt.ids[i] == config.image_token_id   ? 0
                     : prompt.ids[i] == config.video_token_id ? 1
                                                              : -1;
    if (kind < 0) continue;
    ++placed[kind];
    advance(kind);
    if (current[kind] >= prompt.visuals.size()) continue;  // too many: reported below with the totals
    out.visual[i] = static_cast<int32_t>(current[kind]);
    out.row[i] = static_cast<int32_t>(row[kind]++);
  }
  int64_t wanted[2] = {0, 0};
  for (const PromptVisual& v : prompt.visuals) wanted[v.is_video] += v.grid.merged_tokens(merge);
  for (int kind = 0; kind < 2; ++kind) {
    if (placed[kind] == wanted[kind]) continue;
    fail(ErrorCode::kMismatch, "session", kind == 0 ? "image placeholder tokens" : "video placeholder tokens",
         cat(wanted[kind], " (one per merged token)"), cat(placed[kind]));
  }
  return out;
}

int64_t Session::common_prefix(const Prompt& prompt, const Layout& layout, int64_t most) const {
  if (cache_ && !cache_->intact()) return 0;
  const auto limit = static_cast<size_t>(std::min(reusable_tokens(), most));
  size_t n = 0;
  while (n < limit && ids_[n] == prompt.ids[n]) {
    const int32_t mine = visual_of_[n];
    const int32_t theirs = layout.visual[n];
    if ((mine < 0) != (theirs < 0)) break;
    if (mine >= 0 &&
        !same_visual(visuals_[static_cast<size_t>(mine)], prompt.visuals[static_cast<size_t>(theirs)]))
      break;
    ++n;
  }
  return static_cast<int64_t>(n);
}

int64_t Session::cached_prefix(const Prompt& prompt) const {
  return common_prefix(prompt, layout(prompt));
}

std::vector<bool> Session::visuals_needed(const Prompt& prompt, int64_t cached) const {
  const Layout where = layout(prompt);
  std::vector<bool> needed(prompt.visuals.size(), false);
  for (size_t i = static_cast<size_t>(cached); i < where.visual.size(); ++i) {
    if (where.visual[i] >= 0) needed[static_cast<size_t>(where.visual[i])] = true;
  }
  return needed;
}

void Session::check_context(const Prompt& prompt) const {
  const auto tokens = static_cast<int64_t>(prompt.ids.size());
  if (tokens < context_tokens()) return;
  int64_t visual = 0;
  for (const PromptVisual& v : prompt.visuals)
    visual += v.grid.merged_tokens(engine_->config().vision.spatial_merge_size);
  fail(ErrorCode::kLimit, "session", "prompt",
       cat("fewer tokens than the model's context of ", context_tokens()),
       cat(tokens, " (", visual, " of them visual)"),
       visual > tokens / 2 ? "fewer or smaller images: --max-pixels" : "a shorter prompt");
}

void Session::clear() {
  cache_.reset();
  prefilled_ = 0;
  ids_.clear();
  visual_of_.clear();
  visuals_.clear();
  delta_ = 0;
  logits_ = Tensor();
  drafter_.clear();
}

void Session::truncate(int64_t length) {
  if (cache_) cache_->truncate(length);
  prefilled_ = std::min(prefilled_, length);
  ids_.resize(static_cast<size_t>(length));
  visual_of_.resize(static_cast<size_t>(length));
  logits_ = Tensor();
}

PrefillResult Session::prefill(const Prompt& prompt, const engine::ProgressFn& progress, engine::TopLogits top) {
  const auto start = Clock::now();
  if (prompt.ids.empty())
    fail(ErrorCode::kInvalidArgument, "session", "prompt", "at least one token", "none");
  const Layout where = layout(prompt);
  check_context(prompt);
  PrefillResult result;
  result.prompt_tokens = static_cast<int64_t>(prompt.ids.size());
  result.cached_tokens = common_prefix(prompt, where);
  for (int32_t v : where.visual) result.visual_tokens += v >= 0;
  fill(prompt, where, result.cached_tokens, result.prompt_tokens, engine::LogitsMode::kLast, top, progress);
  result.prefill_ms = ms_since(start);
  return result;
}

void Session::read_ahead(const Prompt& prompt, int64_t length, const engine::ProgressFn& progress) {
  if (length < 1 || length > static_cast<int64_t>(prompt.ids.size()))
    fail(ErrorCode::kInvalidArgument, "session", "tokens to read ahead", cat("1..", prompt.ids.size()), cat(length));
  const Layout where = layout(prompt);
  check_context(prompt);
  const int64_t cached = common_prefix(prompt, where, length);
  if (cached < length) fill(prompt, where, cached, length, engine::LogitsMode::kNone, {}, progress);
}

void Session::fill(const Prompt& prompt, const Layout& where, int64_t cached, int64_t length,
                   engine::LogitsMode logits, engine::TopLogits top, const engine::ProgressFn& progress) {
  std::vector<image::Grid> grids[2];
  for (const PromptVisual& v : prompt.visuals) grids[v.is_video].push_back(v.grid);
  const model::Positions positions =
      model::mrope_positions(engine_->config(), prompt.ids, grids[0], grids[1]);
  for (size_t i = static_cast<size_t>(cached); i < static_cast<size_t>(length); ++i) {
    if (where.visual[i] >= 0 && !prompt.visuals[static_cast<size_t>(where.visual[i])].features) {
      fail(ErrorCode::kInvalidArgument, "session", cat("visual ", where.visual[i]), "its features", "none");
    }
  }

  if (!cache_) cache_ = engine_->decoder().new_cache();
  truncate(cached);
  // The cached tokens show the same visuals under this prompt's numbers.
  std::copy_n(where.visual.begin(), cached, visual_of_.begin());
  visuals_ = prompt.visuals;
  for (PromptVisual& v : visuals_) v.features.reset();

  const int64_t total = length - cached;
  for (int64_t begin = cached; begin < length; begin += prefill_chunk_tokens_) {
    const int64_t end = std::min(begin + prefill_chunk_tokens_, length);
    std::span<const int64_t> axes[3];
    for (int a = 0; a < 3; ++a)
      axes[a] = positions.row(a).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    const int64_t before = begin - cached;
    const engine::LogitsMode wanted = end == length ? logits : engine::LogitsMode::kNone;
    prefill_chunk(prompt, where, begin, end, axes, wanted, top, [&](int64_t done, int64_t units) {
      return !progress || progress(before + (units > 0 ? (end - begin) * done / units : 0), total);
    });
  }
  delta_ = positions.delta;
}

void Session::prefill_chunk(const Prompt& prompt, const Layout& where, int64_t begin, int64_t end,
                            std::span<const int64_t> const (&positions)[3], engine::LogitsMode logits,
                            engine::TopLogits top, const engine::ProgressFn& progress) {
  const model::ModelConfig& config = engine_->config();
  const auto first = static_cast<size_t>(begin);
  const auto count = static_cast<size_t>(end - begin);
  const std::span<const int32_t> ids = std::span(prompt.ids).subspan(first, count);

  FeatureRows rows[2];
  for (size_t i = first; i < first + count; ++i) {
    if (where.visual[i] < 0) continue;
    const PromptVisual& visual = prompt.visuals[static_cast<size_t>(where.visual[i])];
    rows[visual.is_video].add(*visual.features, where.row[i]);
  }
  Tensor embeds = engine_->embed().embed(ids);
  const engine::VisualRows placed = engine::place_visual_features(
      ids, config.image_token_id, config.video_token_id, rows[0].gather(), rows[1].gather(), embeds);
  engine::DecoderInput input;
  input.embeds = &embeds;
  for (int a = 0; a < 3; ++a) input.positions[a] = positions[a];
  input.visual_rows = placed.rows;
  input.deepstack = placed.deepstack;
  input.top = top_ = top;
  logits_ = engine_->decoder().forward(input, *cache_, logits, {.trace = {}, .progress = progress});
  if (prefilled_ == begin) prefilled_ = end;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  visual_of_.insert(visual_of_.end(), where.visual.begin() + static_cast<ptrdiff_t>(first),
                    where.visual.begin() + static_cast<ptrdiff_t>(first + count));
}

GenerateResult Session::generate(const GenerateOptions& options, const std::function<bool(int32_t)>& on_token,
                                 const std::atomic<bool>* cancel) {
  Generation generation(*this, options, [&](const SaidToken& token) { return on_token(token.id); }, cancel);
  run_alone(*engine_, generation, cancel);
  return generation.finish();
}

}  // namespace qvl::generate
