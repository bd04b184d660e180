// How a package keeps the head once more in few bits, so that a decode step finds the rows of the head that matter
// (engine/native/head.h): the one definition of the bits.
//
// A row is cut into blocks of 256 columns, the last one padded. A value is two codes of 2 bits, h and v, and s, a bfloat16 scale of the
// block: w = (2 h - 3) * s + (v - 1.5) * 0.7 * s. The first says what w is about. It lies in a plane that is read from one end to the
// other, sixteen rows side by side, a word of each, so that no sum crosses rows; the last sixteen are padded. The second lies in
// another plane, which only rows that the first leaves in question are read of. What does not exist is 0.
//   coarse  uint8 [ceil(rows / 16), blocks, 16, 16, 4]: byte [g, b, l, r, i] holds h of row 16 g + r, columns 64 k + 4 l + i of
//           the block, in bits 2 k and 2 k + 1, k = 0..3
//   scales  bfloat16 [ceil(rows / 16), blocks, 16]
//   fine    uint8 [rows, shortlist_fine_bytes]: [blocks, 64], byte j holds v of columns 64 k + j likewise; behind them the row's
//           scales once more, bfloat16 [blocks], since rows are read one here, one there; padded to 64 bytes
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "qvl/base/dtype.h"
#include "qvl/base/thread_pool.h"
#include "qvl/quant/error_stats.h"

namespace qvl::quant {

inline constexpr int64_t kShortlistBlock = 256;
inline constexpr int64_t kShortlistGroup = 16;  // rows side by side
// Of a block: coarse codes and scales of a group, fine codes of a row.
inline constexpr int64_t kShortlistCoarseBytes = 1024, kShortlistScaleBytes = 32, kShortlistFineCodeBytes = 64;
inline constexpr float kShortlistFineStep = 0.7f;  // in scales
// The codes of a byte are those of so many columns, so far apart; rows of a group alternate after so many bytes.
inline constexpr int kShortlistParts = 4;
inline constexpr int64_t kShortlistApart = kShortlistBlock / kShortlistParts, kShortlistWord = 4;

// The code of a block's column in the byte that holds it.
inline int shortlist_code(std::byte four, int64_t column) {
  return std::to_integer<int>(four) >> (2 * (column / kShortlistApart)) & 3;
}

// Where row `row` of a group has byte `byte` of its kShortlistApart of a block's coarse codes.
inline int64_t shortlist_coarse_byte(int64_t row, int64_t byte) {
  return byte / kShortlistWord * (kShortlistGroup * kShortlistWord) + row * kShortlistWord + byte % kShortlistWord;
}

inline int64_t shortlist_blocks(int64_t columns) {
  return (columns + kShortlistBlock - 1) / kShortlistBlock;
}

// Of a row in the fine part.
inline int64_t shortlist_fine_bytes(int64_t columns) {
  constexpr int64_t kLine = 64;
  const int64_t blocks = shortlist_blocks(columns), scales = blocks * static_cast<int64_t>(sizeof(BFloat16));
  return blocks * kShortlistFineCodeBytes + (scales + kLine - 1) / kLine * kLine;
}

// Whole rows of a shortlist, one part behind the other as above. Not owned.
template <typename Byte>
struct ShortlistParts {
  std::span<Byte> coarse, fine, scales;

  size_t bytes() const { return coarse.size() + fine.size() + scales.size(); }
  operator ShortlistParts<const Byte>() const { return {coarse, fine, scales}; }  // NOLINT
};
using ShortlistSpan = ShortlistParts<std::byte>;
using ConstShortlistSpan = ShortlistParts<const std::byte>;

// Rows [first, first + count) of `columns` columns, whole groups but for the last of all.
template <typename Byte>
ShortlistParts<Byte> shortlist_rows(const ShortlistParts<Byte>& all, int64_t columns, int64_t first, int64_t count) {
  const int64_t blocks = shortlist_blocks(columns), group = first / kShortlistGroup, groups = (count + kShortlistGroup - 1) / kShortlistGroup;
  const auto part = [](std::span<Byte> whole, int64_t bytes, int64_t begin, int64_t n) {
    return whole.subspan(static_cast<size_t>(begin * bytes), static_cast<size_t>(n * bytes));
  };
  return {part(all.coarse, blocks * kShortlistCoarseBytes, group, groups), part(all.fine, shortlist_fine_bytes(columns), first, count),
          part(all.scales, blocks * kShortlistScaleBytes, group, groups)};
}

// Bytes that `rows` rows have in each part.
struct ShortlistBytes {
  uint64_t coarse = 0, fine = 0, scales = 0;
};
// rows, columns >= 0; throws kLimit above 2^62.
ShortlistBytes shortlist_bytes(int64_t rows, int64_t columns);

// rows: [row_count, columns] of `type` (F32, BF16, F16), contiguous, any alignment. Scales are about those of the least squared error
// of the coarse values, but so large that no value is further off than 2.6 scales as a coarse and 1.6 as a fine one: who weighs a
// row's error by its scales need not fear single great values. Returns the statistics of the fine ones, which do not depend on
// threads; `out`, the place of these rows alone (shortlist_rows), counts as stored. Throws kFormat for a value that is not finite
// and kLimit where a scale is none as bfloat16, naming `where` and the row, counted from first_row; kMismatch for sizes;
// kUnsupported for the type.
ErrorStats encode_shortlist(const void* rows, DType type, int64_t row_count, int64_t columns, const ShortlistSpan& out,
                            ThreadPool& pool, std::string_view where, int64_t first_row = 0);

// out [rows, columns]: the fine values, or the coarse ones. Throws kMismatch.
void decode_shortlist(int64_t rows, int64_t columns, const ConstShortlistSpan& in, bool fine, std::span<float> out);

}  // namespace qvl::quant
