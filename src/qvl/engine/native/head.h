// The output head (spec 6): logits of all tokens, or of those alone that somebody will look at.
//
// A head of 152 thousand rows in 8 bits is a sixth of what a decode step of the 4B model reads, and nearly all of its rows
// only turn out not to matter. Where a package holds the head in 4 bits too (the shortlist), that is read instead: it says of
// every token what its logit is about, and the 8-bit rows are then multiplied for those that can be among the greatest. How
// far off the approximations are is measured in every call, on 64 rows or more that are computed both ways; a token is left out
// when it would have to be off by more than eight standard deviations. Where that leaves too many, and where anything is not
// finite, all rows are computed.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/engine/native/tensor_source.h"
#include "qvl/engine/stages.h"
#include "qvl/kernels/ops.h"

namespace qvl::engine::native {

class Head {
 public:
  // Largest TopLogits::count that the shortlist is used for.
  static constexpr int64_t kMostTop = 64;

  // `head` [V, D] without bias. `shortlist`, if there is one: the same matrix in an integer format of fewer bits; `read` then reads
  // rows of the head, which is in an integer format too. What they refer to outlives this.
  Head(const kernels::Weight& head, const std::optional<kernels::Weight>& shortlist, ReadStoredRow read);

  // logits [n, V] float32 of x [n, D], final norm done; values are rounded to x's type on the way (spec B). With `top` as DecoderInput
  // says. A row's result depends neither on other rows nor on their number.
  void logits(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, TopLogits top,
              const kernels::Matrix& logits) const;

  bool has_shortlist() const { return shortlist_.has_value(); }

 private:
  // How far off rows of the shortlist are, up to a factor that depends on x: for each the root of the sum of its squared scales.
  struct Spread {
    std::vector<float> of_row;
    std::vector<float> most_of_chunk;
  };
  const Spread& spread(const kernels::Context& context) const;
  void multiply(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, const kernels::Weight& w,
                const kernels::Matrix& logits) const;
  // [1, rows] float32: the logits of those rows.
  Tensor exact(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x,
               std::span<const int32_t> rows) const;
  // Replaces the approximations [V] of one row x by the head's where `top` asks for them; false: all are needed.
  bool refine(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, TopLogits top,
              std::span<float> logits) const;

  const kernels::Weight& head_;
  std::optional<kernels::Weight> shortlist_;
  ReadStoredRow read_;
  mutable std::once_flag spread_once_;
  mutable Spread spread_;
};

}  // namespace qvl::engine::native
