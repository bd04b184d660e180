#include "qvl/engine/native/vision.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "qvl/base/error.h"
#include "qvl/engine/native/arena.h"
#include "qvl/engine/native/matrices.h"
#include "qvl/engine/stage_input.h"
#include "qvl/model/positions.h"

namespace qvl::engine::native {
namespace {

constexpr float kNormEps = 1e-6f;
// Rows that a linear layer takes at a time: what a kernel makes of x, its int8 form, is as large as x and stays with the
// thread. A row's result does not depend on the others.
constexpr int64_t kLinearRows = 2048;
// Rows that pass through the MLP together: bounds its intermediate to a few MB whatever the image's size.
constexpr int64_t kMlpRows = 1024;

void trace(const StageHooks& hooks, const std::string& name, const kernels::ConstMatrix& value) {
  if (hooks.trace) hooks.trace(name, copy_of(value, DType::kF32));
}

}  // namespace

void NativeVision::linear(kernels::ConstMatrix x, const kernels::Weight& w, kernels::Activation activation,
                          kernels::ConstMatrix residual, kernels::Matrix y, const kernels::Pause& pause) const {
  for (int64_t row = 0; row < x.rows; row += kLinearRows) {
    if (row > 0 && pause) pause();
    const int64_t n = std::min(kLinearRows, x.rows - row);
    kernels::linear(context_, kernels::LinearPath::kGemm, rows_of(x, row, n), w, activation,
                    residual.data == nullptr ? residual : rows_of(residual, row, n), rows_of(y, row, n));
  }
}

void NativeVision::embed_patches(std::span<const float> pixels, std::span<const image::Grid> grids,
                                 const kernels::Matrix& x, const StageHooks& hooks, const kernels::Pause& pause) const {
  const int64_t patches = x.rows;
  const int64_t width = config_.patch_width();
  const int64_t dim = config_.hidden_size;
  if (activation_ == DType::kF32) {
    const kernels::ConstMatrix in{pixels.data(), DType::kF32, patches, width, width};
    linear(in, weights_.patch_embed, kernels::Activation::kNone, {}, x, pause);
  } else {
    const int64_t step = std::min(patches, kMlpRows);
    Tensor rounded(DType::kBF16, {step, width});
    const kernels::Matrix in = view(rounded);
    for (int64_t row = 0; row < patches; row += step) {
      if (row > 0 && pause) pause();
      const int64_t n = std::min(step, patches - row);
      context_.pool->parallel_for(n, [&](int64_t i, int) {
        convert_elements(pixels.data() + (row + i) * width, DType::kF32, rows_of(in, i, 1).data, DType::kBF16, width);
      });
      kernels::linear(context_, kernels::LinearPath::kGemm, rows_of(in, 0, n), weights_.patch_embed,
                      kernels::Activation::kNone, {}, rows_of(x, row, n));
    }
  }
  trace(hooks, "vision.patch_embed", x);

  const model::VisionTaps taps =
      model::vision_taps(grids, config_.position_side(), config_.spatial_merge_size);
  const bool bf16 = activation_ == DType::kBF16;
  Tensor traced;
  if (hooks.trace) traced = Tensor(DType::kF32, {patches, dim});
  // Weights, products and sums are rounded in a bf16 model, in this order (spec 5.2 and B).
  const auto r = [bf16](float v) { return bf16 ? round_to_bf16(v) : v; };
  Tensor taken(DType::kF32, {context_.pool->threads(), 4 * dim});  // rows of the table, which is used where it lies
  context_.pool->parallel_for(patches, [&](int64_t p, int thread) {
    float* e[4];
    float w[4];
    for (int64_t k = 0; k < 4; ++k) {
      const size_t tap = static_cast<size_t>(k * patches + p);
      e[k] = taken.as<float>().data() + (thread * 4 + k) * dim;
      kernels::weight_row(weights_.position_table, taps.index[tap], DType::kF32, e[k]);
      w[k] = r(taps.weight[tap]);
    }
    for (int64_t d = 0; d < dim; ++d) {
      const float pe = r(r(r(r(e[0][d] * w[0]) + r(e[1][d] * w[1])) + r(e[2][d] * w[2])) + r(e[3][d] * w[3]));
      if (hooks.trace) traced.as<float>()[static_cast<size_t>(p * dim + d)] = pe;
      if (bf16) {
        BFloat16& v = static_cast<BFloat16*>(x.data)[p * dim + d];
        v = to_bfloat16(to_float(v) + pe);
      } else {
        static_cast<float*>(x.data)[p * dim + d] += pe;
      }
    }
  });
  if (hooks.trace) hooks.trace("vision.pos_embed", std::move(traced));
}

void NativeVision::block(const VisionBlockWeights& w, std::span<const int64_t> segments, const float* cos,
                         const float* sin, const Workspace& s, const kernels::Pause& pause) const {
  using kernels::Activation;
  using kernels::LinearPath;
  const auto& [x, y, qkv, hidden] = s;
  const auto rest = [&pause] {
    if (pause) pause();
  };
  const int64_t dim = config_.hidden_size;
  const int64_t heads = config_.num_heads;
  const int64_t head_dim = config_.head_dim();

  kernels::layer_norm(context_, x, w.norm1.weight.data(), w.norm1.bias.data(), kNormEps, y);
  linear(y, w.qkv, Activation::kNone, {}, qkv, pause);
  rest();
  // q and k stand side by side: one call turns the heads of both.
  kernels::rope_vision(context_, columns_of(qkv, 0, 2 * dim), 2 * heads, head_dim, cos, sin);
  kernels::attention_full(context_, columns_of(qkv, 0, dim), columns_of(qkv, dim, dim),
                          columns_of(qkv, 2 * dim, dim), heads, head_dim, segments,
                          1.0f / std::sqrt(static_cast<float>(head_dim)), y, attention_, pause);
  rest();
  linear(y, w.proj, Activation::kNone, x, x, pause);

  kernels::layer_norm(context_, x, w.norm2.weight.data(), w.norm2.bias.data(), kNormEps, y);
  for (int64_t row = 0; row < x.rows; row += kMlpRows) {
    const int64_t n = std::min(kMlpRows, x.rows - row);
    const kernels::Matrix h = rows_of(hidden, 0, n);
    rest();
    kernels::linear(context_, LinearPath::kGemm, rows_of(y, row, n), w.fc1, Activation::kGeluTanh, {}, h);
    rest();
    kernels::linear(context_, LinearPath::kGemm, h, w.fc2, Activation::kNone, rows_of(x, row, n),
                    rows_of(x, row, n));
  }
}

Tensor NativeVision::merge(const MergerWeights& w, bool norm_after_regrouping, const Workspace& s,
                           const kernels::Pause& pause) const {
  using kernels::Activation;
  const auto& [x, y, qkv, hidden] = s;
  const int64_t merged_rows = x.rows / config_.merge_rows();
  const int64_t width = config_.merged_width();
  if (norm_after_regrouping) {
    // Four consecutive rows are one row of four times the width.
    kernels::ConstMatrix grouped{x.data, x.dtype, merged_rows, width, width};
    kernels::Matrix out{y.data, y.dtype, merged_rows, width, width};
    kernels::layer_norm(context_, grouped, w.norm.weight.data(), w.norm.bias.data(), kNormEps, out);
  } else {
    kernels::layer_norm(context_, x, w.norm.weight.data(), w.norm.bias.data(), kNormEps, y);
  }
  const kernels::ConstMatrix grouped{y.data, y.dtype, merged_rows, width, width};
  const kernels::Matrix h{qkv.data, activation_, merged_rows, width, width};
  linear(grouped, w.fc1, Activation::kGeluErf, {}, h, pause);
  Tensor out(activation_, {merged_rows, config_.out_hidden_size});
  if (pause) pause();
  linear(h, w.fc2, Activation::kNone, {}, view(out), pause);
  return out;
}

VisionFeatures NativeVision::encode(std::span<const float> pixels, std::span<const image::Grid> grids,
                                    const StageHooks& hooks) const {
  const int64_t patches = check_vision_input(pixels, grids, config_);
  std::vector<int64_t> segments;  // one per frame: neither images nor frames attend to each other
  for (const image::Grid& g : grids) {
    segments.insert(segments.end(), static_cast<size_t>(g.t), g.h * g.w);
  }
  const int64_t dim = config_.hidden_size;
  const model::CosSin rotary = model::vision_cos_sin(grids, config_.head_dim(), config_.spatial_merge_size);

  Arena arena(activation_);
  const Arena::Slot x_at = arena.place(patches, dim), y_at = arena.place(patches, dim);
  const Arena::Slot qkv_at = arena.place(patches, 3 * dim);
  arena.reuse_from(qkv_at);
  const Arena::Slot hidden_at = arena.place(std::min(kMlpRows, patches), config_.intermediate_size);
  arena.allocate();
  const Workspace s{arena.matrix(x_at), arena.matrix(y_at), arena.matrix(qkv_at), arena.matrix(hidden_at)};
  int64_t blocks_done = 0;
  const auto report = [&] {
    if (hooks.progress && !hooks.progress(blocks_done, config_.depth))
      fail(ErrorCode::kCancelled, "vision", "cancelled");
  };
  kernels::Pause pause;
  if (hooks.progress) pause = report;
  embed_patches(pixels, grids, s.x, hooks, pause);

  VisionFeatures features;
  features.deepstack.resize(weights_.deepstack.size());
  for (int64_t i = 0; i < config_.depth; ++i) {
    blocks_done = i;
    report();
    block(weights_.blocks[static_cast<size_t>(i)], segments, rotary.cos.data(), rotary.sin.data(), s, pause);
    trace(hooks, "vision.block" + std::to_string(i), s.x);
    for (size_t j = 0; j < weights_.deepstack.size(); ++j) {
      if (config_.deepstack_indexes[j] != i) continue;
      report();
      features.deepstack[j] = merge(weights_.deepstack[j], /*norm_after_regrouping=*/true, s, pause);
      trace(hooks, "vision.deepstack" + std::to_string(j), view(std::as_const(features.deepstack[j])));
    }
  }
  blocks_done = config_.depth;
  report();
  features.merged = merge(weights_.merger, /*norm_after_regrouping=*/false, s, pause);
  trace(hooks, "vision.merged", view(std::as_const(features.merged)));
  if (hooks.progress) hooks.progress(config_.depth, config_.depth);
  return features;
}

}  // namespace qvl::engine::native
