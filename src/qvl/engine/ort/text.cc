#include "qvl/engine/ort/text.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/engine/stage_input.h"
#include "qvl/package/graph_io.h"

namespace qvl::engine::ort {
namespace {

constexpr int64_t kAny = -1;

bool is_joined(const package::Package& p) {
  return p.manifest().layout == package::Layout::kGenai;
}

}  // namespace

OrtEmbed::OrtEmbed(std::shared_ptr<const package::Package> package, std::shared_ptr<const Graph> graph)
    : package_(std::move(package)),
      graph_(std::move(graph)),
      config_(package_->config()),
      levels_(package_->config().vision.deepstack_levels()),
      joined_(is_joined(*package_)),
      fixed_rows_(package_->manifest().static_sizes ? package_->manifest().static_sizes->sequence_tokens
                                                    : 0) {
  const int64_t width = config_.text.hidden_size;
  const int64_t rows = fixed_rows_ ? fixed_rows_ : kAny;
  std::vector<Port> inputs = {
      {package::kInputIds, DType::kI64, {kAny, rows}},
      {package::kImageFeatures, DType::kF32, {rows, joined_ ? (1 + levels_) * width : width}}};
  for (int j = 0; j < levels_ && !joined_; ++j) {
    inputs.push_back({package::deepstack_features_name(j), DType::kF32, {rows, width}});
  }
  const Port output = {
      package::kInputsEmbeds, DType::kF32, {kAny, rows, joined_ ? (1 + levels_) * width : width}};
  graph_->expect(inputs, {&output, 1});
}

Tensor OrtEmbed::embed(std::span<const int32_t> ids) const {
  const int64_t vocab = config_.text.vocab_size;
  const int64_t width = config_.text.hidden_size;
  std::vector<int64_t> wide(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      fail(ErrorCode::kInvalidArgument, "embed", "token id", "0.." + std::to_string(vocab - 1),
           std::to_string(ids[i]));
    }
    const bool placeholder = ids[i] == config_.image_token_id || ids[i] == config_.video_token_id;
    wide[i] = placeholder ? 0 : ids[i];
  }
  Tensor out(DType::kF32, {static_cast<int64_t>(ids.size()), width});
  const size_t step = fixed_rows_ ? static_cast<size_t>(fixed_rows_) : wide.size();
  for (size_t first = 0; first < wide.size(); first += step) {
    const size_t n = std::min(step, wide.size() - first);
    embed(std::span(wide).subspan(first, n), out.as<float>().data() + static_cast<int64_t>(first) * width);
  }
  return out;
}

void OrtEmbed::embed(std::span<const int64_t> ids, float* out) const {
  const int64_t width = config_.text.hidden_size;
  const int64_t real = static_cast<int64_t>(ids.size());
  const int64_t rows = fixed_rows_ ? fixed_rows_ : real;
  const int64_t feature_width = joined_ ? (1 + levels_) * width : width;
  std::vector<int64_t> padded(ids.begin(), ids.end());
  padded.resize(static_cast<size_t>(rows), 0);
  const Tensor features = Tensor::zeros(DType::kF32, {fixed_rows_, feature_width});

  const Runtime& runtime = graph_->runtime();
  const Handle<OrtIoBinding> binding = graph_->new_binding();
  std::vector<Handle<OrtValue>> values;
  const auto value = [&](const void* data, DType type, const Shape& shape) -> const OrtValue* {
    values.push_back(make_value(runtime, data, type, shape));
    return values.back().get();
  };
  graph_->bind_input(binding.get(), package::kInputIds, value(padded.data(), DType::kI64, {1, rows}));
  graph_->bind_input(binding.get(), package::kImageFeatures,
                     value(features.data(), DType::kF32, features.shape()));
  for (int j = 0; j < levels_ && !joined_; ++j) {
    graph_->bind_input(binding.get(), package::deepstack_features_name(j).c_str(),
                       value(features.data(), DType::kF32, features.shape()));
  }
  const bool direct = !joined_ && rows == real;
  Tensor whole;
  if (!direct) whole = Tensor(DType::kF32, {rows, feature_width});
  graph_->bind_output(binding.get(), package::kInputsEmbeds,
                      value(direct ? out : whole.data(), DType::kF32, {1, rows, feature_width}));
  graph_->run(binding.get());
  if (direct) return;
  for (int64_t i = 0; i < real; ++i) {
    std::memcpy(out + i * width, whole.as<float>().data() + i * feature_width,
                static_cast<size_t>(width) * sizeof(float));
  }
}

