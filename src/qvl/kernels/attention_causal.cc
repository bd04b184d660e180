// attention_causal: the decoder's attention over the paged cache (spec 6.4). Query head n uses kv head
// n / (heads / kv_heads); the query heads of one kv head are handled together, so that its keys and values
// are read once for all of them.
//
// kGemm: a unit of the tile frame is one kv head with rows (position, head of the group).
// kGemv: tasks are (run of kSplitTokens positions, kv head), in the order in which the cache lies; every task
// leaves the maximum, the sum and the weighted values of its run, which are then merged in ascending order. Runs
// start at fixed positions, so neither the number of threads nor the other rows of the call matter.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "qvl/base/tensor.h"
#include "qvl/kernels/attention_tiles.h"
#include "qvl/kernels/kv_check.h"
#include "qvl/kernels/op_check.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/row_tasks.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

constexpr int64_t kSplitTokens = 256;
constexpr int64_t kMaxStreamRows = 16;
constexpr double kLog2E = 1.44269504088896340736;

// The geometry of one call.
struct Causal {
  ConstMatrix q;
  KvView kv;
  int64_t group;  // query heads per kv head
  int64_t past;
  Matrix out;

  bool int8() const { return kv.dtype == DType::kI8; }
  int64_t rows() const { return q.rows * group; }  // per kv head, position-major
  const void* query(int64_t kv_head, int64_t row) const {
    return element(q.data, q.dtype, row / group * q.stride + (kv_head * group + row % group) * kv.head_dim);
  }
  void* output(int64_t kv_head, int64_t row) const {
    return element(out.data, out.dtype,
                   row / group * out.stride + (kv_head * group + row % group) * kv.head_dim);
  }
  int64_t visible_keys(int64_t row) const { return past + row / group + 1; }

  // A run of positions of one kv head that lie side by side.
  struct Piece {
    const void* keys;
    const void* values;
    const float* key_scales;  // int8 only, else null
    const float* value_scales;
    int64_t first;
    int64_t count;
  };

  // The positions from `at` on that lie side by side, at most `count`.
  Piece piece(int64_t kv_head, int64_t at, int64_t count) const {
    const int64_t block = at / kv.block_tokens, slot = at % kv.block_tokens;
    const int64_t key_row = kv_row(kv, kv_head, false, slot), value_row = kv_row(kv, kv_head, true, slot);
    const void* rows = kv.blocks[block];
    Piece piece{element(rows, kv.dtype, key_row * kv.head_dim),
                element(rows, kv.dtype, value_row * kv.head_dim),
                nullptr,
                nullptr,
                at,
                std::min(kv.block_tokens - slot, count)};
    if (int8()) {
      piece.key_scales = kv_scales(kv, kv.blocks[block]) + key_row;
      piece.value_scales = kv_scales(kv, kv.blocks[block]) + value_row;
    }
    return piece;
  }

  // fn(piece) for positions [first, first + count).
  template <typename Fn>
  void for_pieces(int64_t kv_head, int64_t first, int64_t count, const Fn& fn) const {
    for (int64_t at = first; at < first + count;) {
      const Piece p = piece(kv_head, at, first + count - at);
      fn(p);
      at += p.count;
    }
  }
};

class CausalUnits final : public AttentionUnits {
 public:
  CausalUnits(const Causal& causal, const RowKernels& heads) : c_(causal), heads_(heads) {}
  int64_t units() const override { return c_.kv.kv_heads; }
  int64_t rows(int64_t) const override { return c_.rows(); }
  int64_t keys(int64_t) const override { return c_.past + c_.q.rows; }
  UnitRows queries(int64_t unit) const override { return {c_.query(unit, 0), c_.group, c_.q.stride}; }
  UnitRows outputs(int64_t unit) const override { return {c_.output(unit, 0), c_.group, c_.out.stride}; }
  int64_t visible_keys(int64_t, int64_t row) const override { return c_.visible_keys(row); }
  void pack(const AttentionTile& kernel, int64_t unit, int64_t first, int64_t count, void* keys,
            void* values) const override {
    const int64_t hd = c_.kv.head_dim;
    c_.for_pieces(unit, first, count, [&](const Causal::Piece& p) {
      if (c_.int8()) return pack_int8(kernel, p, p.first - first, keys, values);
      kernel.pack_keys(p.keys, hd, p.first - first, p.count, hd, keys);
      kernel.pack_values(p.values, hd, p.first - first, p.count, hd, values);
    });
  }

