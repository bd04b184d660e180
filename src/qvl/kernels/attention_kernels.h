// The building blocks of norms, rotary embedding and attention for one instruction set. The operators
// (norm.cc, rope.cc, attention_full.cc, attention_causal.cc) check their arguments, cut the work into tasks
// and call these; nothing here allocates, locks or checks. Spec sections 5.3, 5.4, 6.3, 6.4 and B.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qvl::kernels {

// Buffers of attention keep this many partial sums per row and pad head vectors to a multiple of it, on every
// instruction set. Packed keys are complete in panels of this many keys.
inline constexpr int64_t kAttentionLanes = 16;

// Rows and heads whose largest magnitude is below this become zeros where they become codes.
inline constexpr float kSmallestCodedRow = 0x1p-100f;

inline constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Work on single rows, for one activation type.
struct RowKernels {
  // y[cols] = (x - mean) / sqrt(variance + eps) * weight + bias. y may be x.
  void (*layer_norm)(const void* x, int64_t cols, const float* weight, const float* bias, float eps,
                     void* y) = nullptr;

  // y[cols] = weight * (x / sqrt(mean(x^2) + eps)). y may be x.
  void (*rms_norm)(const void* x, int64_t cols, const float* weight, float eps, void* y) = nullptr;

  // x[heads, head_dim] in place, angles [head_dim/2] shared by the heads; float arithmetic, one rounding.
  void (*rope_heads)(void* x, int64_t heads, int64_t head_dim, const float* cos, const float* sin) = nullptr;

  // dst[head_dim] = rotate(rms_norm(src[head_dim])); the rotation rounds every step to the activation type.
  // dst may be src.
  void (*norm_rope_head)(const void* src, int64_t head_dim, const float* weight, float eps, const float* cos,
                         const float* sin, void* dst) = nullptr;

  // One head of an int8 cache (KvView in ops.h), head_dim <= kMaxInt8HeadDim; `key`: the codes are those of the head's
  // Hadamard transform. Every instruction set gives the same codes and scales. quantize_head returns the scale: NaN
  // when an element is not finite, 0 when all are below 2^-100.
  float (*quantize_head)(const void* src, int64_t head_dim, bool key, int8_t* codes) = nullptr;
  // Rounds once to the activation type.
  void (*dequantize_head)(const int8_t* codes, float scale, int64_t head_dim, bool key, void* dst) = nullptr;
};

// One step of the online softmax: `rows` query rows meet one packed tile of keys and values.
struct AttendArgs {
  const void* queries;  // packed rows, query_bytes apart
  int64_t rows;         // a multiple of row_group
  int64_t head_dim;
  const void* keys;    // packed tile
  const void* values;  // packed tile
  int64_t key_count;   // valid keys of the tile, 1..key_tile
  const int32_t*
      visible;    // [rows] how many keys of the tile, from its start, each row sees; null = all key_count
  float scale;    // score scale * log2(e), > 0
  float* max;     // [rows] running maximum of the scaled scores, in powers of two
  float* sum;     // [rows, kAttentionLanes] running partial sums of the weights
  float* out;     // [rows, round_up(head_dim, kAttentionLanes)] running weighted sums of values
  void* scratch;  // scratch_bytes, 64-byte aligned
};

// Compute-bound attention over packed tiles (flash attention), for one activation type.
//
// Per row, the arithmetic and its order depend on that row, on the tile boundaries and on the visible keys
// alone. Hidden keys add an exact zero, so a tile may hold more keys than a row sees.
struct AttentionTile {
  int64_t key_tile = 0;   // keys per packed tile, a multiple of kAttentionLanes
  int64_t row_group = 0;  // query rows handled together
  bool int16 = false;     // rows become 16-bit codes (attention_int16_simd.h)

  size_t (*query_bytes)(int64_t head_dim) = nullptr;  // one packed row
  size_t (*key_tile_bytes)(int64_t head_dim) = nullptr;
  size_t (*value_tile_bytes)(int64_t head_dim) = nullptr;
  size_t (*scratch_bytes)(int64_t head_dim) = nullptr;

