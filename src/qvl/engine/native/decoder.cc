#include "qvl/engine/native/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/engine/native/arena.h"
#include "qvl/engine/native/matrices.h"
#include "qvl/engine/stage_input.h"
#include "qvl/model/positions.h"

namespace qvl::engine::native {
namespace {

using kernels::Activation;
using kernels::LinearPath;
using model::TensorRole;

// Rows whose logits are computed together: [rows, V] in the activation type stays small beside the result.
constexpr int64_t kLogitRows = 64;

std::byte* row_at(Tensor& t, int64_t row) {
  return static_cast<std::byte*>(rows_of(view(t), row, 1).data);
}

// x[rows[i]] += features[offset + i]; neighbouring rows are added in one call.
void add_visual_rows(const kernels::Context& context, const kernels::Matrix& x, std::span<const int64_t> rows,
                     const Tensor& features, int64_t offset) {
  for (size_t begin = 0; begin < rows.size();) {
    size_t end = begin + 1;
    while (end < rows.size() && rows[end] == rows[end - 1] + 1) ++end;
    const int64_t n = static_cast<int64_t>(end - begin);
    kernels::add_rows(context, rows_of(x, rows[begin], n),
                      rows_of(view(features), offset + static_cast<int64_t>(begin), n));
    begin = end;
  }
}

}  // namespace

Tensor NativeEmbed::embed(std::span<const int32_t> ids) const {
  const kernels::Weight& table = weights_.embedding;
  Tensor out(activation_, {static_cast<int64_t>(ids.size()), table.in});
  AlignedBuffer room;
  std::optional<RowCopies> one;
  if (weights_.read_embedding_row) one.emplace(table, 1, room);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= table.out) {
      fail(ErrorCode::kInvalidArgument, "embed", "token id", "0.." + std::to_string(table.out - 1),
           std::to_string(ids[i]));
    }
    std::byte* const row = row_at(out, static_cast<int64_t>(i));
    if (i > 0 && ids[i] == ids[i - 1]) {  // a picture's tokens
      std::memcpy(row, row_at(out, static_cast<int64_t>(i) - 1), static_cast<size_t>(table.in) * dtype_size_bytes(activation_));
    } else if (one) {
      one->read(weights_.read_embedding_row, ids[i], 0);
      kernels::weight_row(one->weight(), 0, activation_, row);
    } else {
      kernels::weight_row(table, ids[i], activation_, row);
    }
  }
  return out;
}

NativeDecoder::NativeDecoder(const model::TextConfig& config, const DecoderWeights& weights, DType activation,
                             DType cache, kernels::Context context, std::function<void()> give_back)
    : config_(config),
      weights_(weights),
      head_(weights.head, weights.head_shortlist, weights.read_head_row),
      activation_(activation),
      cache_(cache),
      context_(context),
      mrope_(config),
      give_back_(std::move(give_back)),
      ahead_(std::make_unique<PagesAhead>(pages_in_order_of_use(weights))) {}

void NativeDecoder::expect() const {
  if (context_.pool->threads() > 1) ahead_->start();
}

void NativeDecoder::give_back() const {
  ahead_->stop();
  if (ahead_->wait() > 0) give_back_();
}

std::vector<std::span<const std::byte>> NativeDecoder::weights_of_step() const {
  return pages_in_order_of_use(weights_);
}

std::unique_ptr<KvCache> NativeDecoder::new_cache() const {
  return std::make_unique<NativeKvCache>(this, cache_, config_.num_layers, config_.num_kv_heads, config_.head_dim);
}