 private:
  // By way of activations. `at`: the piece's first position in the tile, a multiple of kAttentionLanes as blocks are.
  void pack_int8(const AttentionTile& kernel, const Causal::Piece& p, int64_t at, void* keys, void* values) const {
    const int64_t hd = c_.kv.head_dim;
    const DType type = c_.q.dtype;
    alignas(64) std::byte rows[kAttentionLanes * kMaxInt8HeadDim * sizeof(float)];
    for (int64_t i = 0; i < p.count; i += kAttentionLanes) {
      const int64_t n = std::min(kAttentionLanes, p.count - i);
      const auto widen = [&](const void* codes, const float* scales, bool key) {
        for (int64_t r = 0; r < n; ++r) {
          heads_.dequantize_head(static_cast<const int8_t*>(codes) + (i + r) * hd, scales[i + r], hd, key,
                                 element(static_cast<void*>(rows), type, r * hd));
        }
      };
      widen(p.keys, p.key_scales, true);
      kernel.pack_keys(rows, hd, at + i, n, hd, keys);
      widen(p.values, p.value_scales, false);
      kernel.pack_values(rows, hd, at + i, n, hd, values);
    }
  }

  const Causal& c_;
  const RowKernels& heads_;
};

// What one run of positions leaves for one kv head: per row the maximum, the sum and the weighted values.
struct Partial {
  float* max;
  float* sum;
  float* out;
};

void run_attention_stream(const Context& ctx, const AttentionStream& kernel, const Causal& c, float scale) {
  const int64_t hd = c.kv.head_dim, rows = c.rows(), keys = c.past + c.q.rows;
  const int64_t splits = (keys + kSplitTokens - 1) / kSplitTokens;
  const float scale_log2e = static_cast<float>(static_cast<double>(scale) * kLog2E);

  const int64_t partial_floats = round_up(rows * (hd + 2), kAttentionLanes);
  const int64_t thread_floats = round_up(rows * (hd + kSplitTokens), kAttentionLanes);
  const int64_t partials = c.kv.kv_heads * splits;
  AlignedBuffer memory(sizeof(float) *
                       static_cast<size_t>(partial_floats * partials + thread_floats * ctx.pool->threads()));
  float* const base = reinterpret_cast<float*>(memory.data());
  const auto partial = [&](int64_t kv_head, int64_t split) {
    float* p = base + (kv_head * splits + split) * partial_floats;
    return Partial{p + rows * hd, p + rows * (hd + 1), p};
  };

  ctx.pool->parallel_for(partials, [&](int64_t task, int thread) {
    const int64_t kv_head = task % c.kv.kv_heads, split = task / c.kv.kv_heads;
    float* q = base + partial_floats * partials + thread_floats * thread;
    float* scores = q + rows * hd;
    const Partial p = partial(kv_head, split);
    const int64_t first = split * kSplitTokens, count = std::min(kSplitTokens, keys - first);
    // Rows of earlier positions may end before this run.
    int64_t begin = 0;
    while (c.visible_keys(begin) <= first) ++begin;
    for (int64_t r = begin; r < rows; ++r) kernel.widen(c.query(kv_head, r), hd, q + r * hd);
    // What follows a piece: the next one's keys or values, behind the last keys the first values, behind the last values
    // the first keys of the task that this thread most likely takes next.
    const auto following = [&](const Causal::Piece& piece) {
      const int64_t at = piece.first + piece.count;
      const bool last = at == first + count;
      return std::pair(last, c.piece(kv_head, last ? first : at, 1));
    };
    const void* next_keys = nullptr;
    if (task + 1 < partials) {
      next_keys = c.piece((task + 1) % c.kv.kv_heads, (task + 1) / c.kv.kv_heads * kSplitTokens, 1).keys;
    }
    c.for_pieces(kv_head, first, count, [&](const Causal::Piece& piece) {
      float* at = scores + begin * kSplitTokens + (piece.first - first);
      const auto [last, then] = following(piece);
      kernel.scores(q + begin * hd, rows - begin, piece.keys, piece.count, hd, at, kSplitTokens,
                    last ? then.values : then.keys);
      if (!c.int8()) return;
      for (int64_t r = begin; r < rows; ++r, at += kSplitTokens) kernel.multiply(piece.key_scales, piece.count, at);
    });
    for (int64_t r = begin; r < rows; ++r) {
      const int64_t visible = std::min(count, c.visible_keys(r) - first);
      p.sum[r] = kernel.weights(scores + r * kSplitTokens, visible, count, scale_log2e, p.max + r);
    }
    std::fill(p.out + begin * hd, p.out + rows * hd, 0.0f);
    c.for_pieces(kv_head, first, count, [&](const Causal::Piece& piece) {
      float* const at = scores + begin * kSplitTokens + (piece.first - first);
      if (c.int8()) {
        for (int64_t r = begin; r < rows; ++r)
          kernel.multiply(piece.value_scales, piece.count, at + (r - begin) * kSplitTokens);
      }
      const auto [last, then] = following(piece);
      kernel.gather(at, kSplitTokens, rows - begin, piece.values, piece.count, hd, p.out + begin * hd,
                    last ? next_keys : then.values);
    });
  });

  // A row's runs in ascending order; later runs that it does not see are left out.
  const auto merge = [&](int64_t kv_head, int64_t row, int thread) {
    const int64_t seen = (c.visible_keys(row) + kSplitTokens - 1) / kSplitTokens;
    float max = -std::numeric_limits<float>::infinity();
    for (int64_t s = 0; s < seen; ++s) max = std::max(max, partial(kv_head, s).max[row]);
    float sum = 0;
    for (int64_t s = 0; s < seen; ++s) {
      const Partial p = partial(kv_head, s);
      sum += p.sum[row] * std::exp2(p.max[row] - max);
    }
    float* out = base + partial_floats * partials + thread_floats * thread;
    std::fill_n(out, hd, 0.0f);
    for (int64_t s = 0; s < seen; ++s) {
      const Partial p = partial(kv_head, s);
      kernel.add_scaled(p.out + row * hd, std::exp2(p.max[row] - max) / sum, hd, out);
    }
    kernel.narrow(out, hd, c.output(kv_head, row));
  };
  // A merge of few runs is cheaper than waking the threads once more.
  if (splits <= 4) {
    for (int64_t task = 0; task < c.kv.kv_heads * rows; ++task) merge(task / rows, task % rows, 0);
  } else {
    ctx.pool->parallel_for(c.kv.kv_heads, [&](int64_t kv_head, int thread) {
      for (int64_t row = 0; row < rows; ++row) merge(kv_head, row, thread);
    });
  }
}

}  // namespace

