// The output head (spec 6): logits of all tokens, or of those alone that somebody will look at.
//
// A head of 152 thousand rows in 8 bits is a sixth of what a decode step of the 4B model reads, and nearly all of its rows
// only turn out not to matter. Where a package holds the head in few bits too (the shortlist, quant/shortlist.h), two bits of each
// value are read instead: they say of every token what its logit is about. Two more are read of those that are the greatest so, and
// 8-bit rows of the greatest of these, which tells what is to be reached and how far off approximations are; then of every other
// token that may reach it the two further bits and, where that leaves it in question, the 8-bit row. A token is left out when it
// would have to be off by more than seven standard deviations, measured in every call on 64 rows or more. Where that leaves too
// many, and where anything is not finite, all rows are computed.
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
#include "qvl/kernels/shortlist.h"

namespace qvl::engine::native {

class Head {
 public:
  // Largest TopLogits::count that the shortlist is used for.
  static constexpr int64_t kMostTop = 64;

  // `head` [V, D] without bias. `shortlist`, if there is one: of the same matrix; `read` then reads rows of the head, which is in an
  // integer format. What they refer to outlives this.
  Head(const kernels::Weight& head, const std::optional<kernels::Shortlist>& shortlist, ReadStoredRow read);

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
  // One row x and what is asked of it.
  struct Step {
    const kernels::Context& context;
    kernels::LinearPath path;
    const kernels::ConstMatrix& x;
    TopLogits top;
  };
  // Tokens of one step, and a logit of each.
  struct Tokens {
    std::vector<int32_t> ids;
    std::vector<float> logits;
  };
  const Spread& spread(const kernels::Context& context) const;
  void multiply(const kernels::Context& context, kernels::LinearPath path, const kernels::ConstMatrix& x, const kernels::Weight& w,
                const kernels::Matrix& logits) const;
  // The head's logits.
  Tokens exact(const Step& step, std::vector<int32_t> ids) const;
  // Coarse logits and what fine codes add.
  Tokens nearer(const Step& step, std::vector<int32_t> ids, std::span<const float> coarse) const;
  // Replaces the coarse logits [V] of one row x by the head's where `top` asks for them; false: all are needed.
  bool refine(const Step& step, std::span<float> logits) const;

  const kernels::Weight& head_;
  std::optional<kernels::Shortlist> shortlist_;
  ReadStoredRow read_;
  mutable std::once_flag spread_once_;
  mutable Spread spread_;
};

}  // namespace qvl::engine::native
