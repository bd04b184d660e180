// The frame of compute-bound attention: batches of units, packing, blocks of query rows. See
// attention_tiles.h.
#include "qvl/kernels/attention_tiles.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "qvl/base/tensor.h"
#include "qvl/kernels/op_check.h"
#include "qvl/kernels/table.h"

namespace qvl::kernels {
namespace {

constexpr double kLog2E = 1.44269504088896340736;

// Rows of one task: the more, the more often a packed tile is used while it is in the near caches; but every
// thread should find several tasks. Results do not depend on it.
constexpr int64_t kMinBlockRows = 48, kMaxBlockRows = 384, kTasksPerThread = 8;

// Operations of a thread between two pauses: 50 ms at 50 GFLOPS. Tasks are then so short that threads wait little for each
// other at the end of a loop; but not shorter than it takes to use a tile often.
constexpr double kPauseOps = 2.5e9;
constexpr int64_t kTasksPerPause = 8, kMinPausedRows = 96;

// Packed units kept at once, for each thread; at least one unit always is. Small enough for units to be used
// while they are in the far cache.
constexpr size_t kPackedBudgetBytes = size_t{8} << 20;

constexpr size_t align64(size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// A slice of work: one tile to pack or one block of rows to attend.
struct Slice {
  int64_t unit;
  int64_t first;
  size_t packed_offset;  // of the unit's first tile
};

// Walks over the rows of a unit.
class RowCursor {
 public:
  RowCursor(const UnitRows& rows, int64_t first, size_t element_bytes, size_t head_bytes)
      : group_(rows.group),
        member_(first % rows.group),
        head_bytes_(head_bytes),
        jump_bytes_(static_cast<size_t>(rows.stride) * element_bytes -
                    static_cast<size_t>(rows.group) * head_bytes) {
    at_ = static_cast<std::byte*>(const_cast<void*>(rows.base)) +
          static_cast<size_t>(first / rows.group * rows.stride) * element_bytes +
          static_cast<size_t>(member_) * head_bytes;
  }
  std::byte* at() const { return at_; }
  void next() {
    at_ += head_bytes_;
    if (++member_ == group_) {
      member_ = 0;
      at_ += jump_bytes_;
    }
  }

 private:
  std::byte* at_;
  int64_t group_, member_;
  size_t head_bytes_, jump_bytes_;
};

// Buffers of one thread for one block of rows.
struct BlockBuffers {
  std::byte* queries;
  float* max;
  float* sum;
  float* out;
  int32_t* visible;
  std::byte* scratch;
};

struct Frame {
  const AttentionTile& kernel;
  const AttentionUnits& units;
  DType dtype;
  int64_t head_dim;
  float scale;
  int64_t block_rows;
  size_t query_bytes, key_tile_bytes, value_tile_bytes;
  int64_t out_stride;

  Frame(const AttentionTile& k, const AttentionUnits& u, DType type, int64_t hd, float s, int threads, bool pauses)
      : kernel(k), units(u), dtype(type), head_dim(hd) {
    scale = static_cast<float>(static_cast<double>(s) * kLog2E);
    int64_t rows = 0, keys = 1;
    for (int64_t i = 0; i < u.units(); ++i) {
      rows += u.rows(i);
      keys = std::max(keys, u.keys(i));
    }
    block_rows = std::clamp(rows / (threads * kTasksPerThread), kMinBlockRows, kMaxBlockRows);
    if (pauses) {
      const auto short_rows = static_cast<int64_t>(kPauseOps / kTasksPerPause / ops(1, keys));
      block_rows = std::min(block_rows, std::max(short_rows, kMinPausedRows));
    }
    block_rows = round_up(block_rows, k.row_group);
    query_bytes = k.query_bytes(hd);
    key_tile_bytes = align64(k.key_tile_bytes(hd));
    value_tile_bytes = align64(k.value_tile_bytes(hd));
    out_stride = round_up(hd, kAttentionLanes);
  }

  double ops(int64_t rows, int64_t keys) const {
    return 4.0 * static_cast<double>(rows) * static_cast<double>(keys) * static_cast<double>(head_dim);
  }
  double ops(const Slice& s) const {
    const int64_t rows = std::min(block_rows, units.rows(s.unit) - s.first);
    return ops(rows, units.visible_keys(s.unit, s.first + rows - 1));
  }
  int64_t tiles(int64_t unit) const { return (units.keys(unit) + kernel.key_tile - 1) / kernel.key_tile; }
  size_t tile_bytes() const { return key_tile_bytes + value_tile_bytes; }
  size_t unit_bytes(int64_t unit) const { return static_cast<size_t>(tiles(unit)) * tile_bytes(); }

  size_t buffer_bytes() const {
    const size_t rows = static_cast<size_t>(block_rows);
    return align64(rows * query_bytes) + align64(rows * sizeof(float)) +
           align64(rows * kAttentionLanes * sizeof(float)) +
           align64(rows * static_cast<size_t>(out_stride) * sizeof(float)) + align64(rows * sizeof(int32_t)) +
           align64(kernel.scratch_bytes(head_dim));
  }

  BlockBuffers carve(std::byte* p) const {
    const size_t rows = static_cast<size_t>(block_rows);
    const auto take = [&p](size_t bytes) {
      std::byte* at = p;
      p += align64(bytes);
      return at;
    };
    BlockBuffers b;
    b.queries = take(rows * query_bytes);
    b.max = reinterpret_cast<float*>(take(rows * sizeof(float)));
    b.sum = reinterpret_cast<float*>(take(rows * kAttentionLanes * sizeof(float)));
    b.out = reinterpret_cast<float*>(take(rows * static_cast<size_t>(out_stride) * sizeof(float)));
    b.visible = reinterpret_cast<int32_t*>(take(rows * sizeof(int32_t)));
    b.scratch = take(kernel.scratch_bytes(head_dim));
    return b;
  }

  void pack(const Slice& s, std::byte* packed) const {
    std::byte* tile =
        packed + s.packed_offset + static_cast<size_t>(s.first / kernel.key_tile) * tile_bytes();
    const int64_t count = std::min(kernel.key_tile, units.keys(s.unit) - s.first);
    units.pack(kernel, s.unit, s.first, count, tile, tile + key_tile_bytes);
  }

  void attend(const Slice& s, const std::byte* packed, const BlockBuffers& b) const {
    const int64_t rows = std::min(block_rows, units.rows(s.unit) - s.first);
    const int64_t padded = round_up(rows, kernel.row_group);
    const size_t element_bytes = dtype_size_bytes(dtype),
                 head_bytes = static_cast<size_t>(head_dim) * element_bytes;
    RowCursor query(units.queries(s.unit), s.first, element_bytes, head_bytes);
    std::byte* packed_query = b.queries;
    for (int64_t r = 0; r < padded; ++r, packed_query += query_bytes) {
      kernel.pack_query(query.at(), head_dim, packed_query);
      if (r + 1 < rows) query.next();  // missing rows of the last group repeat the last row
    }
    std::fill_n(b.max, padded, -std::numeric_limits<float>::infinity());
    std::fill_n(b.sum, padded * kAttentionLanes, 0.0f);
    std::fill_n(b.out, padded * out_stride, 0.0f);

    const int64_t block_keys = units.visible_keys(s.unit, s.first + rows - 1);  // the last row sees most
    const int64_t common_keys = units.visible_keys(s.unit, s.first);
    AttendArgs args;
    args.queries = b.queries;
    args.rows = padded;
    args.head_dim = head_dim;
    args.scale = scale;
    args.max = b.max;
    args.sum = b.sum;
    args.out = b.out;
    args.scratch = b.scratch;
    const std::byte* tile = packed + s.packed_offset;
    for (int64_t key = 0; key < block_keys; key += kernel.key_tile, tile += tile_bytes()) {
      args.keys = tile;
      args.values = tile + key_tile_bytes;
      args.key_count = std::min(kernel.key_tile, block_keys - key);
      args.visible = nullptr;
      if (key + args.key_count > common_keys) {
        for (int64_t r = 0; r < padded; ++r) {
          const int64_t seen = units.visible_keys(s.unit, s.first + std::min(r, rows - 1)) - key;
          b.visible[r] = static_cast<int32_t>(std::clamp<int64_t>(seen, 0, args.key_count));
        }
        args.visible = b.visible;
      }
      kernel.attend(args);
    }
    RowCursor output(units.outputs(s.unit), s.first, element_bytes, head_bytes);
    for (int64_t r = 0; r < rows; ++r, output.next()) {
      kernel.finish(b.out + r * out_stride, b.sum + r * kAttentionLanes, head_dim, output.at());
    }
  }
};

}  // namespace

const AttentionTile& attention_tile(const Context& ctx, DType dtype) {
  const AttentionKernels& kernels = *ctx.table->attention;
  return dtype == DType::kF32 ? kernels.tile_f32 : kernels.tile_bf16;
}

void run_attention_tiles(const Context& ctx, const AttentionTile& kernel, DType dtype, int64_t head_dim, float scale,
                         const AttentionUnits& units, const Pause& pause) {
  const int threads = ctx.pool->threads();
  const Frame frame(kernel, units, dtype, head_dim, scale, threads, pause != nullptr);
  const int64_t total = units.units();
  const size_t thread_bytes = frame.buffer_bytes();
  AlignedBuffer buffers(thread_bytes * static_cast<size_t>(threads));
  AlignedBuffer packed;
  const size_t budget = kPackedBudgetBytes * static_cast<size_t>(threads);
  std::vector<Slice> tiles, blocks;
  for (int64_t begin = 0; begin < total;) {
    tiles.clear();
    blocks.clear();
    size_t packed_bytes = 0;
    int64_t end = begin;
    for (; end < total; ++end) {
      const size_t bytes = frame.unit_bytes(end);
      if (end > begin && packed_bytes + bytes > budget) break;
      for (int64_t key = 0; key < units.keys(end); key += frame.kernel.key_tile) {
        tiles.push_back({end, key, packed_bytes});
      }
      // Last rows first: under a causal mask they cost most, and short tasks at the end balance the threads.
      const int64_t rows = units.rows(end);
      for (int64_t first = (rows - 1) / frame.block_rows * frame.block_rows; first >= 0;
           first -= frame.block_rows) {
        blocks.push_back({end, first, packed_bytes});
      }
      packed_bytes += bytes;
    }
    if (packed.size_bytes() < packed_bytes) packed = AlignedBuffer(packed_bytes);
    ctx.pool->parallel_for(static_cast<int64_t>(tiles.size()), [&](int64_t task, int) {
      frame.pack(tiles[static_cast<size_t>(task)], packed.data());
    });
    for (size_t first = 0; first < blocks.size();) {
      size_t stop = pause ? first : blocks.size();
      // As many tasks for each thread.
      for (double ops = 0; stop < blocks.size() && (ops < kPauseOps * threads || (stop - first) % static_cast<size_t>(threads) != 0); ++stop)
        ops += frame.ops(blocks[stop]);
      ctx.pool->parallel_for(static_cast<int64_t>(stop - first), [&](int64_t task, int thread) {
        frame.attend(blocks[first + static_cast<size_t>(task)], packed.data(),
                     frame.carve(buffers.data() + static_cast<size_t>(thread) * thread_bytes));
      });
      first = stop;
      if (pause && (first < blocks.size() || end < total)) pause();
    }
    begin = end;
  }
}

}  // namespace qvl::kernels