void attention_causal(const Context& ctx, LinearPath path, ConstMatrix q, const KvView& kv, int64_t heads,
                      int64_t past, float scale, Matrix out, const Pause& pause) {
  constexpr std::string_view kWhere = "attention_causal";
  check_matrix(kWhere, "q", q);
  check_like(kWhere, "out", q, out);
  if (past < 0) fail(ErrorCode::kInvalidArgument, kWhere, "past", ">= 0", std::to_string(past));
  check_kv(kWhere, kv, q.rows > 0 ? past + q.rows : 0);
  check_kv_type(kWhere, kv, q.dtype);
  check_head_dim(kWhere, kv.head_dim, 4);
  check_size(kWhere, "q columns (heads * head_dim)", heads * kv.head_dim, q.cols);
  if (heads < 1 || heads % kv.kv_heads != 0) {
    fail(ErrorCode::kMismatch, kWhere, "query heads", "a positive multiple of " + std::to_string(kv.kv_heads),
         std::to_string(heads));
  }
  check_scale(kWhere, scale);
  if (path == LinearPath::kGemv && q.rows > kMaxStreamRows) {
    fail(ErrorCode::kInvalidArgument, kWhere, "rows of kGemv", "at most " + std::to_string(kMaxStreamRows),
         std::to_string(q.rows), "use kGemm");
  }
  if (q.rows == 0) return;
  const Causal causal{q, kv, heads / kv.kv_heads, past, out};
  if (path == LinearPath::kGemm) {
    run_attention_tiles(ctx, attention_tile(ctx, q.dtype), q.dtype, kv.head_dim, scale,
                        CausalUnits(causal, row_kernels(ctx, q.dtype)), pause);
  } else {
    const AttentionKernels& kernels = *ctx.table->attention;
    const bool f32 = q.dtype == DType::kF32;
    run_attention_stream(ctx,
                         causal.int8() ? (f32 ? kernels.stream_f32_int8 : kernels.stream_bf16_int8)
                                       : (f32 ? kernels.stream_f32 : kernels.stream_bf16),
                         causal, scale);
  }
}

}  // namespace qvl::kernels