  void (*pack_query)(const void* src, int64_t head_dim, void* dst) = nullptr;

  // Packs `count` rows (row stride in elements) as keys `first`.. of a tile; first is a multiple of
  // kAttentionLanes. The last panel is completed with zeros.
  void (*pack_keys)(const void* src, int64_t stride, int64_t first, int64_t count, int64_t head_dim,
                    void* tile) = nullptr;
  void (*pack_values)(const void* src, int64_t stride, int64_t first, int64_t count, int64_t head_dim,
                      void* tile) = nullptr;

  void (*attend)(const AttendArgs& args) = nullptr;

  // dst[head_dim] = out / sum, rounded once to the activation type. A zero never comes out negative.
  void (*finish)(const float* out, const float* sum, int64_t head_dim, void* dst) = nullptr;
};

// Bandwidth-bound attention of few rows over unpacked keys and values, for one activation type and one type of the
// cache. An int8 cache's codes stand for themselves here: the caller multiplies scores and weights by the scales.
// `next` is where the caller reads keys or values next, or null: a hint that memory may be asked for it already.
struct AttentionStream {
  // scores[r, i] = q[r] . k[i] for rows r < rows, keys i < count; q is float [rows, head_dim] as widen() makes it, k is
  // contiguous [count, head_dim].
  void (*scores)(const float* q, int64_t rows, const void* k, int64_t count, int64_t head_dim, float* scores,
                 int64_t score_stride, const void* next) = nullptr;

  // scores[0..visible) -> weights 2^(scale * score - max), scores[visible..count) -> 0; visible >= 1.
  // Returns the sum of the weights and stores the maximum of scale * score.
  float (*weights)(float* scores, int64_t visible, int64_t count, float scale, float* max) = nullptr;

  // out[r] += sum over i of weights[r, i] * v[i]; out is float [rows, head_dim].
  void (*gather)(const float* weights, int64_t weight_stride, int64_t rows, const void* v, int64_t count,
                 int64_t head_dim, float* out, const void* next) = nullptr;

  // sum[0..count) += part[0..count) * factor.
  void (*add_scaled)(const float* part, float factor, int64_t count, float* sum) = nullptr;

  // values[0..count) *= factors[0..count).
  void (*multiply)(const float* factors, int64_t count, float* values) = nullptr;

  // Between one head of activations and the float heads above, whose order of elements is the kernel's own. For an int8
  // cache widen() makes the Hadamard transform of a query, what the codes of keys are to be multiplied with.
  void (*widen)(const void* src, int64_t head_dim, float* dst) = nullptr;
  void (*narrow)(const float* src, int64_t head_dim,
                 void* dst) = nullptr;  // rounds once; zeros come out positive
};

struct AttentionKernels {
  RowKernels rows_f32, rows_bf16;
  AttentionTile tile_f32, tile_bf16;
  AttentionStream stream_f32, stream_bf16;
  AttentionStream stream_f32_int8, stream_bf16_int8;  // activations, then the cache
  // For bfloat16 activations of rows that see all keys (attention_int8_tile.h). Empty where no instruction makes it pay.
  AttentionTile tile_int8 = {};
};

// Filled once; valid for the life of the process. Those of a family of processors may be called on any of it,
// what they point to only where cpu_features() says so.
const AttentionKernels& attention_kernels_scalar();
#if defined(__x86_64__)
const AttentionKernels& attention_kernels_avx2();
const AttentionKernels& attention_kernels_avx512();
const AttentionKernels& attention_kernels_avx512vnni();
const AttentionKernels& attention_kernels_avx512bf16();
AttentionTile attention_tile_int8_avx512vnni();
#elif defined(__aarch64__)
const AttentionKernels& attention_kernels_neon();
#endif

}  // namespace qvl::kernels
