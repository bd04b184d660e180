// Logits by the head's shortlist (quant/shortlist.h; spec 6): about, of all tokens, and nearer, of some.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "qvl/kernels/ops.h"
#include "qvl/quant/shortlist.h"

namespace qvl::kernels {

// [rows, columns], the parts of quant::ConstShortlistSpan. Does not own them.
struct Shortlist {
  int64_t rows = 0;
  int64_t columns = 0;
  quant::ConstShortlistSpan parts;
};

// Rows of x, float32 or bfloat16, are rounded to codes of 8 bits a block of the list, whose scale is absmax / 127. One with a value
// that is not finite has logits that are not.

// logits [x.rows, list.rows] float32 = x times the coarse values. A row's result depends neither on the other rows nor on
// threads. Throws kMismatch for sizes and the type of logits, kUnsupported for that of x.
void shortlist_logits(const Context& context, const ConstMatrix& x, const Shortlist& list, const Matrix& logits);

// What the fine codes of some rows of the list add to the coarse logits of x, which is one row: out[i] for ids[i], 0 <= ids[i] <
// list.rows (kInvalidArgument). Throws kMismatch for sizes, kUnsupported for the type of x.
void shortlist_refinements(const Context& context, const ConstMatrix& x, const Shortlist& list, std::span<const int32_t> ids,
                           std::span<float> out);

}  // namespace qvl::kernels
