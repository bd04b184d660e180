// The common frame of attention_full and attention_causal: a set of independent units (one head of one
// segment, or one kv head with its group of query heads), each with its keys and its query rows. Keys and
// values are packed once per unit in tiles that start at multiples of the tile size; query rows are handled
// in blocks that pass over all tiles with an online softmax, so that memory never grows with rows x keys.
#pragma once

#include <cstdint>

#include "qvl/base/dtype.h"
#include "qvl/kernels/ops.h"

namespace qvl::kernels {

struct AttentionTile;

// Where the query or output rows of a unit lie: row r is at base + (r / group) * stride + (r % group) *
// head_dim elements (group: the query heads that share one kv head).
struct UnitRows {
  const void* base;
  int64_t group;
  int64_t stride;
};

// Where an operator's units find their data. Implementations are called from several threads at once.
class AttentionUnits {
 public:
  virtual ~AttentionUnits() = default;
  virtual int64_t units() const = 0;
  virtual int64_t rows(int64_t unit) const = 0;
  virtual int64_t keys(int64_t unit) const = 0;
  virtual UnitRows queries(int64_t unit) const = 0;
  virtual UnitRows outputs(int64_t unit) const = 0;  // written to
  // How many keys, from the first, the row sees; 1..keys(unit), not falling with the row.
  virtual int64_t visible_keys(int64_t unit, int64_t row) const = 0;
  // Packs keys and values [first, first+count) into one tile by the kernel's pack functions.
  virtual void pack(const AttentionTile& kernel, int64_t unit, int64_t first, int64_t count, void* keys,
                    void* values) const = 0;
};

// The table's tile for activations of a type as they are.
const AttentionTile& attention_tile(const Context& ctx, DType dtype);

// Softmax attention of all rows of all units, of activations `dtype`, which `kernel` is for. `pause` may be empty.
void run_attention_tiles(const Context& ctx, const AttentionTile& kernel, DType dtype, int64_t head_dim, float scale,
                         const AttentionUnits& units, const Pause& pause);

}  // namespace qvl::kernels