OrtDecoder::OrtDecoder(std::shared_ptr<const package::Package> package, std::shared_ptr<const Graph> graph)
    : package_(std::move(package)),
      graph_(std::move(graph)),
      config_(package_->config().text),
      levels_(package_->config().vision.deepstack_levels()),
      joined_(is_joined(*package_)) {
  const package::Manifest& manifest = package_->manifest();
  if (manifest.static_sizes && manifest.static_sizes->sequence_tokens > 0) {
    fixed_rows_ = manifest.static_sizes->sequence_tokens;
    fixed_context_ = manifest.static_sizes->context_tokens;
  }
  const bool fixed = fixed_rows_ > 0;
  cache_shape_ = {.kind = fixed            ? CacheKind::kFixed
                          : manifest.plain ? CacheKind::kAppend
                                           : CacheKind::kInPlace,
                  .layers = config_.num_layers,
                  .kv_heads = config_.num_kv_heads,
                  .head_dim = config_.head_dim,
                  .fixed_past = fixed_context_ - fixed_rows_,
                  .fixed_context = fixed_context_};
  counts_logits_ = !fixed && !joined_;
  last_logits_only_ = !counts_logits_ && graph_->output(package::kLogits).dims.size() == 3 &&
                      graph_->output(package::kLogits).dims[1] == 1;

  const int64_t rows = fixed ? fixed_rows_ : kAny;
  const int64_t width = config_.hidden_size;
  std::vector<Port> inputs = {
      {package::kInputsEmbeds, DType::kF32, {kAny, rows, joined_ ? (1 + levels_) * width : width}},
      {package::kPositionIds, DType::kI64, {3, kAny, rows}},
      {package::kAttentionMask, DType::kI64, {kAny, fixed ? fixed_context_ : kAny}}};
  if (levels_ > 0 && !joined_)
    inputs.push_back({package::kDeepstackEmbeds, DType::kF32, {levels_, kAny, rows, width}});
  if (counts_logits_) inputs.push_back({package::kLogitsToKeep, DType::kI64, {1}});
  std::vector<Port> outputs = {{package::kLogits, DType::kF32, {kAny, kAny, config_.vocab_size}}};
  for (int i = 0; i < config_.num_layers; ++i) {
    const std::vector<int64_t> past = {kAny, config_.num_kv_heads, fixed ? cache_shape_.fixed_past : kAny,
                                       config_.head_dim};
    const std::vector<int64_t> present = {kAny, config_.num_kv_heads, fixed ? fixed_context_ : kAny,
                                          config_.head_dim};
    inputs.push_back({package::past_key_name(i), DType::kF32, past});
    inputs.push_back({package::past_value_name(i), DType::kF32, past});
    outputs.push_back({package::present_key_name(i), DType::kF32, present});
    outputs.push_back({package::present_value_name(i), DType::kF32, present});
    layer_names_.push_back("layer" + std::to_string(i));
  }
  graph_->expect(inputs, outputs);
}

std::unique_ptr<KvCache> OrtDecoder::new_cache() const {
  return std::make_unique<OrtKvCache>(this, graph_, cache_shape_);
}