Tensor NativeDecoder::logits(const kernels::ConstMatrix& x, LogitsMode mode, TopLogits top, LinearPath path) const {
  const int64_t vocab = weights_.head.out;
  const int64_t first = mode == LogitsMode::kAll ? 0 : mode == LogitsMode::kLast ? x.rows - 1 : x.rows;
  const int64_t rows = x.rows - first;
  const int64_t width = x.cols;
  Tensor result(DType::kF32, {rows, vocab});
  const int64_t step = std::min(rows, kLogitRows);
  Tensor normed(activation_, {step, width});
  for (int64_t done = 0; done < rows; done += step) {
    const int64_t n = std::min(step, rows - done);
    const kernels::Matrix norm_out = rows_of(view(normed), 0, n);
    kernels::rms_norm(context_, rows_of(x, first + done, n), weights_.final_norm.data(),
                      static_cast<float>(config_.rms_norm_eps), norm_out);
    head_.logits(context_, path, norm_out, top, rows_of(view(result), done, n));
  }
  return result;
}

Tensor NativeDecoder::forward(const DecoderInput& input, KvCache& cache, LogitsMode mode,
                              const StageHooks& hooks) const {
  check_decoder_input(input, config_, activation_);
  const DecodeShare all{&cache, input.embeds->dim(0)};
  return run(input, {&all, 1}, mode, hooks);
}

Tensor NativeDecoder::decode_together(const DecoderInput& input, std::span<const DecodeShare> shares,
                                      const StageHooks& hooks) const {
  check_decoder_input(input, config_, activation_);
  check_decode_shares(input, shares);
  return run(input, shares, LogitsMode::kAll, hooks);
}

