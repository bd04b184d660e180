// attention_full: the vision encoder's attention, every row of a segment (one image or one frame) sees every
// other (spec 5.4). A unit is one head of one segment.
#include <string>
#include <vector>

#include "qvl/kernels/attention_tiles.h"
#include "qvl/kernels/op_check.h"
#include "qvl/kernels/ops.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

class FullUnits final : public AttentionUnits {
 public:
  FullUnits(ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, int64_t head_dim,
            std::span<const int64_t> segment_lengths, Matrix out)
      : q_(q), k_(k), v_(v), out_(out), heads_(heads), head_dim_(head_dim) {
    int64_t start = 0;
    for (int64_t length : segment_lengths) {
      if (length > 0) segments_.push_back({start, length});
      start += length;
    }
  }

  int64_t units() const override { return static_cast<int64_t>(segments_.size()) * heads_; }
  int64_t rows(int64_t unit) const override { return segment(unit).length; }
  int64_t keys(int64_t unit) const override { return segment(unit).length; }
  UnitRows queries(int64_t unit) const override { return rows_of(q_, unit); }
  UnitRows outputs(int64_t unit) const override { return rows_of(out_, unit); }
  int64_t visible_keys(int64_t unit, int64_t) const override { return segment(unit).length; }
  void pack(const AttentionTile& kernel, int64_t unit, int64_t first, int64_t count, void* keys,
            void* values) const override {
    const int64_t row = segment(unit).start + first;
    kernel.pack_keys(element(k_.data, k_.dtype, row * k_.stride + column(unit)), k_.stride, 0, count,
                     head_dim_, keys);
    kernel.pack_values(element(v_.data, v_.dtype, row * v_.stride + column(unit)), v_.stride, 0, count,
                       head_dim_, values);
  }

 private:
  struct Segment {
    int64_t start;
    int64_t length;
  };
  const Segment& segment(int64_t unit) const { return segments_[static_cast<size_t>(unit / heads_)]; }
  UnitRows rows_of(const ConstMatrix& m, int64_t unit) const {
    return {element(m.data, m.dtype, segment(unit).start * m.stride + column(unit)), 1, m.stride};
  }
  int64_t column(int64_t unit) const { return unit % heads_ * head_dim_; }

  ConstMatrix q_, k_, v_;
  Matrix out_;
  int64_t heads_, head_dim_;
  std::vector<Segment> segments_;
};

}  // namespace

bool has_int8_attention(const KernelTable& table) {
  return table.attention->tile_int8.attend != nullptr;
}

void attention_full(const Context& ctx, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads,
                    int64_t head_dim, std::span<const int64_t> segment_lengths, float scale, Matrix out,
                    AttentionProducts products, const Pause& pause) {
  constexpr std::string_view kWhere = "attention_full";
  check_matrix(kWhere, "q", q);
  check_like(kWhere, "k", q, k);
  check_like(kWhere, "v", q, v);
  check_like(kWhere, "out", q, out);
  check_head_dim(kWhere, head_dim, 4);
  check_size(kWhere, "q columns (heads * head_dim)", heads * head_dim, q.cols);
  check_scale(kWhere, scale);
  int64_t total = 0;
  for (int64_t length : segment_lengths) {
    if (length < 0)
      fail(ErrorCode::kInvalidArgument, kWhere, "segment length", ">= 0", std::to_string(length));
    total += length;
  }
  check_size(kWhere, "sum of the segment lengths", q.rows, total);
  if (total == 0) return;
  const bool int8 =
      products == AttentionProducts::kInt8 && q.dtype == DType::kBF16 && has_int8_attention(*ctx.table);
  run_attention_tiles(ctx, int8 ? ctx.table->attention->tile_int8 : attention_tile(ctx, q.dtype), q.dtype, head_dim, scale,
                      FullUnits(q, k, v, heads, head_dim, segment_lengths, out), pause);
}

}  // namespace qvl::kernels
