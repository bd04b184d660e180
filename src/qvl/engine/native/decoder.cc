#include "qvl/engine/native/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "qvl/base/error.h"
#include "qvl/engine/stage_input.h"
#include "qvl/model/positions.h"

namespace qvl::engine::native {
namespace {

using kernels::Activation;
using kernels::LinearPath;
using model::TensorRole;

// Rows whose logits are computed together: [rows, V] in the activation type stays small beside the result.
constexpr int64_t kLogitRows = 64;

kernels::Matrix view(Tensor& t) {
  return {t.data(), t.dtype(), t.dim(0), t.dim(1), t.dim(1)};
}

std::byte* row_at(Tensor& t, int64_t row) {
  return static_cast<std::byte*>(t.data()) +
         static_cast<size_t>(row * t.dim(1)) * dtype_size_bytes(t.dtype());
}
const std::byte* row_at(const Tensor& t, int64_t row) {
  return static_cast<const std::byte*>(t.data()) +
         static_cast<size_t>(row * t.dim(1)) * dtype_size_bytes(t.dtype());
}

// `rows` rows from `first`.
kernels::Matrix rows_of(Tensor& t, int64_t first, int64_t rows) {
  return {row_at(t, first), t.dtype(), rows, t.dim(1), t.dim(1)};
}

// x[rows[i]] += features[offset + i]; neighbouring rows are added in one call.
void add_visual_rows(const kernels::Context& context, Tensor& x, std::span<const int64_t> rows,
                     const Tensor& features, int64_t offset) {
  const int64_t width = x.dim(1);
  for (size_t begin = 0; begin < rows.size();) {
    size_t end = begin + 1;
    while (end < rows.size() && rows[end] == rows[end - 1] + 1) ++end;
    const int64_t n = static_cast<int64_t>(end - begin);
    const kernels::Matrix target{row_at(x, rows[begin]), x.dtype(), n, width, width};
    const kernels::ConstMatrix source{row_at(features, offset + static_cast<int64_t>(begin)),
                                      features.dtype(), n, width, width};
    kernels::add_rows(context, target, source);
    begin = end;
  }
}

}  // namespace

Tensor NativeEmbed::embed(std::span<const int32_t> ids) const {
  const kernels::Weight& table = weights_.embedding;
  Tensor out(activation_, {static_cast<int64_t>(ids.size()), table.in});
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= table.out) {
      fail(ErrorCode::kInvalidArgument, "embed", "token id", "0.." + std::to_string(table.out - 1),
           std::to_string(ids[i]));
    }
    kernels::weight_row(table, ids[i], activation_, row_at(out, static_cast<int64_t>(i)));
  }
  return out;
}

NativeDecoder::NativeDecoder(const model::TextConfig& config, const DecoderWeights& weights, DType activation,
                             DType cache, kernels::Context context)
    : config_(config),
      weights_(weights),
      activation_(activation),
      cache_(cache),
      context_(context),
      mrope_(config) {}

std::unique_ptr<KvCache> NativeDecoder::new_cache() const {
  return std::make_unique<NativeKvCache>(this, cache_, config_.num_layers, config_.num_kv_heads, config_.head_dim);
}

Tensor NativeDecoder::logits(const Tensor& x, LogitsMode mode, LinearPath path) const {
  const int64_t vocab = weights_.head.out;
  const int64_t first = mode == LogitsMode::kAll ? 0 : mode == LogitsMode::kLast ? x.dim(0) - 1 : x.dim(0);
  const int64_t rows = x.dim(0) - first;
  const int64_t width = x.dim(1);
  Tensor result(DType::kF32, {rows, vocab});
  const int64_t step = std::min(rows, kLogitRows);
  Tensor normed(activation_, {step, width});
  Tensor narrow;  // bf16 logits before they are raised to float32 (spec B)
  if (activation_ == DType::kBF16) narrow = Tensor(activation_, {step, vocab});
  for (int64_t done = 0; done < rows; done += step) {
    const int64_t n = std::min(step, rows - done);
    const kernels::ConstMatrix in{row_at(x, first + done), x.dtype(), n, width, width};
    const kernels::Matrix norm_out{normed.data(), normed.dtype(), n, width, width};
    kernels::rms_norm(context_, in, weights_.final_norm.data(), static_cast<float>(config_.rms_norm_eps),
                      norm_out);
    const kernels::Matrix direct{row_at(result, done), DType::kF32, n, vocab, vocab};
    if (activation_ == DType::kF32) {
      kernels::linear(context_, path, norm_out, weights_.head, Activation::kNone, {}, direct);
    } else {
      const kernels::Matrix out{narrow.data(), narrow.dtype(), n, vocab, vocab};
      kernels::linear(context_, path, norm_out, weights_.head, Activation::kNone, {}, out);
      convert_elements(out.data, DType::kBF16, direct.data, DType::kF32, n * vocab);
    }
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

  Tensor x = input.embeds->copy();
  Tensor y(activation_, {rows, width});
  Tensor q(activation_, {rows, config_.q_width()});
  Tensor k(activation_, {rows, config_.kv_width()});
  Tensor v(activation_, {rows, config_.kv_width()});
  Tensor attended(activation_, {rows, config_.q_width()});
  Tensor hidden(activation_, {rows, config_.intermediate_size});

  const auto observe = [&](std::initializer_list<TensorRole> roles, int64_t layer, const Tensor& input_rows) {
    if (!hooks.linear_input) return;
    for (const TensorRole role : roles) hooks.linear_input(role, static_cast<int>(layer), input_rows);
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
    const auto kept = [&](Tensor& t) { return rows_of(t, skipped, rows - skipped); };

    kernels::rms_norm(context_, view(x), w.input_norm.data(), eps, view(y));
    observe({TensorRole::kTextQWeight, TensorRole::kTextKWeight, TensorRole::kTextVWeight}, i, y);
    kernels::linear(context_, path, kept(y), w.q, Activation::kNone, {}, kept(q));
    kernels::linear(context_, path, view(y), w.k, Activation::kNone, {}, view(k));
    kernels::linear(context_, path, view(y), w.v, Activation::kNone, {}, view(v));
    rest();
    for (const Timeline& t : timelines) {
      // Rows are skipped in prompts alone, and a prompt is one timeline.
      const int64_t first = t.first + skipped, count = t.rows - skipped;
      const kernels::KvView kv = t.cache->layer(i);
      kernels::qk_norm_rope_append(context_, rows_of(q, first, count), rows_of(k, t.first, t.rows),
                                   rows_of(v, t.first, t.rows), config_.num_heads, w.q_norm.data(), w.k_norm.data(), eps,
                                   cos.data() + t.first * half, sin.data() + t.first * half, t.past, kv);
      if (count == 0) continue;
      kernels::attention_causal(context_, path, rows_of(q, first, count), kv, config_.num_heads, t.past + skipped, scale,
                                rows_of(attended, first, count), pause);
    }
    if (skipped == rows) break;
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
    if (hooks.trace) hooks.trace("layer" + std::to_string(i), x.to(DType::kF32));
  }
  Tensor result = logits(x, mode, path);
  for (const Timeline& t : timelines) t.cache->set_length(t.past + t.rows);
  if (hooks.progress) hooks.progress(config_.num_layers, config_.num_layers);
  return result;
}

}  // namespace qvl::engine::native