Tensor NativeDecoder::run(const DecoderInput& input, std::span<const DecodeShare> shares, LogitsMode mode,
                          const StageHooks& hooks) const {
  ahead_->stop();  // from here on all threads compute, and whoever needs a page maps it
  // Rows [first, first + rows) of the call are a timeline's.
  struct Timeline {
    NativeKvCache* cache;
    int64_t first, rows, past;
  };
  std::vector<Timeline> timelines;
  int64_t rows = 0;
  for (const DecodeShare& s : shares) {
    auto* cache = dynamic_cast<NativeKvCache*>(s.cache);
    if (!cache || cache->owner() != this) {
      fail(ErrorCode::kInvalidArgument, "decoder", "the KV cache was made by another model");
    }
    timelines.push_back({cache, rows, s.rows, cache->length()});
    rows += s.rows;
  }
  const int64_t width = config_.hidden_size;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  // A prompt takes the tiled path even for one row, so that chunks of any size give the same bits.
  const LinearPath path = input.decode ? LinearPath::kGemv : LinearPath::kGemm;

  const int64_t half = mrope_.width();
  std::vector<float> cos(static_cast<size_t>(rows * half));
  std::vector<float> sin(cos.size());
  mrope_.fill(input.positions, cos, sin);

  Arena arena(activation_);
  const Arena::Slot x_at = arena.place(rows, width);  // the residual stream
  const Arena::Slot y_at = arena.place(rows, width);  // normed
  // While heads attend: q, then k and v until they are in the cache, there then what attention says.
  const Arena::Slot q_at = arena.place(rows, config_.q_width());
  const Arena::Slot k_at = arena.place(rows, config_.kv_width()), v_at = arena.place(rows, config_.kv_width());
  arena.reuse_from(k_at);
  const Arena::Slot attended_at = arena.place(rows, config_.q_width());
  // Afterwards the MLP.
  arena.reuse_from(q_at);
  const Arena::Slot hidden_at = arena.place(rows, config_.intermediate_size);
  arena.allocate();
  const kernels::Matrix x = arena.matrix(x_at), y = arena.matrix(y_at), q = arena.matrix(q_at), k = arena.matrix(k_at),
                        v = arena.matrix(v_at), attended = arena.matrix(attended_at), hidden = arena.matrix(hidden_at);
  std::memcpy(x.data, input.embeds->data(), input.embeds->size_bytes());

  const auto observe = [&](std::initializer_list<TensorRole> roles, int64_t layer,
                           const kernels::Matrix& input_rows) {
    if (!hooks.linear_input) return;
    const Tensor copy = copy_of(input_rows, activation_);
    for (const TensorRole role : roles) hooks.linear_input(role, static_cast<int>(layer), copy);
  };
  int64_t layers_done = 0;
  const auto report = [&] {
    if (hooks.progress && !hooks.progress(layers_done, config_.num_layers))
      fail(ErrorCode::kCancelled, "decoder", "cancelled");
  };
  // Within a layer: many rows take long, a decode step does not.
  kernels::Pause pause;
  if (hooks.progress && !input.decode) pause = report;
  const auto rest = [&] {
    if (pause) pause();
  };

  // set_length comes last: an error on the way leaves the caches' positions as they were.
  for (const Timeline& t : timelines) t.cache->reserve(t.past + t.rows);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    layers_done = i;
    report();
    const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(i)];

    // Nobody reads what the last layer says about other positions than those whose logits are asked for.
    const bool last = i + 1 == config_.num_layers && mode != LogitsMode::kAll && !hooks.trace && !hooks.linear_input;
    const int64_t skipped = !last ? 0 : mode == LogitsMode::kLast ? rows - 1 : rows;
    const auto kept = [&](const kernels::Matrix& m) { return rows_of(m, skipped, rows - skipped); };

    kernels::rms_norm(context_, x, w.input_norm.data(), eps, y);
    observe({TensorRole::kTextQWeight, TensorRole::kTextKWeight, TensorRole::kTextVWeight}, i, y);
    const kernels::LinearProduct qkv[] = {{kept(y), &w.q, kept(q)}, {y, &w.k, k}, {y, &w.v, v}};
    kernels::linear_together(context_, path, qkv);
    rest();
    // Rows are skipped in prompts alone, and a prompt is one timeline.
    for (const Timeline& t : timelines) {
      kernels::qk_norm_rope_append(context_, rows_of(q, t.first + skipped, t.rows - skipped), rows_of(k, t.first, t.rows),
                                   rows_of(v, t.first, t.rows), config_.num_heads, w.q_norm.data(), w.k_norm.data(), eps,
                                   cos.data() + t.first * half, sin.data() + t.first * half, t.past, t.cache->layer(i));
    }
    if (skipped == rows) break;
    // From here on what is attended stands where the new keys and values stood.
    for (const Timeline& t : timelines) {
      const int64_t first = t.first + skipped, count = t.rows - skipped;
      kernels::attention_causal(context_, path, rows_of(q, first, count), t.cache->layer(i), config_.num_heads,
                                t.past + skipped, scale, rows_of(attended, first, count), pause);
    }
    observe({TensorRole::kTextOWeight}, i, attended);
    kernels::linear(context_, path, kept(attended), w.o, Activation::kNone, kept(x), kept(x));
    rest();

    kernels::rms_norm(context_, kept(x), w.post_attention_norm.data(), eps, kept(y));
    observe({TensorRole::kTextGateWeight, TensorRole::kTextUpWeight}, i, y);
    kernels::linear_swiglu(context_, path, kept(y), w.gate, w.up, kept(hidden));
    rest();
    observe({TensorRole::kTextDownWeight}, i, hidden);
    kernels::linear(context_, path, kept(hidden), w.down, Activation::kNone, kept(x), kept(x));

    if (i < static_cast<int64_t>(input.deepstack.size())) {
      add_visual_rows(context_, x, input.visual_rows, input.deepstack[static_cast<size_t>(i)],
                      input.deepstack_offset);
    }
    if (hooks.trace) hooks.trace("layer" + std::to_string(i), copy_of(x, DType::kF32));
  }
  Tensor result = logits(x, mode, input.top, path);
  for (const Timeline& t : timelines) t.cache->check_intact();
  for (const Timeline& t : timelines) t.cache->set_length(t.past + t.rows);
  if (hooks.progress) hooks.progress(config_.num_layers, config_.num_layers);
  return result;
}

}  // namespace qvl::engine::native
