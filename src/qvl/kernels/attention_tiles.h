// The common frame of attention_full and attention_causal: a set of independent units (one head of one segment, or
// one kv head with its group of query heads), each with its keys and its query rows. Keys and values are packed
// once per unit in tiles that start at multiples of the tile size; query rows are handled in blocks that pass over
// all tiles with an online softmax, so that memory never grows with rows x keys.
#pragma once

#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {

struct AttentionTile;

// Where an operator's units find their data. Implementations are called from several threads at once.
class AttentionUnits {
 public:
  virtual ~AttentionUnits() = default;
  virtual int64_t units() const = 0;
  virtual int64_t rows(int64_t unit) const = 0;
  virtual int64_t keys(int64_t unit) const = 0;
  virtual const void* query(int64_t unit, int64_t row) const = 0;
  virtual void* output(int64_t unit, int64_t row) const = 0;
  // How many keys, from the first, the row sees; 1..keys(unit), not falling with the row.
  virtual int64_t visible_keys(int64_t unit, int64_t row) const = 0;
  // Packs keys and values [first, first+count) into one tile by the kernel's pack functions.
  virtual void pack(const AttentionTile& kernel, int64_t unit, int64_t first, int64_t count, void* keys,
                    void* values) const = 0;
};

// Softmax attention of all rows of all units.
void run_attention_tiles(const Context& ctx, DType dtype, int64_t head_dim, float scale, const AttentionUnits& units);

}  // namespace qvl::kernels