void OrtDecoder::step(const DecoderInput& input, int64_t first, int64_t count, int64_t keep, float* logits,
                      OrtKvCache& cache, const std::function<bool()>& poll,
                      std::map<int, std::vector<float>>* traced) const {
  const int64_t width = config_.hidden_size;
  // Fixed sizes: the call is filled up on the left with masked rows.
  const int64_t rows = fixed_rows_ ? fixed_rows_ : count;
  const int64_t pad = rows - count;
  const int64_t total = fixed_rows_ ? fixed_context_ : cache.length() + count;

  // embeds [1, rows, width or (1+K)*width], DeepStack rows [K, 1, rows, width] or in the columns behind.
  const float* embeds = input.embeds->as<float>().data() + first * width;
  const int64_t embed_width = joined_ ? (1 + levels_) * width : width;
  Tensor assembled, deepstack;
  if (joined_ || pad > 0) {
    assembled = Tensor::zeros(DType::kF32, {rows, embed_width});
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(assembled.as<float>().data() + (pad + i) * embed_width, embeds + i * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
    embeds = assembled.as<float>().data();
  }
  if (!joined_ && levels_ > 0) deepstack = Tensor::zeros(DType::kF32, {levels_, 1, rows, width});
  for (size_t j = 0; j < input.deepstack.size() && !input.visual_rows.empty(); ++j) {
    for (size_t i = 0; i < input.visual_rows.size(); ++i) {
      const int64_t row = input.visual_rows[i] - first;
      if (row < 0 || row >= count) continue;
      const float* source =
          input.deepstack[j].as<float>().data() + (input.deepstack_offset + static_cast<int64_t>(i)) * width;
      const int64_t level = static_cast<int64_t>(j);
      float* target = joined_ ? assembled.as<float>().data() + (pad + row) * embed_width + (1 + level) * width
                              : deepstack.as<float>().data() + (level * rows + pad + row) * width;
      std::memcpy(target, source, static_cast<size_t>(width) * sizeof(float));
    }
  }

  std::vector<int64_t> positions(static_cast<size_t>(3 * rows), 0);
  for (int64_t a = 0; a < 3; ++a) {
    std::copy_n(input.positions[a].data() + first, count, positions.data() + a * rows + pad);
  }
  std::vector<int64_t> mask(static_cast<size_t>(total), 1);
  if (fixed_rows_) {
    std::fill_n(mask.begin(), cache_shape_.fixed_past - cache.length(), 0);
    std::fill_n(mask.begin() + cache_shape_.fixed_past, pad, 0);
  }

  const Graph& graph = traced ? graph_->traced(layer_names_) : *graph_;
  const Runtime& runtime = graph.runtime();
  std::vector<Handle<OrtValue>> values;
  const auto value = [&](const void* data, DType type, const Shape& shape) -> const OrtValue* {
    values.push_back(make_value(runtime, data, type, shape));
    return values.back().get();
  };
  OrtIoBinding* binding = cache.begin(count, graph);
  graph.bind_input(binding, package::kInputsEmbeds, value(embeds, DType::kF32, {1, rows, embed_width}));
  if (levels_ > 0 && !joined_) {
    graph.bind_input(binding, package::kDeepstackEmbeds,
                     value(deepstack.data(), DType::kF32, deepstack.shape()));
  }
  graph.bind_input(binding, package::kPositionIds, value(positions.data(), DType::kI64, {3, 1, rows}));
  graph.bind_input(binding, package::kAttentionMask, value(mask.data(), DType::kI64, {1, total}));
  if (counts_logits_) graph.bind_input(binding, package::kLogitsToKeep, value(&keep, DType::kI64, {1}));
  // A genai graph that gives all positions gives them always.
  const int64_t given = counts_logits_ || last_logits_only_ ? keep : rows;
  Tensor all;
  if (given != keep) all = Tensor(DType::kF32, {given, config_.vocab_size});
  graph.bind_output(binding, package::kLogits,
                    value(given == keep ? logits : all.data(), DType::kF32, {1, given, config_.vocab_size}));
  if (traced) graph.bind_traced(binding);
  graph.run(binding, poll);
  cache.commit(count);
  if (traced) {
    const std::vector<Tensor> layers = graph.traced_values(binding);
    for (size_t i = 0; i < layers.size(); ++i) {
      const int layer =
          static_cast<int>(std::ranges::find(layer_names_, graph.traced_names()[i]) - layer_names_.begin());
      const int64_t skip = std::max<int64_t>(layers[i].dim(0) - count, 0);  // masked rows on the left
      const auto rows_of = layers[i].as<float>().subspan(static_cast<size_t>(skip * width));
      (*traced)[layer].insert((*traced)[layer].end(), rows_of.begin(), rows_of.end());
    }
  }
  if (given != keep) {
    std::memcpy(logits, all.as<float>().data() + (given - keep) * config_.vocab_size,
                static_cast<size_t>(keep * config_.vocab_size) * sizeof(float));
  }
}

Tensor OrtDecoder::forward(const DecoderInput& input, KvCache& cache, LogitsMode mode,
                           const StageHooks& hooks) const {
  check_decoder_input(input, config_, DType::kF32);
  if (static_cast<int64_t>(input.deepstack.size()) > levels_ && !input.visual_rows.empty()) {
    fail(ErrorCode::kMismatch, "decoder", "DeepStack levels", "at most " + std::to_string(levels_),
         std::to_string(input.deepstack.size()));
  }
  auto* kv = dynamic_cast<OrtKvCache*>(&cache);
  if (!kv || kv->owner() != this)
    fail(ErrorCode::kInvalidArgument, "decoder", "the KV cache was made by another model");
  const int64_t rows = input.embeds->dim(0);
  const int64_t past = kv->length();
  const int64_t vocab = config_.vocab_size;

  Tensor logits(DType::kF32, {mode == LogitsMode::kAll ? rows : mode == LogitsMode::kLast ? 1 : 0, vocab});
  Tensor unwanted;
  if (mode != LogitsMode::kAll) unwanted = Tensor(DType::kF32, {1, vocab});

  // A graph that gives the last logits alone gives all of them row by row.
  const int64_t most = mode == LogitsMode::kAll && last_logits_only_ ? 1 : fixed_rows_ ? fixed_rows_ : rows;
  std::map<int, std::vector<float>> traced;
  try {
    for (int64_t first = 0; first < rows; first += most) {
      const int64_t count = std::min(most, rows - first);
      if (fixed_rows_ && (kv->length() > cache_shape_.fixed_past || kv->length() + count > fixed_context_)) {
        fail(ErrorCode::kLimit, graph_->where(), "positions of a package with fixed sizes",
             "at most " + std::to_string(cache_shape_.fixed_past) + " before a call",
             std::to_string(kv->length()), "export with a larger context");
      }
      if (hooks.progress && !hooks.progress(first, rows)) fail(ErrorCode::kCancelled, "decoder", "cancelled");
      std::function<bool()> poll;
      // A decode step is over sooner than anybody can ask for its end.
      if (hooks.progress && !input.decode) poll = [&] { return hooks.progress(first, rows); };
      const bool last = first + count == rows;
      float* out = mode == LogitsMode::kAll            ? logits.as<float>().data() + first * vocab
                   : mode == LogitsMode::kLast && last ? logits.as<float>().data()
                                                       : unwanted.as<float>().data();
      step(input, first, count, mode == LogitsMode::kAll ? count : 1, out, *kv, poll,
           hooks.trace ? &traced : nullptr);
    }
  } catch (...) {
    kv->truncate(past);
    throw;
  }
  for (const auto& [layer, stream] : traced) {
    // The last layer is computed only where logits were asked for.
    if (static_cast<int64_t>(stream.size()) != rows * config_.hidden_size) continue;
    Tensor value(DType::kF32, {rows, config_.hidden_size});
    std::ranges::copy(stream, value.as<float>().begin());
    hooks.trace(layer_names_[static_cast<size_t>(layer)], std::move(value));
  }
  if (hooks.progress) hooks.progress(rows, rows);
  return logits;
}

}  // namespace qvl::engine::ort
